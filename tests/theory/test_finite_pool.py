import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import icldyn as ic
from icldyn.objectives.ridge import newton, ridge_path, solve_positive
from icldyn.studies import lu2025_asymptotics as study
from icldyn.theory import finite_pool

RHO, L = 0.3, 4  # a short context and much noise, so that every term of the moments counts


def contexts(rng, w, l=L, rho=RHO):
    """v (n, d+1), queries and their labels, from l sampled pairs for each task."""
    n, d = w.shape
    x = rng.normal(size=(n, l, d)) / np.sqrt(d)
    y = np.einsum("nld,nd->nl", x, w) + np.sqrt(rho) * rng.normal(size=(n, l))
    v = np.concatenate([d / l * np.einsum("nl,nld->nd", y, x), (y**2).mean(1)[:, None]], axis=1)
    x_q = rng.normal(size=(n, d)) / np.sqrt(d)
    return v, x_q, (x_q * w).sum(1) + np.sqrt(rho) * rng.normal(size=n)


def drawn_statistics(rng, w, l=L, rho=RHO):
    n, d = w.shape
    chi, xi, g = np.sqrt(rng.chisquare(l, size=n)), rng.normal(size=n), rng.normal(size=(n, d))
    return np.asarray(finite_pool.context_statistics(*map(jnp.asarray, (w, chi, xi, g)), l, rho))


def z_scores(samples, expected):
    """Of the mean of samples (n, ...), entry by entry."""
    return (samples.mean(0) - expected) / (samples.std(0) / np.sqrt(len(samples)))


def pool_and_tasks(rng, n, k=3, d=3):
    pool = finite_pool.sphere(rng, k, d)
    return pool, pool[rng.integers(k, size=n)]


def test_the_moments_are_those_of_sampled_contexts():
    rng = np.random.default_rng(0)
    pool, w = pool_and_tasks(rng, 200_000)
    A, E = finite_pool.context_moments(pool.mean(0), pool.T @ pool / 3, L, RHO)
    v, _, _ = contexts(rng, w)
    # 28 numbers, of which the largest z-score is below 4.5 with probability .9998
    assert np.abs(z_scores(v[:, :, None] * w[:, None, :], A)).max() < 4.5
    assert np.abs(z_scores(v[:, :, None] * v[:, None, :], E)).max() < 4.5


def test_the_error_of_any_gamma_is_that_of_sampled_prompts():
    rng = np.random.default_rng(1)
    pool, w = pool_and_tasks(rng, 200_000)
    Gamma = rng.normal(size=(3, 4))
    v, x_q, y_q = contexts(rng, w)
    squares = (y_q - np.einsum("ndk,dk->n", x_q[:, :, None] * v[:, None, :], Gamma)) ** 2
    exact = finite_pool.error(Gamma, *finite_pool.context_moments(pool.mean(0), pool.T @ pool / 3, L, RHO), RHO)
    assert abs(z_scores(squares, float(exact))) < 4


def test_statistics_drawn_without_pairs_have_the_law_of_sampled_contexts():
    rng = np.random.default_rng(2)
    w = np.broadcast_to(np.sqrt([3.0, 0, 0]), (200_000, 3))
    sampled, drawn = contexts(rng, w, rho=1.0)[0], drawn_statistics(rng, w, rho=1.0)
    for power in (1, 2, 3):  # all monomials of degree up to 3: the label's square and the vector are not independent
        a, b = (
            np.stack([v[:, i] * v[:, j] ** (power - 1) for i in range(4) for j in range(4)], 1)
            for v in (sampled, drawn)
        )
        apart = (a.mean(0) - b.mean(0)) / np.sqrt((a.var(0) + b.var(0)) / len(w))
        assert np.abs(apart).max() < 4.5  # 16 numbers each


@pytest.mark.parametrize("ratios", study.TABLE)
def test_closed_forms_give_the_table_and_the_self_consistent_equations_give_the_closed_forms(ratios):
    closed = finite_pool.ridgeless_errors(*ratios)
    np.testing.assert_allclose(closed, study.TABLE[ratios], atol=1e-4)  # four digits are tabled
    np.testing.assert_allclose(finite_pool.ridge_errors(*ratios, 0.0), closed, rtol=1e-10)
    near = finite_pool.ridge_errors(*ratios, 1e-7)  # and they are continuous there: away from tau = 1 linear in lam
    np.testing.assert_allclose(near, closed, rtol=1e-5)


@pytest.mark.parametrize("tau", [0.6, 1.0, 3.0])
def test_the_finite_equivalent_tends_to_the_limit_as_one_over_d(tau):
    rng, gaps = np.random.default_rng(3), []
    for d in (60, 240):
        pool = finite_pool.sphere(rng, 2 * d, d)
        moments = pool.mean(0), pool.T @ pool / len(pool)
        found = finite_pool.pool_errors(*moments, 5 * d, round(tau * d**2), 0.1, [0.05])[:, 0]
        gaps.append(np.abs(found / finite_pool.ridge_errors(5, 2, tau, 0.1, 0.05) - 1).max())
    assert gaps[0] < 5 / 60 and gaps[1] < gaps[0] / 2.5  # a quarter, were the pool not random itself


