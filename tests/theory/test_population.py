import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.tasks.linear_regression import FAMILIES
from icldyn.theory.moments import gaussian_task_moments
from icldyn.theory.population import population_loss, scalar_population_loss
from tests.oracles import prompt_losses, random_covariance, z_score


def random_case(seed, family):
    """Random (P, Q, Sigma, Sigma_w, rho, N), both ways of treating the query."""
    rng = np.random.default_rng(seed)
    D = 3
    Sigma_w = random_covariance(rng, D) if family == "scalar" else None
    task = ic.linear_regression(
        int(rng.integers(2, 12)),
        Sigma=random_covariance(rng, D),
        family=family,
        Sigma_w=Sigma_w,
        rho=rng.uniform(0, 0.5),
    )
    P, Q = 0.5 * rng.normal(size=(task.O, D + task.O)), 0.5 * rng.normal(size=(D + task.O, D))
    return rng, task, P, Q


def draw_tasks(task):
    """Tasks in numpy, by the definitions of the families."""

    def draw(rng, B):
        if task.family == "scalar":
            return (rng.normal(size=(B, 3)) @ np.linalg.cholesky(task.Sigma_w).T)[:, None]
        if task.family == "iid":
            return rng.normal(size=(B, 3, 3))
        return np.einsum("ik,bk,jk->bij", task.U, rng.normal(size=(B, 3)), task.U)

    return draw


