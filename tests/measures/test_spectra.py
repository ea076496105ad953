import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.measures import spectra


def entropy_rank(M, k=0):
    """Written out in numpy, from the eigenvalues of M M^T."""
    s = np.sort(np.sqrt(np.maximum(np.linalg.eigvalsh(M @ M.T), 0)))[::-1][k:]
    p = s[s > 0] / s.sum()
    return np.exp(-(p * np.log(p)).sum())


def test_the_identity_has_all_its_directions_and_a_product_of_vectors_one():
    assert spectra.effective_rank(jnp.eye(7)) == pytest.approx(7, abs=1e-6)
    u, v = np.random.default_rng(0).normal(size=(2, 9))
    assert spectra.effective_rank(np.outer(u, v)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("D", "R", "wanted"), [(32, 8, 7.45), (64, 16, 14.8), (128, 32, 29.8), (512, 64, 61.8)])
def test_gaussian_factors_have_almost_as_many_directions_as_a_head_is_wide(D, R, wanted):
    W_Q, W_K = jax.random.normal(jax.random.key(0), (2, 5, D, R))
    found = jax.vmap(lambda Q, K: spectra.effective_rank_of(spectra.qk(Q, K).s))(W_Q, W_K)
    assert np.mean(found) == pytest.approx(wanted, rel=0.01)  # mean of five draws here and there


def test_marginalised_ranks_are_those_of_the_singular_values_left():
    M = np.random.default_rng(1).normal(size=(12, 12))  # full rank: its eigenvalues are far from rounding
    for k in (0, 1, 2, 5):
        assert spectra.effective_rank(M, k) == pytest.approx(entropy_rank(M, k), rel=1e-9)
    assert spectra.effective_rank(M, 11) == pytest.approx(1, abs=1e-12)


def test_ranks_below_rounding_and_of_nothing_are_masked_and_others_are_not():
    M = np.diag([1.0, 0.5, 1e-7, 1e-9])
    ranks = [float(spectra.effective_rank(M, k)) for k in range(4)]
    assert np.isfinite(ranks[:2]).all() and np.isnan(ranks[2:]).all()
    assert np.isfinite(spectra.effective_rank(M, 2, rcond=1e-8))
    assert np.isnan(spectra.effective_rank(np.zeros((3, 3))))


def test_factors_give_the_spectrum_of_their_product_without_its_zeros():
    rng = np.random.default_rng(2)
    W_Q, W_K, W_V, W_O = rng.normal(size=(4, 32, 8))
    for found, M in ((spectra.qk(W_Q, W_K), W_Q @ W_K.T), (spectra.ov(W_V, W_O.T), W_V @ W_O.T)):
        np.testing.assert_allclose(found.s, np.linalg.svd(M, compute_uv=False)[:8], rtol=1e-12)
        np.testing.assert_allclose(found.U * found.s[None] @ found.Vh, M, atol=1e-12)
        assert spectra.effective_rank_of(found.s, 2) == pytest.approx(entropy_rank(M, 2), rel=1e-6)  # M M^T squares
    wide = spectra.qk(W_Q[:4], W_K[:5])  # heads wider than the model
    np.testing.assert_allclose(wide.s, np.linalg.svd(W_Q[:4] @ W_K[:5].T, compute_uv=False), rtol=1e-12)


def test_ranks_map_over_heads_and_compile():
    heads = jax.random.normal(jax.random.key(3), (2, 3, 6, 6))
    found = jax.jit(jax.vmap(jax.vmap(spectra.effective_rank)))(heads)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found[1, 2], entropy_rank(np.asarray(heads[1, 2])), rtol=1e-9)


def test_a_map_of_maps_and_its_gradient_are_those_of_each_matrix():
    stack = jax.random.normal(jax.random.key(4), (2, 3, 5, 4))
    grad = jax.grad(lambda M: spectra.effective_rank(M, 1))
    found = jax.jit(jax.vmap(jax.vmap(grad)))(stack)
    M, step = np.asarray(stack[1, 2]), np.zeros((5, 4))
    step[2, 3] = 1e-6
    slope = (entropy_rank((M + step).T, 1) - entropy_rank((M - step).T, 1)) / 2e-6  # M^T M has no zeros
    assert found[1, 2, 2, 3] == pytest.approx(slope, rel=1e-5)
    program = str(jax.make_jaxpr(jax.vmap(spectra.svd))(stack[0]))
    assert "scan" in program and "platform_index" in program  # a loop on the CPU


def test_more_directions_left_out_than_there_are_is_refused():
    with pytest.raises(ic.BadArgument, match="Argument `k` must be at most 2, but is 3"):
        spectra.effective_rank(np.eye(3), 3)


def test_known_matrices_and_those_within_a_program_are_factorised_alike():
    heads = jax.random.normal(jax.random.key(3), (2, 3, 7, 4))
    known = jax.vmap(jax.vmap(spectra.qk))(heads, heads[::-1])
    within = jax.jit(jax.vmap(jax.vmap(spectra.qk)))(heads, heads[::-1])
    for found in (known, within):
        product = jnp.einsum("abir,abr,abrj->abij", found.U, found.s, found.Vh)
        np.testing.assert_allclose(product, jnp.einsum("abir,abjr->abij", heads, heads[::-1]), atol=1e-12)  # round-off
    np.testing.assert_allclose(known.s, within.s, rtol=1e-12)  # round-off