def test_with_endless_data_the_limit_is_the_population_ridge_over_a_large_pool():
    d, alpha, kappa, rho, lam = 500, 3.0, 0.7, 0.2, 0.3
    rng = np.random.default_rng(4)
    pool = finite_pool.sphere(rng, round(kappa * d), d)
    R, x = pool.T @ pool / len(pool), (1 + rho) / alpha
    Gamma = R @ np.linalg.inv(R + (x + lam) * np.eye(d))
    for found, A, E in zip(
        finite_pool.ridge_errors(alpha, kappa, 1e9, rho, lam),
        (np.eye(d), R),
        ((1 + x) * np.eye(d), R + x * np.eye(d)),
        strict=True,
    ):
        wanted = 1 + rho - 2 / d * np.trace(Gamma @ A) + np.trace(Gamma @ E @ Gamma.T) / d
        assert found == pytest.approx(wanted, rel=5e-3)  # traces of a random matrix of 500 rows: O(1/d)


def path_of(n, k=16, rho=0.1, first=0.1):
    return ridge_path(8, k=k, l=40, n=n, rho=rho, first=first, ratio=0.1, most=16)


@jax.jit
def start(path):
    """The params of 32 seeds; compiled once for all tests."""
    return jax.vmap(path.start, (0, None))(jax.random.split(jax.random.key(0), 32), jnp.ones(()))


@jax.jit
def stepped(path, params):
    """The params of every seed after one step of Newton."""

    def one(params):
        updates, _ = newton(jnp.ones(())).update(jax.grad(path.loss)(params), optax.EmptyState(), params)
        return jax.tree.map(jnp.add, params, updates)

    return jax.vmap(one)(params)


@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0])
def test_seeds_follow_the_finite_equivalent(tau):
    path = path_of(round(tau * 64))
    solved = stepped(path, start(path))
    seeds = np.array([jax.vmap(path.icl)(solved), jax.vmap(path.idg)(solved)])
    pools = zip(np.asarray(solved["mu"]), np.asarray(solved["R"]), strict=True)
    theory = [finite_pool.pool_errors(mu, R, 40, round(tau * 64), 0.1, 0.1)[:, 0] for mu, R in pools]
    # leverages fluctuate by 2/d, relatively, which the equivalent neglects: 25% at d = 8
    assert np.abs(seeds.mean(1) / np.mean(theory, 0) - 1).max() < 2 / 8


def test_a_step_of_newton_ends_where_the_gradient_vanishes_and_lowers_the_ridge():
    path = path_of(60)
    params = start(path)
    after = stepped(path, params)
    slopes = jax.vmap(jax.grad(path.loss))(after | {"lam": params["lam"]})["Gamma"]
    assert np.abs(slopes).max() < 1e-12
    np.testing.assert_allclose(after["lam"], 0.01)
    for name in ("C", "b", "yy", "mu", "R", "ratio"):
        np.testing.assert_array_equal(after[name], params[name])


def test_the_data_sets_have_the_expected_statistics():
    data = start(path_of(4000, k=2, rho=RHO))
    pools = zip(np.asarray(data["mu"]), np.asarray(data["R"]), strict=True)
    A, E = (np.stack(m) for m in zip(*(finite_pool.context_moments(mu, R, 40, RHO) for mu, R in pools), strict=True))
    C = np.asarray(data["C"]).reshape(32, 8, 9, 8, 9)
    # the largest of 5184 entries: 4.5 deviations, each below 10 / sqrt(32 x 4000)
    np.testing.assert_allclose(C.mean(0), np.einsum("xy,spq->xpyq", np.eye(8), E) / 32, atol=0.13)
    np.testing.assert_allclose(data["b"].reshape(32, 8, 9).mean(0), A.mean(0).T, atol=0.04)
    assert float(data["yy"].mean()) == pytest.approx(1 + RHO, rel=0.03)


def test_every_context_counts_once():
    few, more = (start(path_of(n))["C"][0] for n in (300, 301))  # within the second chunk
    assert np.linalg.matrix_rank(301 * more - 300 * few, tol=1e-9) == 1


def test_a_small_ridge_gives_the_solution_of_least_norm_when_contexts_are_few():
    path = path_of(40, first=1e-7)
    params = start(path)
    least = np.linalg.pinv(params["C"][0], rcond=1e-9) @ params["b"][0]
    gamma = stepped(path, params)["Gamma"][0].ravel()
    np.testing.assert_allclose(gamma, least, atol=1e-4)  # lam over the least eigenvalue, .01, and round-off over lam


def test_elimination_in_blocks_solves():
    rng = np.random.default_rng(5)
    H = rng.normal(size=(12, 6))
    H, g = H @ H.T + 0.01 * np.eye(12), rng.normal(size=12)
    np.testing.assert_allclose(solve_positive(jnp.asarray(H), jnp.asarray(g), 3), np.linalg.solve(H, g), rtol=1e-9)


def test_the_posterior_mean_over_one_task_is_that_task():
    rng = np.random.default_rng(6)
    pool = finite_pool.sphere(rng, 1, 5)
    icl, idg = finite_pool.memoriser_errors(rng, pool, 4, 0.1, 20_000)
    assert idg == pytest.approx(0.1)
    assert icl == pytest.approx(2.1, abs=0.03)  # |w - w'|^2 / d = 2 - 2 cos, of deviation 2 / sqrt(5 * 20,000)


BAD = {
    "d": 1,
    "seeds": 0,
    "alpha": -1.0,
    "rho": 0.0,
    "kappas": (),
    "taus": (1.0, 0.5),
    "sizes": (1,),
    "task_kappas": (float("nan"),),
    "path_taus": (1e-9,),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused_by_name(name):
    import dataclasses

    with pytest.raises(ic.BadArgument, match=name):
        study.check(dataclasses.replace(study.SCALES["smoke"], **{name: BAD[name]}))
