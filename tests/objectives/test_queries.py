import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.models.looped_attention import looped
from icldyn.objectives.queries import revealed

LAM, OMEGA = np.array([1.5, 1.0, 0.7, 0.4, 0.2]), np.array([0.3, 0.5, 1.0, 0.2, 0.8])
P, K, B, SIGMA2 = 7, 3, 2, 0.3
DRAWS = 4_000


def prompt_loss(model, params, key):
    """The definition: every pair and query is drawn, and every token answered."""

    def one(key):
        key_w, key_x, key_e = jax.random.split(key, 3)
        w = jnp.sqrt(OMEGA) * jax.random.normal(key_w, (5,))
        x = jnp.sqrt(LAM)[None] * jax.random.normal(key_x, (P + K, 5))
        y = x @ w + np.sqrt(SIGMA2) * jax.random.normal(key_e, (P + K,))
        context, labels = jnp.broadcast_to(x[:P], (K, P, 5)), jnp.broadcast_to(y[:P, None], (K, P, 1))
        return 0.5 * jnp.mean((y[P:] - model.apply(params, context, labels, x[P:])[:, 0]) ** 2)

    return jnp.mean(jax.vmap(one)(jax.random.split(key, B)))


def test_loss_and_gradient_have_the_law_of_drawn_prompts():
    model = looped(5, 2, "matrix")
    params = {"w": jnp.asarray(0.8 + 0.2 * np.random.default_rng(0).normal(size=model.shape))}
    short = revealed(model, LAM, OMEGA, P=P, contexts=B, queries=K, sigma2=SIGMA2, noisy_queries=True)

    def draws(loss, seed):
        step = jax.value_and_grad(loss)
        keys = jax.random.split(jax.random.key(seed), DRAWS)
        value, grad = jax.jit(lambda keys: jax.lax.map(lambda key: step(params, key), keys, batch_size=1000))(keys)
        seen = np.column_stack([value, np.reshape(grad["w"], (DRAWS, -1))[:, :6]])
        bounded = np.tanh(seen / np.median(np.abs(seen), axis=0))  # heavy tails make the mean alone a weak test
        pairs = bounded[:, :, None] * bounded[:, None]
        return np.column_stack([seen, bounded, pairs.reshape(DRAWS, -1)])

    one, other = draws(short.loss, 1), draws(lambda p, k: prompt_loss(model, p, k), 2)
    apart = (one.mean(0) - other.mean(0)) / np.sqrt((one.var(0) + other.var(0)) / DRAWS)
    assert np.abs(apart).max() < 4.5  # standard errors; some 60 numbers, so 4.5 is crossed in one run of 2,500


def test_the_mean_loss_is_the_exact_one_of_finite_size():
    D, alpha, L, gamma = 6, 1, 3, 1.8
    short = revealed(looped(D, L), np.ones(D), np.full(D, 1 / D), P=alpha * D, contexts=2000, queries=4, sigma2=0.5)
    keys = jax.random.split(jax.random.key(0), 25)
    losses = jax.lax.map(lambda key: short.loss({"w": jnp.asarray(gamma)}, key), keys)
    exact = ic.looped.iso_loss(gamma, L, ic.looped.wishart(L, D, alpha * D), noise=0.5 / alpha)
    assert abs(losses.mean() - exact) < 4 * losses.std() / 5  # standard errors of 25 means of 2,000 contexts


@pytest.mark.parametrize("kind", ["scalar", "diagonal"])
def test_endless_contexts_show_the_covariance_itself(kind):
    w, L, power = {"scalar": (np.asarray(1.1), 3, 5), "diagonal": (np.array([0.5, 1.0, 0.2, 2.0, 3.0]), 3, 1)}[kind]
    short = revealed(looped(5, L, kind, power), LAM, OMEGA, P=None, contexts=4000, queries=4)
    keys = jax.random.split(jax.random.key(0), 25)
    losses, grads = jax.lax.map(lambda key: jax.value_and_grad(short.loss)({"w": jnp.asarray(w)}, key), keys)
    loss = ic.looped.modes_loss(w**power, LAM, OMEGA, L)
    rate = ic.looped.rrs_rate(w, LAM, OMEGA, L, power) if kind == "scalar" else ic.looped.fs_rate(w, LAM, OMEGA, L)
    assert abs(losses.mean() - loss) < 4 * losses.std() / 5  # standard errors, as above
    assert (np.abs(grads["w"].mean(0) + rate) < 4 * grads["w"].std(0) / 5).all()  # and of the gradient


def test_the_gradient_is_finite_where_all_weights_are_zero():
    short = revealed(looped(5, 2, "matrix"), LAM, OMEGA, P=7, contexts=2, queries=3)
    grad = jax.jit(jax.grad(short.loss))({"w": jnp.zeros((5, 5))}, jax.random.key(0))["w"]
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lam": [1.0]}, "`lam` must have shape (5,)"),
        ({"omega": -OMEGA}, "`omega` must not be negative"),
        ({"P": 5}, "`P` must be at least 6"),
        ({"contexts": 0}, "`contexts` must be at least 1"),
        ({"queries": 1}, "`queries` must be at least 2"),
        ({"sigma2": -1}, "`sigma2` must be finite and not negative"),
        ({"model": looped(5, 4)}, "`model` must have D of at least 2L - 1 = 7"),
    ],
)
def test_bad_arguments_are_named(change, sentence):
    settings = {"model": looped(5, 3), "lam": LAM, "omega": OMEGA, "P": 9, "contexts": 2, "queries": 3} | change
    with pytest.raises(ic.BadArgument) as error:
        revealed(settings.pop("model"), settings.pop("lam"), settings.pop("omega"), **settings)
    assert sentence in str(error.value)
