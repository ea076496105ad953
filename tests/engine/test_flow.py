import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import icldyn as ic


def logistic_field(rate, w):
    return {"a": rate * w["a"] * (1 - w["a"])}


def closed(rate, a0, t):
    return 1 / (1 + (1 / a0 - 1) * np.exp(-rate * t))


@pytest.mark.parametrize("a0", [1e-9, 1e-3, 0.3])
def test_a_plateau_of_any_depth_is_left_at_the_right_time(a0):
    t = np.linspace(0, 60, 100)
    run = ic.flow(Partial(logistic_field, 1.3), {"a": np.array([a0])}, t)
    np.testing.assert_allclose(run["a"][:, 0], closed(1.3, a0, t), rtol=1e-6)  # relative, on the plateau too


def test_the_error_estimate_bounds_the_error():
    rng, t, bounded = np.random.default_rng(0), np.linspace(0, 30, 30), 0
    for _ in range(20):
        rate, a0 = rng.uniform(0.5, 3), 10 ** rng.uniform(-6, -1)
        run = ic.flow(Partial(logistic_field, rate), {"a": np.array([a0])}, t, rtol=1e-6)
        bounded += np.abs(run["a"][:, 0] - closed(rate, a0, t)).max() <= run.attrs["error"]
    assert bounded >= 19


def test_a_tighter_tolerance_is_more_accurate():
    t = np.linspace(0, 30, 30)
    errors = [
        np.abs(
            ic.flow(Partial(logistic_field, 1.0), {"a": np.array([1e-4])}, t, rtol=r)["a"][:, 0] - closed(1.0, 1e-4, t)
        ).max()
        for r in (1e-4, 1e-6, 1e-8)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_many_starts_equal_each_alone_and_one_that_blows_up_harms_no_other():
    t = np.linspace(0, 2.0, 9)

    def square(w):
        return {"a": w["a"] ** 2}  # 1 / (1/a0 - t): blows up at t = 1 from a0 = 1

    starts = np.array([[0.1], [1.0], [0.2]])
    run = ic.flow(square, {"a": starts}, t, many=True)
    assert run.attrs["failed"] == 1 and run.diverged == 1
    np.testing.assert_array_equal(run.finite(), [True, False, True])
    for k in (0, 2):
        np.testing.assert_allclose(run["a"][k, :, 0], 1 / (1 / starts[k, 0] - t), rtol=1e-7)
        alone = ic.flow(square, {"a": starts[k]}, t)
        np.testing.assert_allclose(run["a"][k], alone["a"], rtol=1e-12)


def test_gradient_flow_never_climbs_and_loses_at_the_rate_of_its_squared_gradient():
    task, model = ic.linear_regression(8, [1.0, 0.5, 0.2], family="iid", rho=0.1), ic.linear_attention(3)
    exact = ic.population(task, model)
    start = ic.gaussian(model)(jax.random.key(0), jnp.float64(0.4))
    t = np.linspace(0, 0.6, 1201)
    run = ic.flow(
        ic.gradient_flow(exact), start, t, measures={"loss": Partial(_loss, exact), "rate": Partial(_rate, exact)}
    )
    assert (np.diff(run["loss"]) <= 0).all()
    slope = np.gradient(run["loss"], t, edge_order=2)
    np.testing.assert_allclose(
        slope, -run["rate"], rtol=2e-3, atol=1e-3 * run["rate"].max()
    )  # differences of step 5e-4


def test_the_flow_of_all_blocks_conserves_the_norm_gap():
    task, model = ic.linear_regression(8, [1.0, 0.5, 0.2], family="iid", rho=0.1), ic.linear_attention(3)
    start = ic.gaussian(model)(jax.random.key(1), jnp.float64(0.4))
    run = ic.flow(
        ic.gradient_flow(ic.population(task, model)), start, np.linspace(0, 50, 20), measures=ic.modes.measures(task.U)
    )
    np.testing.assert_allclose(run["norm_gap"], run["norm_gap"][0], atol=1e-6)  # rtol 1e-8 of weights of order one


def test_the_population_flow_of_an_aligned_start_is_the_coupled_modes_flow():
    from icldyn.studies import mainali2025 as study

    s, t = np.array([1.0, 0.7, 0.5]), np.linspace(0, 40, 30)
    U = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    task, model = ic.linear_regression(6, s, U=U), ic.linear_attention(3)
    start = ic.aligned(model, U, p=0.2, q=0.3)(None, jnp.float64(1.0))
    full = ic.flow(ic.gradient_flow(ic.population(task, model)), start, t, measures=ic.modes.measures(U))
    modes = study._modes_flow(s, 6, 0.2, 0.3, t)
    np.testing.assert_allclose(full["strength"], modes["strength"], rtol=1e-6)
    assert full["p2_off_diagonal"].max() < 1e-12 and full["null_block_share"].max() < 1e-12


def test_from_gaussian_starts_of_all_blocks_every_mode_takes_one_of_two_routes():
    """yhat = p2 H q1 x_q or yhat = p1 H^T q2 x_q: tasks that share the eigenbasis are symmetric, and either will do."""
    task, model = ic.linear_regression(20, [1.0, 0.7, 0.5]), ic.linear_attention(3)
    starts = ic.initial_params(ic.gaussian(model), seeds=16, init_scale=0.2)
    run = ic.flow(ic.gradient_flow(ic.population(task, model)), starts, [2000.0], many=True)
    P, Q = run["W_P"][:, 0], run["W_Q"][:, 0]
    main = np.einsum("saa->sa", P[:, 3:, 3:]) * np.einsum("saa->sa", Q[:, :3, :3])  # p2 q1, mode by mode
    null = np.einsum("saa->sa", P[:, 3:, :3]) * np.einsum("saa->sa", Q[:, 3:, :3])  # p1 q2
    share = null / (main + null)
    assert np.minimum(share, 1 - share).max() < 1e-3  # one route or the other, never both
    assert 0.2 < np.mean(share > 0.5) < 0.8  # and both occur, 48 modes
    p, q = ic.null_blocks.modes_optimum(np.array([1.0, 0.7, 0.5]), 20)
    np.testing.assert_allclose(main + null, np.broadcast_to(p * q, (16, 3)), rtol=0.02)  # the routes share the coupling


def test_measures_default_to_the_params():
    run = ic.flow(Partial(logistic_field, 1.0), {"a": np.array([0.1, 0.2])}, [0.0, 1.0])
    assert run["a"].shape == (2, 2) and run.dims["a"] == ("time", "a_0")


@pytest.mark.parametrize(
    ("t", "start", "sentence"),
    [
        ([1.0, 0.5], [0.1], "`t` must hold ascending times"),
        ([-1.0, 0.5], [0.1], "`t` must hold ascending times"),
        ([0.0, np.inf], [0.1], "`t` must be finite"),
        ([0.0, 1.0], [np.nan], "`start` must be finite"),
    ],
)
def test_a_bad_argument_is_named_in_one_sentence(t, start, sentence):
    with pytest.raises(ic.BadArgument) as caught:
        ic.flow(Partial(logistic_field, 1.0), {"a": np.array(start)}, t)
    assert sentence in str(caught.value)


def _loss(objective, params):
    return objective.loss(params)


def _rate(objective, params):
    return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(objective.loss)(params)))
