import jax
import numpy as np
import pytest

import icldyn as ic
from icldyn.tasks.linear_regression import FAMILIES
from tests.oracles import random_covariance


@pytest.fixture(scope="module")
def Sigma():
    return random_covariance(np.random.default_rng(0), 3)


def make(family, Sigma, **settings):
    if family == "scalar":
        settings["Sigma_w"] = random_covariance(np.random.default_rng(1), 3)
    return ic.linear_regression(6, Sigma=Sigma, family=family, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_have_the_covariance_and_the_labels_they_promise(family, Sigma):
    task = make(family, Sigma, rho=0.3)
    x, y, x_q, y_q = jax.jit(task.sample, static_argnums=1)(jax.random.key(0), 40_000)
    assert x.shape == (40_000, 6, 3) and y.shape == (40_000, 6, task.O)
    assert x_q.shape == (40_000, 3) and y_q.shape == (40_000, task.O)
    both = np.concatenate([np.asarray(x).reshape(-1, 3), np.asarray(x_q)])
    np.testing.assert_allclose(both.T @ both / len(both), Sigma, atol=6e-3)  # sampling error of 280k vectors
    # labels are linear in x but for noise of variance rho: residual of the least-squares fit has N - D of N degrees left
    projector = np.eye(6) - np.asarray(x) @ np.linalg.pinv(np.asarray(x))
    left = np.einsum("bnm,bmo->bno", projector, np.asarray(y))
    assert (left**2).sum() / (40_000 * task.O * 3) == pytest.approx(0.3, rel=0.02)  # sampling error of 120k degrees


@pytest.mark.parametrize("family", FAMILIES)
def test_task_covariance_is_that_of_the_drawn_tasks(family, Sigma):
    task = make(family, Sigma)
    W = np.asarray(task.sample_tasks(jax.random.key(1), 200_000))
    measured = np.einsum("nia,njb->iajb", W, W) / len(W)
    np.testing.assert_allclose(measured, task.task_covariance(), atol=0.02)  # sampling error of 200k tasks
    np.testing.assert_allclose(W.mean(0), 0, atol=0.01)


def test_shared_eigenbasis_tasks_commute_with_sigma(Sigma):
    W = np.asarray(make("shared_eigenbasis", Sigma).sample_tasks(jax.random.key(2), 5))
    np.testing.assert_allclose(W @ Sigma, Sigma @ W, atol=1e-12)


def test_a_pool_is_fixed_by_its_seed_and_prompts_use_only_its_tasks(Sigma):
    task = make("iid", Sigma, pool=4, pool_seed=3)
    np.testing.assert_array_equal(task.pool, make("iid", Sigma, pool=4, pool_seed=3).pool)
    x, y, _, _ = task.sample(jax.random.key(0), 64)
    errors = np.stack([np.abs(np.asarray(y) - np.asarray(x) @ W.T).max((1, 2)) for W in task.pool])
    assert errors.min(0).max() < 1e-12
    assert set(errors.argmin(0)) == {0, 1, 2, 3}


def test_without_noise_labels_are_exact(Sigma):
    task = make("scalar", Sigma)
    x, y, x_q, y_q = task.sample(jax.random.key(4), 8)
    W = np.linalg.solve(np.asarray(x)[:, :3], np.asarray(y)[:, :3])
    np.testing.assert_allclose(np.einsum("bao,ba->bo", W, np.asarray(x_q)), y_q, rtol=1e-6, atol=1e-8)


def test_spectra_are_descending_and_scaled():
    np.testing.assert_array_equal(ic.isotropic(3, 0.2), [0.2, 0.2, 0.2])
    s = ic.power_law(4, 1.5, trace=2.0)
    assert s.sum() == pytest.approx(2.0)
    np.testing.assert_allclose(s / s[0], np.arange(1, 5) ** -1.5)


def test_a_covariance_matrix_is_split_into_descending_modes(Sigma):
    task = ic.linear_regression(4, Sigma=Sigma)
    assert (np.diff(task.s) <= 0).all()
    np.testing.assert_allclose(task.Sigma, Sigma, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"N": 0}, "`N` must be at least 1, but is 0"),
        ({"N": 2.5}, "`N` must be an integer"),
        ({"s": []}, "`s` must hold at least one eigenvalue"),
        ({"s": [0.5, 1.0]}, "`s` must be descending"),
        ({"s": [1.0, -0.5]}, "`s` must not be negative, but its smallest entry is -0.5"),
        ({"s": [1.0, np.nan]}, "`s` must be finite"),
        ({"s": "abc"}, "`s` must be an array of numbers"),
        ({"s": None, "Sigma": [[1.0, 0.5], [0.2, 1.0]]}, "`Sigma` must be symmetric, but"),
        (
            {"s": None, "Sigma": [[1.0, 2.0], [2.0, 1.0]]},
            "`Sigma` must be symmetric positive semi-definite, but its smallest",
        ),
        ({"s": None, "Sigma": np.zeros((0, 0))}, "`Sigma` must have shape (D, D) with D at least 1"),
        ({"s": None}, "either argument `s`"),
        ({"U": np.ones((2, 2))}, "`U` must be orthogonal"),
        ({"U": np.eye(3)}, "`U` must have shape (2, 2), but has shape (3, 3)"),
        ({"rho": -0.1}, "`rho` must be finite and not negative, but is -0.1"),
        ({"family": "iiid"}, "did you mean 'iid'"),
        ({"Sigma_w": np.eye(2)}, "`Sigma_w` must be left out"),
        ({"pool": 0}, "`pool` must be at least 1"),
        ({"pool": np.ones((0, 2, 2))}, "`pool` must hold at least one task, but is empty"),
        ({"pool": np.ones((3, 2, 5))}, "`pool` must have shape (any, 2, 2), but has shape (3, 2, 5)"),
    ],
)
def test_a_bad_argument_is_named_in_one_sentence(settings, sentence):
    good = {"N": 8, "s": [1.0, 0.5]}
    with pytest.raises(ic.BadArgument) as caught:
        ic.linear_regression(**(good | settings))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
