import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import icldyn as ic
from icldyn.engine.prompt_noise import prompt_noise

RATES = np.array([2.0, 0.7, 0.1])
NOISE = np.array([[1.0, 0.3, -0.2], [0.3, 0.5, 0.1], [-0.2, 0.1, 0.8]])
TASK = ic.linear_regression(5, [1.0, 0.6], family="scalar")
MODEL = ic.merged(2, 1)
TIMES = np.array([0.5, 1.0, 2.0])


def bowl(rates, cubic, params):
    return (rates * params["w"] ** 2 / 2 + cubic * params["w"] ** 3 / 6).sum()


def same(noise, params):
    return noise


def weights(params):
    return params["w"]


def strength(model, params):
    return jnp.diagonal(model.matrix(params))


def heads_setting(model=MODEL, scale=0.6):
    exact = ic.population(TASK, model)
    start = jax.tree.map(np.asarray, ic.heads.gaussian(model)(jax.random.key(3), jnp.float64(scale)))
    return exact, start, {"strength": Partial(strength, model), "loss": exact.loss}


def test_in_a_bowl_it_is_the_ornstein_uhlenbeck_process():
    """P_ij(t) = e^-(l_i + l_j) t P_ij(0) + (lr/B) Sigma_ij (1 - e^-(l_i + l_j) t) / (l_i + l_j), and the loss is chi^2-like."""
    first, w0, lr, B = 0.01 * NOISE @ NOISE, np.array([1.0, -0.5, 0.3]), 0.1, 4
    run = ic.spread(
        Partial(bowl, RATES, np.zeros(3)),
        Partial(same, NOISE),
        {"w": w0},
        TIMES,
        lr=lr,
        batch=B,
        covariance=first,
        measures={"w": weights, "loss": Partial(bowl, RATES, np.zeros(3))},
        rtol=1e-8,
    )
    sums = RATES[:, None] + RATES
    for k, t in enumerate(TIMES):
        left, w = np.exp(-sums * t), np.exp(-RATES * t) * w0
        P = left * first + lr / B * NOISE * (1 - left) / sums
        np.testing.assert_allclose(run["w_sd"][k], np.sqrt(np.diag(P)), rtol=1e-6)  # the solver's rtol is 1e-8
        HP = RATES[:, None] * P
        variance = (RATES * w) @ P @ (RATES * w) + np.trace(HP @ HP) / 2
        np.testing.assert_allclose(run["loss_sd"][k], np.sqrt(variance), rtol=1e-6)
        np.testing.assert_allclose(run["loss_shift"][k], np.trace(HP) / 2, rtol=1e-6)
        np.testing.assert_allclose(run["w_shift"][k], 0, atol=1e-12)  # the ground is not curved
        # (1 - lr l)^(t / lr) = e^-lt (1 - lr l^2 t / 2 + ...)
        np.testing.assert_allclose(run["w_shift_steps"][k], -lr / 2 * RATES**2 * t * w, rtol=1e-6)


def test_on_curved_ground_noise_moves_the_mean_to_the_flatter_side():
    """L = l w^2 / 2 + c w^3 / 6: at rest P = (lr/B) Sigma / 2l and the mean lies at -c P / 2l."""
    cubic, noise, times = np.array([0.4, -0.2, 0.1]), np.diag([1.0, 0.5, 2.0]), [20.0, 50.0, 400.0]
    exact = Partial(bowl, RATES, cubic)
    measures = {"w": weights, "loss": exact}
    run = ic.spread(exact, Partial(same, noise), {"w": np.zeros(3)}, times, lr=0.1, batch=2, measures=measures)
    P = 0.05 * np.diag(noise) / (2 * RATES)
    np.testing.assert_allclose(run["w_sd"][-1], np.sqrt(P), rtol=1e-4)  # ten times the solver's tolerance
    np.testing.assert_allclose(run["w_shift"][-1], -cubic * P / (2 * RATES), rtol=1e-4)


def test_it_is_the_limit_of_the_exact_recursion_of_the_covariance():
    """w <- w - lr grad L, P <- (1 - lr H) P (1 - lr H) + (lr^2/B) Sigma_g(w), which it leaves in proportion to lr."""
    exact, start, _ = heads_setting()
    flat, back = jax.flatten_util.ravel_pytree(start)
    S = jnp.diag(jnp.asarray(TASK.s))

    def step(lr, state, _):
        w, P = state
        J = jax.jacobian(lambda w: MODEL.matrix(back(w)).ravel())(w)
        noise = J.T @ ic.gradient_noise.answer_noise(MODEL.matrix(back(w)), S, 5.0).reshape(4, 4) @ J
        M = jnp.eye(w.size) - lr * jax.hessian(lambda w: exact.loss(back(w)))(w)
        return (w - lr * jax.grad(lambda w: exact.loss(back(w)))(w), M @ P @ M + lr**2 * noise), None

    @jax.jit
    def recursion(lr):  # up to t = 1
        first = (flat, jnp.zeros((flat.size, flat.size)))
        return (
            jax.lax.fori_loop(0, (1 / lr + 0.5).astype(int), lambda _, state: step(lr, state, None)[0], first)[1] / lr
        )

    noise = ic.statistics(TASK, MODEL, 1)
    run = ic.spread(exact, noise, start, [0.25, 0.5, 1.0], lr=1.0, measures={"w": _flat}, rtol=1e-8)
    gaps = [np.abs(run["w_sd"][-1] - np.sqrt(np.diag(recursion(jnp.float64(1 / n))))).max() for n in (16, 32, 64)]
    assert gaps[2] < 0.03 * run["w_sd"].max()
    np.testing.assert_allclose(np.divide(gaps[:-1], gaps[1:]), 2, rtol=0.1)  # first order; the next one is 1/16 of it


