"""SGLD against the stationary law of its update, and against quadrature where no formula exists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import icldyn as ic
from icldyn.measures.llc import default_nbeta, estimate, quadratic

H = np.array([0.1, 1.0, 3.0, 10.0])
S = np.array([4.0, 2.0, 1.0])
N = 50
S_INF = ((N + 1) * S + S.sum()) / N
FIXED = S_INF**-0.5  # p = q of every mode at the fixed point


def bowl(w, key):
    del key
    return jnp.sum(jnp.asarray(H) * w["w"] ** 2) / 2


def valley(w, key):
    """1/2 sum_a s_a (s_a (p_a q_a)^2 s_a^inf - 2 s_a p_a q_a + 1)."""
    del key
    a = w["p"] * w["q"]
    return jnp.sum(S * (S * a**2 * S_INF - 2 * S * a + 1)) / 2


def by_quadrature(at, nbeta, gamma, points=200_001):
    """nbeta (E[l] - l(w*)) of `valley`: for given p it is a Gaussian in q, so one integral is exact and one is a sum."""
    total = 0.0
    for s, s_inf, c in zip(S, S_INF, at, strict=True):
        p = np.linspace(c - 12 / gamma**0.5, c + 12 / gamma**0.5, points)
        # l = A q^2 / 2 - B q + s/2; exponent -(nbeta A + gamma) q^2 / 2 + (nbeta B + gamma c) q - gamma (p - c)^2 / 2 + ...
        A, B = s**2 * s_inf * p**2, s**2 * p
        precision, drive = nbeta * A + gamma, nbeta * B + gamma * c
        mean = drive / precision
        log_weight = drive**2 / precision / 2 - np.log(precision) / 2 - gamma * (p - c) ** 2 / 2
        weight = np.exp(log_weight - log_weight.max())
        inner = A * (mean**2 + 1 / precision) / 2 - B * mean
        total += np.sum(weight * inner) / np.sum(weight) - (s**2 * s_inf * c**4 / 2 - s**2 * c**2)
    return nbeta * total


@pytest.fixture(scope="module")
def sgld():
    """One program for the valley, at any start, pull and temperature."""

    def run(at, nbeta, gamma, eps, key):
        start = {"p": at, "q": at}
        return estimate(valley, start, key, nbeta=nbeta, gamma=gamma, eps=eps, chains=8, draws=40_000, burn_in=20_000)

    compiled = jax.jit(run)
    return lambda at, nbeta, gamma, eps, key: compiled(jnp.asarray(at), *map(jnp.float64, (nbeta, gamma, eps)), key)


def test_a_quadratic_loss_has_the_numbers_of_the_stationary_law():
    assert quadratic(H, nbeta=100, gamma=5) == pytest.approx(1.799, abs=5e-4)
    for eps, wanted in ((1e-4, 1.817), (5e-4, 1.897), (1e-3, 2.020)):
        assert quadratic(H, nbeta=100, gamma=5, eps=eps) == pytest.approx(wanted, abs=1e-3)
    assert np.isinf(quadratic(H, nbeta=100, gamma=5, eps=4e-3)) and quadratic(H, nbeta=1e9, gamma=0) == 2


def test_the_stationary_law_is_the_fixed_point_of_the_recursion_of_the_variance():
    nbeta, gamma, eps = 100, 5, 1e-3
    a, v = nbeta * H + gamma, np.zeros(4)
    for _ in range(20_000):
        v = (1 - eps * a / 2) ** 2 * v + eps
    assert quadratic(H, nbeta=nbeta, gamma=gamma, eps=eps) == pytest.approx(nbeta * np.sum(H * v) / 2, rel=1e-9)


def test_sgld_has_the_stationary_law_of_a_quadratic_loss():
    run = Partial(estimate, bowl, {"w": jnp.zeros(4)}, nbeta=100.0, gamma=5.0, chains=8, draws=20_000, burn_in=5000)
    compiled = jax.jit(lambda eps, key: run(key, eps=eps))
    for k, eps in enumerate((1e-4, 5e-4, 1e-3)):
        found = compiled(jnp.float64(eps), jax.random.key(k))
        wanted = quadratic(H, nbeta=100, gamma=5, eps=eps)
        assert abs(found.estimate - wanted) < 3 * found.standard_error, eps
        assert found.standard_error < 0.1 and not found.negative and found.finite
        assert found.losses.shape == (8, 25_000) and (found.losses[:, 0] == 0).all()


@pytest.mark.parametrize(("gamma", "nbeta", "wanted"), [(1, 100, 1.5044), (1, 1000, 1.5004), (0.1, 1000, 1.5003)])
def test_a_valley_counts_half_a_direction_for_every_conserved_quantity(gamma, nbeta, wanted, sgld):
    assert by_quadrature(FIXED, nbeta, gamma) == pytest.approx(wanted, abs=1e-4)
    found = sgld(FIXED, nbeta, gamma, 2e-3 / nbeta, jax.random.key(nbeta))
    assert found.estimate == pytest.approx(wanted, abs=0.15) and found.estimate < 2  # not 3, half of its 6 parameters


@pytest.mark.parametrize(("at", "gamma", "wanted"), [([1e-3] * 3, 1, -322.9), ([FIXED[0], 1e-3, 1e-3], 100, -88.87)])
def test_away_from_minima_it_is_negative_and_says_so(at, gamma, wanted, sgld):
    assert by_quadrature(at, 100, gamma) == pytest.approx(wanted, rel=1e-3)
    found = sgld(at, 100, gamma, 1e-5, jax.random.key(7))
    assert found.estimate == pytest.approx(wanted, rel=1e-2) and found.negative and found.finite


def test_a_step_that_is_too_large_is_flagged():
    found = estimate(bowl, {"w": jnp.ones(4)}, jax.random.key(0), nbeta=100.0, gamma=5.0, eps=1.0, draws=500, burn_in=0)
    assert not found.finite and not np.isfinite(found.estimate)


def test_minibatches_give_the_coefficient_of_their_mean():
    x = np.random.default_rng(0).normal(size=(512, 3))
    x = x / np.sqrt(np.mean(x**2, axis=0))
    moment = x.T @ x / 512

    def minibatch(w, key):
        chosen = jnp.asarray(x)[jax.random.randint(key, (64,), 0, 512)]
        return jnp.mean((chosen @ w) ** 2) / 2

    settings = {"nbeta": 30.0, "gamma": 1.0, "eps": 1e-3, "chains": 16, "draws": 4000, "burn_in": 2000}
    found = estimate(minibatch, jnp.zeros(3), jax.random.key(1), **settings)
    wanted = quadratic(np.linalg.eigvalsh(moment), nbeta=30.0, gamma=1.0, eps=1e-3)
    assert found.init_loss == 0 and abs(found.estimate - wanted) < 4 * found.standard_error
    given = estimate(minibatch, jnp.zeros(3), jax.random.key(1), init_loss=0.1, **settings)
    assert given.estimate == pytest.approx(float(found.estimate) - 3, rel=1e-9)  # nbeta x 0.1


def test_it_maps_over_checkpoints_and_refuses_what_has_no_error():
    starts = jnp.array([[0.0], [2.0]])
    settings = {"nbeta": 10.0, "draws": 20, "burn_in": 0, "chains": 2}
    run = jax.vmap(lambda w, key: estimate(lambda w, key: jnp.sum(w**2), w, key, **settings))
    found = run(starts, jax.random.split(jax.random.key(2), 2))
    assert found.estimate.shape == (2,) and list(found.negative) == [False, True]
    with pytest.raises(ic.BadArgument, match="Argument `chains` must be at least 2, but is 1"):
        estimate(bowl, {"w": jnp.zeros(4)}, jax.random.key(0), nbeta=1.0, chains=1)
    assert default_nbeta(1000) == pytest.approx(1000 / np.log(1000))
