import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.measures import spectra, subspace

RNG = np.random.default_rng(0)
LOW, LATE = (RNG.normal(size=(32, 8)) @ RNG.normal(size=(8, 32)) for _ in range(2))  # rank 8 in R^32


def least_squares(M, M_inf):
    """min_A ||A M - M_inf||_F / ||M_inf||_F, solved."""
    A = np.linalg.lstsq(M.T, M_inf.T, rcond=1e-10)[0].T
    return np.linalg.norm(A @ M - M_inf) / np.linalg.norm(M_inf)


def test_the_projector_leaves_what_the_best_linear_map_leaves_on_either_side():
    assert subspace.distance(LOW, LATE) == pytest.approx(least_squares(LOW, LATE), rel=1e-12)
    assert subspace.distance(LOW, LATE, "column") == pytest.approx(least_squares(LOW.T, LATE.T), rel=1e-12)
    left = LATE - LATE @ np.linalg.pinv(LOW, rcond=1e-10) @ LOW
    spectral = np.linalg.norm(left, 2) / np.linalg.norm(LATE, 2)
    assert subspace.distance(LOW, LATE, norm="spectral") == pytest.approx(spectral, rel=1e-10)


def test_sides_are_keys_and_queries_writes_and_reads():
    W_Q, W_K, W_V, W_O, new = RNG.normal(size=(5, 16, 3))
    qk, ov = spectra.qk(W_Q, W_K), spectra.ov(W_V, W_O.T)
    changed = {"key": spectra.qk(W_Q, new), "query": spectra.qk(new, W_K)}
    changed |= {"write": spectra.ov(W_V, new.T), "read": spectra.ov(new, W_O.T)}
    for kind, whole in (("qk", qk), ("ov", ov)):
        for side, name in subspace.SIDES[kind].items():
            other = "column" if side == "row" else "row"
            assert subspace.distance(changed[name], whole, side) > 0.5
            assert subspace.distance(changed[name], whole, other) < 1e-12
    basis = np.linalg.qr(W_K)[0]
    M_inf = RNG.normal(size=(16, 16))
    wanted = np.sqrt(1 - np.linalg.norm(M_inf @ basis) ** 2 / np.linalg.norm(M_inf) ** 2)
    assert subspace.distance(qk, M_inf) == pytest.approx(wanted, rel=1e-12)


def test_random_spaces_are_at_the_level_of_chance():
    A, B = jax.random.normal(jax.random.key(0), (2, 400, 8, 32))
    squares = jax.vmap(subspace.distance)(A, B) ** 2
    assert np.sqrt(np.mean(squares)) == pytest.approx(0.866, abs=5e-3)  # sampling error of 400 draws
    assert subspace.chance(8, 32) == pytest.approx(0.8660254, abs=1e-7)
    chordal = jax.vmap(lambda a, b: subspace.chordal_distance(a, b, 8))(A, B) ** 2
    assert np.sqrt(np.mean(chordal)) == pytest.approx(0.866, abs=5e-3)


def test_a_matrix_of_full_rank_spans_everything_and_is_refused_but_by_maps():
    M, M_inf = RNG.normal(size=(2, 12, 12))
    kernel = jax.jit(lambda M: subspace.distance(M, M_inf, rcond=0.0))
    assert kernel(M) == pytest.approx(0, abs=1e-12)
    assert subspace.spans_all(M) and not subspace.spans_all(M[:5]) and subspace.spans_all(M[:5], "column")
    with pytest.raises(
        ic.BadArgument, match="Argument `M` must leave a direction of its row space out, but spans all 12"
    ):
        subspace.distance(M, M_inf)
    assert 0 < subspace.distance(M, M_inf, rank=4) < 1


def test_heads_are_refused_once_their_sum_spans_everything():
    W_V, W_O = RNG.normal(size=(4, 12, 3)), RNG.normal(size=(4, 3, 12))
    assert 0 < subspace.distance(spectra.ov(W_V[0], W_O[0]), LATE[:12, :12]) < 1
    with pytest.raises(ic.BadArgument, match="take the matrix of one head"):
        subspace.distance(np.einsum("hdr,hre->de", W_V, W_O), LATE[:12, :12])