@pytest.mark.parametrize("attends", [True, False], ids=["attends", "masked"])
@pytest.mark.parametrize("family", FAMILIES)
def test_population_loss_is_the_mean_over_a_million_sampled_prompts(family, attends):
    rng, task, P, Q = random_case({"scalar": 1, "iid": 2, "shared_eigenbasis": 3}[family], family)
    moments = gaussian_task_moments(task.Sigma, task.task_covariance(), float(task.rho), task.N)
    exact = population_loss(jnp.asarray(P), jnp.asarray(Q), moments, attends)
    losses = prompt_losses(
        rng,
        P=P,
        Q=Q,
        N=task.N,
        Sigma=task.Sigma,
        rho=float(task.rho),
        draw_tasks=draw_tasks(task),
        num=1_000_000,
        attends=attends,
    )
    assert abs(z_score(losses, float(exact))) < 4  # standard errors
    assert np.std(losses) / 1e3 < 0.01 * exact  # and the test could see an error of a few per cent


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("attends", [True, False], ids=["attends", "masked"])
def test_two_derivations_agree_on_scalar_tasks_to_round_off(seed, attends):
    rng, task, P, Q = random_case(10 + seed, "scalar")
    moments = gaussian_task_moments(task.Sigma, task.task_covariance(), float(task.rho), task.N)
    one = population_loss(jnp.asarray(P), jnp.asarray(Q), moments, attends)
    M = jnp.einsum("ha,bk->abk", jnp.asarray(P), jnp.asarray(Q))
    other = scalar_population_loss(
        M, jnp.asarray(task.Sigma), jnp.asarray(task.Sigma_w), float(task.rho), task.N, attends
    )
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_many_heads_on_scalar_tasks_match_a_million_sampled_prompts():
    rng, task, _, _ = random_case(30, "scalar")
    heads = [(0.4 * rng.normal(size=(1, 4)), 0.4 * rng.normal(size=(4, 3))) for _ in range(2)]
    M = sum(jnp.einsum("ha,bk->abk", jnp.asarray(P), jnp.asarray(Q)) for P, Q in heads)
    exact = scalar_population_loss(M, jnp.asarray(task.Sigma), jnp.asarray(task.Sigma_w), float(task.rho), task.N)
    # two heads are one head of twice the width: yhat = [P_1 P_2] (G (+) G) [Q_1; Q_2] x_q, sampled head by head
    D, N, num = 3, task.N, 1_000_000
    root, losses = np.linalg.cholesky(task.Sigma), []
    for _ in range(20):
        W = draw_tasks(task)(rng, num // 20)
        x, x_q = rng.normal(size=(num // 20, N, D)) @ root.T, rng.normal(size=(num // 20, D)) @ root.T
        y = np.einsum("bod,bnd->bno", W, x) + np.sqrt(task.rho) * rng.normal(size=(num // 20, N, 1))
        z, z_q = np.concatenate([x, y], 2), np.concatenate([x_q, np.zeros((num // 20, 1))], 1)
        yhat = 0
        for P, Q in heads:
            score = np.einsum("bni,ij,bj->bn", z, Q, x_q) / N
            own = np.einsum("bi,ij,bj->b", z_q, Q, x_q) / N
            yhat = yhat + (np.einsum("bn,bni->bi", score, z) + own[:, None] * z_q) @ P.T
        losses.append(((np.einsum("bod,bd->bo", W, x_q) - yhat) ** 2).sum(1) / 2)
    assert abs(z_score(np.concatenate(losses), float(exact))) < 4


@pytest.mark.parametrize("family", FAMILIES)
def test_rotating_the_covariance_rotates_the_weights(family):
    rng, task, P, Q = random_case(40, family)
    model = ic.linear_attention(3, task.O)
    params = ic.gaussian(model)(jax.random.key(0), jnp.float64(0.5))
    plain = ic.linear_regression(task.N, task.s, family=family, rho=float(task.rho))
    turned = ic.linear_regression(task.N, task.s, U=task.U, family=family, rho=float(task.rho))
    U, V = task.U, task.U if task.O == 3 else np.eye(1)
    p1, p2, q1, q2 = model.blocks(params)
    rotated = ic.from_blocks(V @ p1 @ U.T, V @ p2 @ V.T, U @ q1 @ U.T, V @ q2 @ U.T)
    np.testing.assert_allclose(
        ic.population(turned, model).loss(rotated), ic.population(plain, model).loss(params), rtol=1e-12
    )


# Constants of the project's notes: twice the loss at the optimum A = Gamma^-1 of scalar tasks, Sigma_w = I (p2 = 1, q1 = A).
@pytest.mark.parametrize(
    ("s", "N_train", "N_test", "rho", "wanted"),
    [
        ([0.4, 0.3, 0.2, 0.1], 31, 31, 0.0, 0.135995),
        ([0.2] * 5, 20, 20, 0.0, 0.23077),
        ([0.2] * 5, 31, 31, 0.0, 0.16216),
        ([0.2] * 5, 20, 40, 0.0, 0.14201),
        ([0.4, 0.3, 0.2, 0.1], 20, 20, 0.0, 0.19464),
        ([0.4, 0.3, 0.2, 0.1], 20, 40, 0.0, 0.11813),
        ([0.4, 0.3, 0.2, 0.1], 20, 20, 0.3, 0.2290),
    ],
)
def test_the_optimum_of_scalar_tasks_has_the_tabulated_loss(s, N_train, N_test, rho, wanted):
    s = np.asarray(s)
    D = s.size
    task = ic.linear_regression(N_test, s, family="scalar", rho=rho)
    gamma = (1 + 1 / N_train) * s + (s.sum() + rho) / N_train
    params = ic.from_blocks(*map(jnp.asarray, (np.zeros((1, D)), np.eye(1), np.diag(1 / gamma), np.zeros((1, D)))))
    objective = ic.population(task, ic.linear_attention(D, 1))
    assert 2 * objective.loss(params) == pytest.approx(wanted, abs=1e-4 if rho else 6e-6)  # as printed in the notes
    if N_train == N_test:  # and it is the optimum: no gradient
        assert all(np.abs(g).max() < 1e-12 for g in jax.tree.leaves(jax.grad(objective.loss)(params)))


def test_a_pool_of_many_tasks_approaches_fresh_tasks():
    model = ic.linear_attention(3)
    params = ic.gaussian(model, null_blocks=False)(jax.random.key(0), jnp.float64(0.5))
    fresh = ic.population(ic.linear_regression(6, [1.0, 0.5, 0.2], family="iid"), model).loss(params)
    pooled = ic.population(ic.linear_regression(6, [1.0, 0.5, 0.2], family="iid", pool=40_000), model).loss(params)
    assert float(pooled) == pytest.approx(float(fresh), rel=0.02)  # sampling error of 40k tasks
