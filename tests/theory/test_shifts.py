import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import random_covariance as random_matrix
from oracles import z_score

import icldyn as ic
from icldyn.studies import zhang2024_trained as study
from icldyn.tasks.random_covariance import random_covariance
from icldyn.theory import one_layer, shifts

PROMPTS = 200_000


def squares(A, x, y, x_q, y_q):
    """1/2 (y_q - yhat)^2 of sampled prompts, x (B, N, D)."""
    h = np.einsum("bn,bnd->bd", y, x) / x.shape[1]
    return (y_q - np.einsum("bd,de,be->b", h, A, x_q)) ** 2 / 2


def test_the_loss_under_shifts_of_inputs_queries_tasks_and_noise_is_that_of_sampled_prompts():
    rng, D, M, rho = np.random.default_rng(0), 3, 4, 0.5
    S, Sq, Sw = (random_matrix(rng, D) for _ in range(3))
    A = rng.normal(size=(D, D))  # commutes with none of them
    roots = (np.linalg.cholesky(C).T for C in (S, Sq, Sw))
    x, x_q, w = (
        rng.normal(size=n) @ r for n, r in zip(((PROMPTS, M, D), (PROMPTS, D), (PROMPTS, D)), roots, strict=True)
    )
    y = np.einsum("bnd,bd->bn", x, w) + np.sqrt(rho) * rng.normal(size=(PROMPTS, M))
    exact = shifts.loss(*map(jnp.asarray, (A, S)), M, *map(jnp.asarray, (Sq, Sw)), rho)
    assert abs(z_score(squares(A, x, y, x_q, (x_q * w).sum(1)), float(exact))) < 4


def test_without_shifts_it_is_the_loss_of_training_and_many_answers_are_judged_at_once():
    rng = np.random.default_rng(1)
    S, A = jnp.asarray(random_matrix(rng, 4)), jnp.asarray(rng.normal(size=(5, 4, 4)))
    one = [one_layer.loss(a, S, 7, rho=0.2) for a in A]
    np.testing.assert_allclose(shifts.loss(A, S, 7, rho=0.2), one, rtol=1e-12)


def sampled_random_covariances(rng, D, N):
    """x, y, x_q, y_q with another diagonal covariance in every prompt, number by number."""
    x = np.sqrt(rng.exponential(size=(PROMPTS, 1, D))) * rng.normal(size=(PROMPTS, N + 1, D))
    y = np.einsum("bnd,bd->bn", x, rng.normal(size=(PROMPTS, D)))
    return x[:, :N], y[:, :N], x[:, N], y[:, N]


def test_the_loss_over_random_covariances_is_that_of_sampled_prompts_and_of_the_one_pair_that_stands_for_them():
    rng, D, N = np.random.default_rng(2), 3, 2
    A = 0.3 * rng.normal(size=(D, D))
    exact = float(shifts.random_covariance_loss(jnp.asarray(A), N))
    assert abs(z_score(squares(A, *sampled_random_covariances(rng, D, N)), exact)) < 4
    x, y, x_q, y_q = map(np.asarray, random_covariance(N, D).sample(jax.random.key(0), PROMPTS))
    assert abs(z_score(squares(A, x, y[:, :, 0], x_q, y_q[:, 0]), exact)) < 4


def test_the_one_pair_has_the_law_of_the_context_and_not_its_mean_square_alone():
    D, N, levels = 3, 2, (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
    x, y, x_q, y_q = sampled_random_covariances(np.random.default_rng(3), D, N)
    p = random_covariance(N, D).sample(jax.random.key(1), PROMPTS)
    h, h_q = np.einsum("bn,bnd->bd", y, x) / N, np.asarray(p.x)[:, 0]
    for a, b in (
        (h[:, 0], h_q[:, 0]),
        ((h * x_q).sum(1) * y_q, (h_q * np.asarray(p.x_q)).sum(1) * np.asarray(p.y_q)[:, 0]),
    ):
        below = [(b < np.quantile(a, level)).mean() for level in levels]
        np.testing.assert_allclose(below, levels, atol=0.007)  # 4.5 deviations of 0.5 (2 / PROMPTS)^(1/2)


@pytest.mark.parametrize("N", [1, 20])
def test_the_best_answer_to_random_covariances_has_no_gradient_and_the_stated_loss(N):
    a, least = shifts.random_covariance_optimum(N, 4)
    best = a * jnp.eye(4)
    np.testing.assert_allclose(jax.grad(shifts.random_covariance_loss)(best, N), 0, atol=1e-14)
    assert float(shifts.random_covariance_loss(best, N)) == pytest.approx(least, rel=1e-13)


def test_the_flow_from_the_theorems_start_ends_where_the_theorem_says():
    S = np.diag([0.7, 0.4])
    exact = ic.population(ic.linear_regression(6, Sigma=S, family="scalar"), ic.merged(2))
    start = ic.initial_params(study._start(2), seeds=1, init_scale=0.4)
    assert np.linalg.norm(start["U"]) == pytest.approx(0.4) and start["v"][0, 0] == pytest.approx(0.4)
    assert np.linalg.eigvalsh(start["U"][0, 0]).min() > -1e-9
    flow = ic.flow(ic.gradient_flow(exact), {n: w[0] for n, w in start.items()}, [400.0])
    v, U = shifts.flow_end(np.asarray(one_layer.gamma(jnp.asarray(S), 6)))
    np.testing.assert_allclose(flow["v"][-1], [v], rtol=1e-6)
    np.testing.assert_allclose(flow["U"][-1, 0], U, atol=1e-5)
    assert abs(v**2 - np.linalg.norm(U) ** 2) < 1e-12


BAD = {
    "seeds": 0,
    "N": 1,
    "s": (0.1, 0.2),
    "sigma": 10.0,
    "lr": 1e9,
    "M": (),
    "shifts": (2.0, 1.0),
    "random_t_end": -1.0,
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused_by_name(name):
    with pytest.raises(ic.BadArgument, match=name):
        study.check(dataclasses.replace(study.SCALES["smoke"], **{name: BAD[name]}))