def test_noise_of_full_rank_hides_the_distance_unless_the_rank_is_cut():
    clean = float(subspace.distance(LOW, LATE))
    noisy = LOW + 1e-4 * RNG.normal(size=(32, 32))
    kernel = jax.jit(subspace.distance, static_argnames=("side", "rank"))
    assert clean == pytest.approx(0.83, abs=0.03)
    assert kernel(noisy, LATE, rcond=0.0) < 1e-9  # rounding of a condition number of 1e7
    assert kernel(noisy, LATE, rcond=1e-6) < 0.5  # 1e-6 leaves part of the noise out, so not 0
    assert subspace.distance(noisy, LATE, rcond=1e-2) == pytest.approx(clean, abs=1e-3)
    assert subspace.distance(noisy, LATE, rank=8) == pytest.approx(clean, abs=1e-3)


def test_the_ridge_form_is_its_formula_and_tends_to_the_projector():
    lam = 0.3
    R = LATE @ (np.eye(32) - LOW.T @ np.linalg.inv(LOW @ LOW.T + lam * np.eye(32)) @ LOW)
    wanted = np.linalg.norm(R) / np.linalg.norm(LATE)
    assert subspace.ridge_distance(LOW, LATE, lam) == pytest.approx(wanted, rel=1e-10)
    assert subspace.ridge_distance(LOW.T, LATE.T, lam, "column") == pytest.approx(wanted, rel=1e-10)
    assert subspace.ridge_distance(LOW, LATE, 1e-9) == pytest.approx(float(subspace.distance(LOW, LATE)), abs=1e-8)


def test_the_ridge_form_of_commuting_modes_is_that_of_their_matrices():
    U = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    m, m_inf = RNG.uniform(0.1, 2, size=(2, 5))
    whole = subspace.ridge_distance(U @ np.diag(m) @ U.T, U @ np.diag(m_inf) @ U.T, 0.2)
    assert subspace.ridge_distance_of_modes(m, m_inf, 0.2) == pytest.approx(float(whole), rel=1e-12)


def test_chordal_distance_is_the_sine_of_the_angle_between_two_lines():
    angle = 0.7
    line, turned = np.array([[1.0, 0.0, 0.0]]), 5 * np.array([[np.cos(angle), np.sin(angle), 0.0]])
    assert subspace.chordal_distance(line, turned, 1) == pytest.approx(np.sin(angle), rel=1e-12)
    assert subspace.chordal_distance(LOW, 3 * LOW, 8) == pytest.approx(0, abs=1e-7)  # root of rounding


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: subspace.distance(LOW, LATE, "left"), "Argument `side` must be one of column, row, but is 'left'"),
        (lambda: subspace.distance(LOW, LATE[:, :9]), "Argument `M_inf` must have 32 entries on its row side"),
        (lambda: subspace.distance(LOW, LATE, rank=33), "Argument `rank` must be at most 32, but is 33"),
        (lambda: subspace.distance(LOW, 0 * LATE), "Argument `M_inf` must have a singular value above 0"),
        (lambda: subspace.distance(LOW, LATE, norm="nuclear"), "Argument `norm` must be one of"),
        (lambda: subspace.chordal_distance(LOW[:3], LATE, 4), "Argument `r` must be at most 3, but is 4"),
    ],
)
def test_bad_arguments_are_one_sentence(call, sentence):
    with pytest.raises(ic.BadArgument, match=sentence):
        call()


def test_distances_map_over_heads_and_compile_once():
    import chex

    chex.clear_trace_counter()
    mapped = jax.jit(jax.vmap(chex.assert_max_traces(lambda M, M_inf: subspace.distance(M, M_inf), n=1)))
    A, B = jnp.stack([LOW, LATE]), jnp.stack([LATE, LOW])
    found = [mapped(A, B), mapped(2 * A, B)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10)
    np.testing.assert_allclose(found[0][0], subspace.distance(LOW, LATE), rtol=1e-10)
