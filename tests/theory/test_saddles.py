import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.stats import kstest

import icldyn as ic
from icldyn.theory import mixtures, saddles
from icldyn.theory import moments as m
from icldyn.theory.population import population_loss, scalar_population_loss

S4 = np.array([0.4, 0.3, 0.2, 0.1])
N = 31


def test_the_ladder_of_the_notes_comes_out():
    """Constants L1, L2 and T2 of the notes, without the 1/2; they are given to four and six digits."""
    np.testing.assert_allclose(2 * saddles.ladder(S4, N), [1, 0.6406, 0.3774, 0.2098, 0.135995], atol=5e-5)
    assert 2 * saddles.ladder(S4, N)[-1] == pytest.approx(0.135995, abs=5e-7)


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_every_rung_is_the_exact_loss_at_a_saddle_of_the_exact_loss(rho):
    task = ic.linear_regression(N, S4, family="scalar", rho=rho)
    model = ic.separate(4, 4, 1)
    exact = ic.population(task, model)
    root = np.cbrt(1 / np.asarray(saddles.inverse_strength(S4, N, rho)))
    for n, rung in enumerate(saddles.ladder(S4, N, rho)):
        kept = np.where(np.arange(4) < n, root, 0.0)
        params = {"v": jnp.asarray(kept), "K": jnp.diag(kept)[:, None], "Q": jnp.diag(kept)[:, None]}
        assert exact.loss(params) == pytest.approx(rung, rel=1e-12)
        grads = jax.grad(exact.loss)(params)
        assert max(np.abs(g).max() for g in grads.values()) < 1e-14


def flow_of(model, start, t, s):
    """The answer matrix A along the exact gradient flow of the full weights."""
    exact = ic.population(ic.linear_regression(N, s, family="scalar"), model)
    return ic.flow(ic.gradient_flow(exact), start, t, measures={"A": model.matrix}, rtol=1e-10)["A"]


TIMES = 2 * np.array([5.0, 10.0, 15.0, 20.0, 30.0])
# Constants T4, T4b and T4c of the notes: their times are those of the loss without the 1/2, so ours are twice theirs.
T4 = [0.0024520, 0.0585167, 0.8607176, 1.9508818, 2.0616608]  # Euler at dt = 1e-3, so good to 1e-3
T4B = [0.00121785, 0.0147781, 0.171792, 1.343529, 3.408531]
T4C = [0.00168662, 0.00317671, 0.0211700, 2.246373]


def test_merged_one_mode_is_the_logistic_of_the_notes():
    t = 2 * np.array([5.001, 10.001, 15.001, 20.001, 30.001])
    a = saddles.merged_one_mode(jnp.asarray(t), 1e-4, S4, 20, rho=0.3)[:, 0]  # where Gamma is their g = .485
    np.testing.assert_allclose(a, T4, rtol=1e-3)


def test_merged_one_mode_is_exact_for_one_dimension():
    def field(_, w):
        G = ic.one_layer.descent(jnp.asarray([[w[0] * w[1]]]), jnp.asarray([[0.4]]), N)[0, 0]
        return np.array([w[1], w[0]]) * float(G)

    v, u = solve_ivp(field, (0, 60), [1e-2, 1e-2], t_eval=TIMES, rtol=1e-9, atol=1e-12).y
    closed = saddles.merged_one_mode(jnp.asarray(TIMES), 1e-4, np.array([0.4]), N)
    np.testing.assert_allclose(closed[:, 0], v * u, rtol=1e-6)


def test_merged_one_mode_fails_for_several_dimensions_as_the_notes_say():
    """From mode 1 alone (their mode 4): diagonal (.166, .629, 1.244, 1.754) at t = 15 of theirs; the formula gives .891."""
    start = {"v": np.array([1e-2, 0]), "U": np.stack([np.diag([1e-2, 0, 0, 0]), np.zeros((4, 4))])}
    A = flow_of(ic.merged(4, 2), start, TIMES, S4)[2]
    np.testing.assert_allclose(np.diag(A), [1.754, 1.244, 0.629, 0.166], atol=6e-4)
    assert saddles.merged_one_mode(jnp.asarray(TIMES), 1e-4, S4, N)[2, 0] == pytest.approx(0.891, abs=1e-3)