def _flat(params):
    return jax.flatten_util.ravel_pytree(params)[0]


def test_seeds_of_sgd_spread_as_predicted_and_their_mean_moves_as_predicted():
    exact, start, measures = heads_setting()
    noise, S = ic.statistics(TASK, MODEL, 64), 4096
    init = ic.heads.given(MODEL, **start)
    seeds = ic.ensemble(noise, init, seeds=S, lr=0.05, steps=36, records=4, measures=measures)
    run = ic.spread(exact, noise, start, seeds.t, lr=0.05, measures=measures)
    flat, back = jax.flatten_util.ravel_pytree(start)
    steepest = np.linalg.eigvalsh(jax.hessian(lambda w: exact.loss(back(w)))(flat))[-1]
    some = 4 / np.sqrt(2 * S) + 0.05 * steepest / 2  # standard errors of a standard deviation, and 1 / (1 - lr l / 2)
    for name in measures:
        got, sd = seeds[name][:, 1:], run[f"{name}_sd"][1:]
        np.testing.assert_allclose(got.std(0), sd, rtol=some)
        mean = run[name] + run[f"{name}_shift"] + run[f"{name}_shift_steps"]
        z = (got.mean(0) - mean[1:]) / (sd / np.sqrt(S))
        plain = (got.mean(0) - run[name][1:]) / (sd / np.sqrt(S))
        assert np.abs(z).max() < 5 < np.abs(plain).max()  # the flow alone is not the mean: the shifts are seen


def test_sampled_along_the_flow_the_noise_gives_what_its_closed_form_gives():
    exact, start, measures = heads_setting()
    closed, drawn = (
        ic.spread(exact, noise, start, TIMES, lr=0.01, measures=measures, prompts=2**14)
        for noise in (ic.statistics(TASK, MODEL, 8), ic.sampled(TASK, MODEL, 8))
    )
    for name in measures:
        # squares of gradients have a kurtosis of about 50: 5% at each of 33 times, half of it in the sd, then averaged
        np.testing.assert_allclose(drawn[f"{name}_sd"], closed[f"{name}_sd"], rtol=0.06)


def test_the_noise_of_separate_heads_is_that_of_sampled_prompts():
    model = ic.separate(2, 2, 1)
    _, start, _ = heads_setting(model)
    flat, back = jax.flatten_util.ravel_pytree(start)
    one = ic.sampled(TASK, model, 1)

    def gradient(key):
        return jax.flatten_util.ravel_pytree(jax.grad(one.loss)(start, key))[0]

    num = 2**17
    drawn = np.cov(jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(0), num)).T)
    closed = prompt_noise(ic.statistics(TASK, model, 8), 2, start, flat.size)(0.0, flat, back)
    scale = np.sqrt(np.diag(closed))
    # a kurtosis of about 50: 2% each
    np.testing.assert_allclose(drawn / np.outer(scale, scale), closed / np.outer(scale, scale), atol=0.08)


def test_many_starts_equal_each_alone_and_the_units_of_the_weights_do_not_matter():
    exact, _, measures = heads_setting()
    noise = ic.statistics(TASK, MODEL, 8)
    starts = ic.initial_params(ic.heads.gaussian(MODEL), seeds=3, init_scale=1e-5, dtype="float64")
    run = ic.spread(exact, noise, starts, TIMES, lr=0.01, measures=measures, many=True)
    assert run.dims["strength_sd"][:2] == ("seed", "time")
    last = jax.tree.map(operator.itemgetter(2), starts)
    alone = ic.spread(exact, noise, last, TIMES, lr=0.01, measures=measures)
    for name in run.values:
        np.testing.assert_allclose(run[name][2], alone[name], rtol=1e-7, atol=1e-25)  # by the same steps
    # near the saddle the flow is linear and its noise in proportion to the weights
    tenth = jax.tree.map(lambda w: w / 10, starts)
    small = ic.spread(exact, noise, tenth, TIMES, lr=0.01, measures=measures, many=True)
    np.testing.assert_allclose(100 * small["strength_sd"], run["strength_sd"], rtol=1e-3)  # rtol 1e-5 of the solver


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": 0.0}, "`lr` must be positive and finite"),
        ({"batch": 0}, "`batch` must be at least 1"),
        ({"covariance": np.eye(2)}, "`covariance` must have shape (3, 3)"),
        ({"covariance": -np.eye(3)}, "`covariance` must be symmetric positive semi-definite"),
        ({"start": {"w": np.array([1.0, np.nan, 0.0])}}, "`start` must be finite"),
        ({"noise": Partial(same, np.eye(2))}, "`noise` must return shape (3, 3)"),
        ({"noise": 3.0}, "`noise` must be an objective with a `batch`"),
        ({"noise": ic.population(TASK, ic.merged(2))}, "`noise` must be an objective with a `batch`"),
        ({"noise": ic.statistics(TASK, ic.merged(2), 4, data="shared")}, "`noise` must draw its own data"),
        ({"start": {"w": np.zeros(1001)}}, "`start` must have at most 1000 weights"),
        ({"t": [1.0, 0.5]}, "`t` must hold ascending times"),
    ],
)
def test_a_bad_argument_is_named_in_one_sentence(settings, sentence):
    given = {"noise": Partial(same, NOISE), "start": {"w": np.ones(3)}, "t": TIMES, "lr": 0.1, "batch": 4} | settings
    with pytest.raises(ic.BadArgument) as caught:
        ic.spread(Partial(bowl, RATES, np.zeros(3)), measures={"w": weights}, **given)
    assert sentence in str(caught.value)
