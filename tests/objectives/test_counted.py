import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.models.label_head import label_head, zeros
from icldyn.tasks.dictionary import dictionary

P, N, B, D = np.array([0.4, 0.3, 0.2, 0.1]), 5, 2, 6
K, DRAWS = P.size, 20_000
rng = np.random.default_rng(0)
V, Q = np.linalg.qr(rng.normal(size=(D, K)))[0], rng.normal(size=(K, K))
TASK, MODEL = dictionary(N, P), label_head(K)


def prompt_loss(params, key):
    """The definition: tokens drawn one by one as features in D > K dimensions, labels from w, and the softmax of all of them."""
    key_x, key_w = jax.random.split(key)
    x = jnp.asarray(V.T)[jax.random.choice(key_x, K, (B, N + 1), p=jnp.asarray(P))]
    y = jnp.einsum("bnd,bd->bn", x, jax.random.normal(key_w, (B, D)))
    full = V @ params["Q"] @ V.T
    a = jax.nn.softmax(jnp.einsum("bnd,de,be->bn", x[:, :-1], full, x[:, -1]), axis=1)
    return 0.5 * jnp.mean((jnp.sum(a * y[:, :-1], axis=1) - y[:, -1]) ** 2)


def draws(loss, seed):
    """Losses (n,) and gradients (n, K, K) of many batches."""
    step, keys = jax.value_and_grad(loss), jax.random.split(jax.random.key(seed), DRAWS)
    value, grad = jax.jit(
        lambda keys: jax.lax.map(lambda key: step({"Q": jnp.asarray(Q)}, key), keys, batch_size=1000)
    )(keys)
    return np.asarray(value), np.asarray(grad["Q"])


COUNTED = ic.statistics(TASK, MODEL, B)


@pytest.fixture(scope="module")
def counted():
    return draws(COUNTED.loss, 1)


def test_loss_and_gradient_have_the_law_of_drawn_tokens(counted):
    def summary(value, grad):
        seen = np.column_stack([value, grad[:, 0], grad[:, 3]])  # of a frequent and a rare token, towards all queries
        bounded = np.tanh(seen / (np.abs(seen).mean(0)))  # heavy tails make the mean alone a weak test
        pairs = (bounded[:, :, None] * bounded[:, None]).reshape(DRAWS, -1)
        return np.column_stack([seen, bounded, pairs])

    one, other = summary(*counted), summary(*draws(prompt_loss, 2))
    apart = (one.mean(0) - other.mean(0)) / np.sqrt((one.var(0) + other.var(0)) / DRAWS)
    assert np.abs(apart).max() < 4.5  # standard errors; about 60 numbers, so 4.5 is crossed in one run of 2,500


@pytest.mark.parametrize("route", ["counted", "sampled"])
def test_mean_loss_and_gradient_are_exact(route, counted):
    value, grad = counted if route == "counted" else draws(ic.sampled(TASK, MODEL, B).loss, 3)
    loss, wanted = 0.0, np.zeros((K, K))
    for k in range(K):
        order = [k, *(n for n in range(K) if n != k)]
        law = ic.dictionary_attention.query(P[order], N=N)
        loss += P[k] * ic.dictionary_attention.loss(Q[order, k], law)
        wanted[order, k] = -ic.dictionary_attention.rate(Q[order, k], law)
    assert abs(value.mean() - loss) < 4.5 * value.std() / DRAWS**0.5  # standard errors
    assert (np.abs(grad.mean(0) - wanted) < 4.5 * grad.std(0) / DRAWS**0.5).all()


def test_every_step_keeps_the_sum_of_a_querys_weights():
    run = ic.ensemble(
        ic.statistics(TASK, MODEL, 16),
        zeros(MODEL),
        seeds=3,
        lr=1.0,
        steps=20,
        measures={"Q": lambda p: p["Q"]},
        records=2,
    )
    last = run["Q"][:, -1]
    assert np.abs(last.sum(1)).max() < 1e-6 < np.abs(last).min()  # round-off of float32
    assert np.abs(last[0] - last[1]).max() > 1e-3  # seeds draw their own prompts


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ic.statistics(TASK, MODEL, 0), "`batch` must be at least 1, but is 0"),
        (lambda: ic.statistics(TASK, label_head(5), 4), "`model` must have the task's D = 4"),
        (lambda: ic.statistics(TASK, ic.merged(K), 4), "`task` must be linear regression for this model"),
        (
            lambda: ic.statistics(ic.linear_regression(9, [1.0] * K, family="scalar"), MODEL, 4),
            "`task` must be a dictionary for this model",
        ),
        (lambda: ic.statistics(TASK, MODEL, 4, data="shared"), "`data` must be 'own'"),
    ],
)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises(ic.BadArgument) as error:
        call()
    assert sentence in str(error.value)