def test_merged_white_is_the_exact_flow_of_several_heads_and_the_constant_of_the_notes():
    D, H = 4, 2
    closed = saddles.merged_white(jnp.asarray(TIMES), 1e-4, 0.25, N, D)
    np.testing.assert_allclose(closed, T4B, atol=1e-6)  # the precision asked for
    share = np.array([0.6, -0.8])  # unit length: heads of either sign
    u = (1e-4 / D**0.5) ** 0.5
    start = {"v": D**0.5 * u * share, "U": u * share[:, None, None] * np.eye(D)}
    A = flow_of(ic.merged(D, H), start, TIMES, np.full(D, 0.25))
    np.testing.assert_allclose(A, np.asarray(closed)[:, None, None] * np.eye(D), atol=1e-6)


def test_heads_that_share_a_direction_follow_one_head_of_modes():
    share, u, v = np.array([0.6, 0.8]), np.array([0.3, 0.2, 0.5, 0.1]), 0.4
    start = {"v": v * share, "U": share[:, None, None] * np.diag(u)}
    A = flow_of(ic.merged(4, 2), start, TIMES, S4)

    def field(_, w):
        dv, du = saddles.merged_modes(w[0], w[1:], S4, N)
        return np.concatenate([[dv], du])

    w = solve_ivp(field, (0, 60), [v, *u], t_eval=TIMES, rtol=1e-10, atol=1e-12).y
    np.testing.assert_allclose(A, (w[0] * w[1:]).T[:, :, None] * np.eye(4), atol=1e-7)
    np.testing.assert_allclose(w[0] ** 2 - (w[1:] ** 2).sum(0), v**2 - u @ u, atol=1e-8)


def test_small_merged_weights_grow_by_their_unstable_amplitude_alone():
    rng = np.random.default_rng(1)
    v, U = 1e-7 * rng.normal(size=2), 1e-7 * rng.normal(size=(2, 4, 4))
    S, t, r = np.diag(S4), TIMES[-1], saddles.growth_rate(S4)
    A = flow_of(ic.merged(4, 2), {"v": v, "U": U}, TIMES, S4)[-1]
    z = saddles.unstable_amplitude(v, U, S)
    wanted = (z @ z) / 2 * np.exp(2 * r * t) * S @ S / r
    np.testing.assert_allclose(
        A, wanted, atol=2e-4 * np.abs(wanted).max()
    )  # what does not grow is e^{-rt} = 1e-5 of it


def test_escape_spread_is_that_of_gaussian_heads():
    z2 = (np.random.default_rng(2).normal(size=(400_000, 8)) ** 2).sum(1)
    early = np.log(z2) / (2 * saddles.growth_rate(S4))
    mean, deviation = saddles.escape_spread(S4, 8)
    assert abs(early.mean() - mean) < 4 * deviation / 400_000**0.5
    assert early.std() == pytest.approx(deviation, rel=1e-2)  # sampling error of 400k draws is 2e-3


def test_the_escape_law_is_that_of_drawn_times():
    rng = np.random.default_rng(7)
    early = np.log(rng.chisquare(8, 20_000)) / (2 * saddles.growth_rate(S4)) - saddles.escape_spread(S4, 8)[0]
    times = 70 - early + 2 + 1.5 * rng.normal(size=early.size)
    assert kstest(times, lambda t: saddles.escape_law(t, 70, S4, 8, 2, 1.5)).pvalue > 1e-3
    assert kstest(times - 2, lambda t: saddles.escape_law(t, 70, S4, 8, 2, 1.5)).pvalue < 1e-9


