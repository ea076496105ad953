import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import icldyn as ic
from icldyn.theory import logistic, null_blocks

S3 = np.array([1.0, 0.5, 0.2])


def decoupled(s, N, w):
    return dict(zip("pq", logistic.flow(w["p"], w["q"], s, N), strict=True))


def coupled(s, N, w):
    return dict(zip("pq", null_blocks.modes_flow(w["p"], w["q"], s, N), strict=True))


def solve(field, start, t, N):
    w = {"p": np.full(3, start[0]), "q": np.full(3, start[1])}
    return ic.flow(Partial(field, S3, float(N)), w, t)


def test_the_closed_form_solves_the_papers_equations():
    t = np.linspace(0, 250, 40)
    run = solve(decoupled, (1e-3, 1e-3), t, 10)
    a = logistic.strength(jnp.asarray(t), jnp.full(3, 1e-6), S3, 10)
    np.testing.assert_allclose(run["p"] * run["q"], a, rtol=2e-6)  # rtol 1e-8 over a growth of six decades


def test_the_closed_form_is_the_limit_of_the_exact_flow_as_N_grows():
    t = np.linspace(0, 150, 40)
    a = np.asarray(logistic.strength(jnp.asarray(t), jnp.full(3, 0.01), S3, 1e7))
    run = solve(coupled, (0.1, 0.1), t, 1e7)
    np.testing.assert_allclose(run["p"] * run["q"], a, atol=2e-5)  # differs by O(1/N) times the growth factor


def test_the_error_of_the_closed_form_falls_as_one_over_N():
    t = np.linspace(0, 150, 100)
    gaps = []
    for N in (1000, 2000, 4000):
        run = solve(coupled, (0.1, 0.1), t, N)
        gaps.append(np.abs(run["p"] * run["q"] - logistic.strength(jnp.asarray(t), jnp.full(3, 0.01), S3, N)).max())
    orders = np.log2(np.array(gaps[:-1]) / gaps[1:])
    np.testing.assert_allclose(orders, 1, atol=0.05)


def test_half_the_final_strength_is_reached_at_the_escape_time_of_small_starts():
    a0 = jnp.full(3, 1e-9)
    times = logistic.escape_time(S3, 12, a0)
    a = jnp.stack([logistic.strength(times, a0, S3, 12)[k, k] for k in range(3)])
    np.testing.assert_allclose(a, logistic.final_strength(S3, 12) / 2, rtol=1e-6)
    np.testing.assert_allclose(times / logistic.escape_logarithm(S3, 12, a0), logistic.time_scale(S3) / 2, rtol=1e-12)


def test_each_mode_conserves_p2_minus_q2():
    run = solve(decoupled, (0.5, 0.1), np.linspace(0, 100, 20), 10)
    kept = logistic.conserved(run["p"], run["q"])
    np.testing.assert_allclose(kept, np.broadcast_to(kept[0], kept.shape), atol=1e-7)
    np.testing.assert_allclose(run["p"][-1] * run["q"][-1], logistic.final_strength(S3, 10), rtol=0.03)


def test_final_strength_is_the_inverse_of_gamma_and_tends_to_the_inverse_of_sigma():
    gamma = (1 + 1 / 10) * S3 + S3.sum() / 10
    np.testing.assert_allclose(logistic.final_strength(S3, 10), 1 / gamma, rtol=1e-14)
    np.testing.assert_allclose(logistic.final_strength(S3, 1e12), 1 / S3, rtol=1e-9)


def test_the_closed_forms_loss_is_the_exact_loss_where_a_single_mode_leaves_nothing_to_couple():
    # with D = 1 the coupling terms are the mode's own, and the two losses are one
    s, p = jnp.array([0.7]), jnp.array([0.8])
    np.testing.assert_allclose(logistic.loss(p * p, s, 6), null_blocks.modes_loss(p, p, s, 6), rtol=1e-14)
    # and in general the drive of the flow is minus its derivative along p
    a = jnp.array([0.3, 0.4, 0.9])
    dp, _ = logistic.flow(jnp.sqrt(a), jnp.sqrt(a), S3, 6)
    h = 1e-6
    slope = [(logistic.loss(a + h * e, S3, 6) - logistic.loss(a - h * e, S3, 6)) / (2 * h) for e in jnp.eye(3)]
    np.testing.assert_allclose(dp, -jnp.sqrt(a) * jnp.stack(slope), rtol=1e-7)