def test_sgd_multiplies_the_unstable_amplitude_as_said():
    """z -> z (1 + lr (r + noise)) for 500 steps: its own mean and spread of log z, by direct simulation."""
    rng, lr, r, B, n = np.random.default_rng(8), 0.05, saddles.growth_rate(S4), 64, 500
    noise = (saddles.noise_along(S4, N) / B) ** 0.5
    log_z = sum(np.log1p(lr * (r + noise * rng.normal(size=20_000))) for _ in range(n))
    delay, spread = saddles.sgd_delay(lr, lr * n, S4, N, B)
    assert (lr * n - log_z.mean() / r) == pytest.approx(delay, rel=5e-2)  # 20k draws: 3%; the next order in lr: 1%
    assert log_z.std() / r == pytest.approx(spread, rel=3e-2)


def test_noise_along_is_the_variance_over_sampled_prompts():
    rng, P, r = np.random.default_rng(3), 400_000, saddles.growth_rate(S4)
    directions = {None: S4**2 / r, (0, 1, 0, 0): np.array([0, 1, 0, 0])}
    g = []
    for _ in range(10):
        w, x_q = rng.normal(size=(2, P // 10, 4)) * np.array([np.ones(4), S4**0.5])[:, None]
        x = rng.normal(size=(P // 10, 5, 4)) * S4**0.5  # N = 5, where the terms in 1/N count
        h = np.einsum("bna,bnc,bc->ba", x, x, w) / 5
        g.append([(w * x_q).sum(1) * (h * T * x_q).sum(1) for T in directions.values()])
    for (along, T), one in zip(directions.items(), np.concatenate(g, axis=1), strict=True):
        mean = S4**2 @ T
        assert abs(oracles.z_score(one, mean)) < 4
        assert abs(oracles.z_score((one - mean) ** 2, saddles.noise_along(S4, 5, along))) < 4


def test_separate_mode_is_the_exact_flow_of_one_head_and_the_constant_of_the_notes():
    t = 2 * np.array([5.0, 10.0, 20.0, 40.0])
    start = {"v": np.array([0.1]), "K": 0.1 * np.eye(1, 4)[None], "Q": 0.1 * np.eye(1, 4)[None]}
    A = flow_of(ic.separate(4, 1, 1), start, t, S4)
    np.testing.assert_allclose(A[:, 0, 0], T4C, atol=1e-6)  # the precision asked for
    assert np.abs(A[:, 1:, 1:]).max() == 0
    field = ic.flow(lambda w: {"a": saddles.separate_mode(w["a"], S4, N)}, {"a": np.full(4, 1e-3)}, t, rtol=1e-10)
    np.testing.assert_allclose(field["a"][:, 0], T4C, atol=1e-6)


def test_separate_time_is_the_quadrature_of_its_equation():
    a0, Gamma = 1e-3, (1 + 1 / N) * S4 + S4.sum() / N
    for a in (0.5, 1.9):
        closed = saddles.separate_time(a, a0, S4, N)
        for s, g, time in zip(S4, Gamma, closed, strict=True):
            one = quad(lambda x, s=s, g=g: 1 / (3 * s**2 * x ** (4 / 3) * (1 - g * x)), a0, a, epsrel=1e-10)[0]
            assert time == pytest.approx(one, rel=1e-8)


def test_sgd_delays_a_head_on_one_mode_as_said():
    """v -> v + lr v^2 g (1 - Gamma v^3) with noise in g until a = v^3 is half way: mean and spread of the time."""
    rng, lr, batch, k, a0 = np.random.default_rng(9), 0.1, 64, 1, np.full(4, 1e-3)
    Gamma = np.asarray(saddles.inverse_strength(S4, N))[k]
    noise = (saddles.noise_along(S4, N, np.eye(4)[k]) / batch) ** 0.5
    closed = np.asarray(saddles.separate_time(0.5 / Gamma, a0, S4, N))
    v, found, step = np.full(4000, 0.1), np.full(4000, np.nan), 0
    while np.isnan(found).any():
        rest = 1 - Gamma * v**3
        found = np.where(np.isnan(found) & (rest < 0.5), lr * step, found)
        v, step = v + lr * v**2 * (S4[k] ** 2 + noise * rng.normal(size=v.size)) * rest, step + 1
    delay, spread = saddles.separate_delay(lr, closed, a0, S4, N, batch)
    # times are multiples of lr, rounded up; a logarithm up to a constant of order one is first order; 4,000 draws
    assert found.mean() - closed[k] - lr / 2 == pytest.approx(delay[k], abs=0.2 * delay[k] + 4 * spread[k] / 4000**0.5)
    assert found.std() == pytest.approx(spread[k], rel=0.1)


def test_the_first_of_several_heads_is_the_least_of_as_many_independent_times():
    times = np.random.default_rng(4).weibull(1.5, size=(100_000, 5))
    levels = np.array([0.05, 0.5, 0.95])
    direct = np.quantile(times.min(1), levels)
    np.testing.assert_allclose(saddles.first_of(times[:, 0], 5, levels), direct, rtol=3e-2)  # 100k draws, at level 0.01
    assert kstest(times.min(1), lambda t: 1 - np.exp(-5 * t**1.5)).pvalue > 1e-3


D3 = np.array([0.5, 0.3, 0.2])
W0 = np.array([1.0, -0.5, 2.0])


def kinds(rho=0.2, N=6):
    random = m.gaussian_task_moments(np.diag(D3), np.eye(3)[None, :, None], rho, N)
    return random, m.pool_task_moments(np.diag(D3), W0[None, None], rho, N)


@pytest.mark.parametrize("attends", [True, False])
def test_feature_moments_are_those_of_both_exact_losses(attends):
    rng = np.random.default_rng(5)
    random, fixed = kinds()
    mixed = mixtures.mixture((0.3, 0.7), (fixed, random))
    P, Q = jnp.asarray(rng.normal(size=(1, 4))), jnp.asarray(rng.normal(size=(4, 3)))
    k = np.asarray(ic.heads.fold(jnp.einsum("oa,bk->abk", P, Q))).ravel()
    for tasks in (random, fixed, mixed):
        C, b, yy = mixtures.feature_moments(tasks, attends)
        ours = (yy - 2 * k @ b + k @ C @ k) / 2
        np.testing.assert_allclose(ours, population_loss(P, Q, tasks, attends), rtol=1e-11)
    M = jnp.asarray(rng.normal(size=(4, 4, 3)))  # several heads
    exact = scalar_population_loss(M, jnp.diag(D3), jnp.eye(3), 0.2, 6.0, attends)
    C, b, yy = mixtures.feature_moments(random, attends)
    k = np.asarray(ic.heads.fold(M)).ravel()
    np.testing.assert_allclose((yy - 2 * k @ b + k @ C @ k) / 2, exact, rtol=1e-11)


def test_a_mixture_is_the_law_of_sampled_prompts():
    rng = np.random.default_rng(6)
    random, fixed = kinds()
    tasks = mixtures.mixture((0.3, 0.7), (fixed, random))
    P, Q = rng.normal(size=(1, 4)) / 2, rng.normal(size=(4, 3)) / 2

    def draw(rng, B):
        return np.where(rng.random((B, 1, 1)) < 0.3, W0, rng.normal(size=(B, 1, 3)))

    losses = oracles.prompt_losses(
        rng, P=P, Q=Q, N=6, Sigma=np.diag(D3), rho=0.2, draw_tasks=draw, num=300_000, attends=True
    )
    assert abs(oracles.z_score(losses, population_loss(jnp.asarray(P), jnp.asarray(Q), tasks, True))) < 4
