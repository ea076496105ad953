import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.engine.optimisers import clipped_adamw
from icldyn.objectives.next_token import next_token
from icldyn.tasks.markov import markov
from icldyn.tasks.repeated_tokens import repeated_tokens


@pytest.fixture(scope="module")
def small():
    return next_token(markov(3, 8, alpha=1.0), ic.transformer(3, 8, layers=1, d=8, H=1, d_head=4), 16)


def test_the_loss_is_the_mean_cross_entropy_of_the_batch_it_draws(small):
    key, params = jax.random.key(1), start(small, 30.0)
    tokens = np.asarray(jax.jit(small.draw)(jax.random.clone(key)))
    logits = np.asarray(small.net.logits(params, jnp.asarray(tokens[:, :-1])))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = -np.log([[p[b, t, tokens[b, t + 1]] for t in range(8)] for b in range(16)])
    np.testing.assert_allclose(small.losses(params, jnp.asarray(tokens)), wanted, rtol=1e-10)
    assert jax.jit(small.loss)(params, key) == pytest.approx(wanted.mean(), rel=1e-12)


def test_an_untrained_network_knows_nothing(small):
    loss = jax.jit(small.loss)(start(small, 1.0), jax.random.key(1))
    assert loss == pytest.approx(np.log(3), abs=1e-3)  # logits are of order 0.02^2 sqrt(d)


def test_a_mean_over_pieces_of_a_batch_is_the_loss(small):
    key, params = jax.random.key(1), start(small, 20.0)
    slope = jax.jit(jax.grad(lambda p, x: jnp.mean(small.losses(p, x))))
    pieces = [slope(params, x) for x in jnp.split(jax.jit(small.draw)(jax.random.clone(key)), 4)]
    whole = jax.jit(jax.grad(small.loss))(params, key)
    for name in ("W_E", "W_U"):
        np.testing.assert_allclose(sum(p[name] for p in pieces) / 4, whole[name], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("norm", [False, True], ids=["folded weights", "pieces"])
def test_a_cpu_and_an_accelerator_have_one_loss_and_its_curvature(norm, monkeypatch):
    objective = next_token(
        markov(3, 8, alpha=1.0), ic.transformer(3, 8, layers=1, d=8, H=1, d_head=4, norm=norm), 2 * 48
    )
    params, key = start(objective, 20.0), jax.random.key(1)
    direction = jax.tree.map(jnp.cos, params)

    def curvature(params, key):
        slope = jax.value_and_grad(lambda params: objective.loss(params, key))
        return jax.jvp(slope, (params,), (direction,))

    here = jax.jit(curvature)(params, jax.random.clone(key))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = jax.jit(lambda *args: curvature(*args))(params, jax.random.clone(key))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-12), here, there)  # round-off


def test_seeds_learn_in_an_ensemble_and_gradients_are_clipped_before_adam(small):
    optimiser = functools.partial(clipped_adamw, clip=1e-3, b2=0.99, weight_decay=0.01)
    settings = {"seeds": 2, "lr": 0.01, "steps": 3, "records": 4, "block": 8, "dtype": "float64"}
    measures = {"W_U": lambda params: params["W_U"]}
    run = ic.ensemble(small, small.start, optimiser=optimiser, measures=measures, **settings)
    key_init, key_data = jax.random.split(jax.random.key(1))
    params, slope = jax.jit(small.start)(key_init, jnp.asarray(1.0)), jax.jit(jax.grad(small.loss))
    moments = [jax.tree.map(np.zeros_like, params)] * 2
    for step in range(1, 4):
        grads = slope(params, jax.random.fold_in(jax.random.clone(key_data), step - 1))
        norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads)))
        assert norm > 1e-3
        grads = jax.tree.map(lambda g, n=norm: np.asarray(g) * 1e-3 / n, grads)
        moments = [
            jax.tree.map(lambda m, g, b=b, n=n: b * m + (1 - b) * g**n, m, grads)
            for m, b, n in zip(moments, (0.9, 0.99), (1, 2), strict=True)
        ]
        params = jax.tree.map(functools.partial(adam, step), params, *moments)
        np.testing.assert_allclose(run["W_U"][1, step], params["W_U"], rtol=1e-9, atol=1e-12)


def adam(n, w, m, v):
    return w - 0.01 * (m / (1 - 0.9**n) / (np.sqrt(v / (1 - 0.99**n)) + 1e-8) + 0.01 * w)


def start(objective, scale):
    return jax.jit(objective.start)(jax.random.key(0), jnp.asarray(scale))


@pytest.mark.parametrize(
    ("task", "net", "sentence"),
    [
        (markov(4, 8, alpha=1.0), {}, "`net` must know the task's 4 tokens, but is 3"),
        (markov(3, 9, alpha=1.0), {}, "`net` must take the task's T = 9 positions, but is 8"),
        (repeated_tokens(3, period=2), {}, "`net` must know the task's 4 tokens, but is 3"),
        (markov(3, 8, alpha=1.0), {"causal": False}, "`net` must be causal"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(task, net, sentence):
    with pytest.raises(ic.BadArgument, match=sentence):
        next_token(task, ic.transformer(3, 8, layers=1, d=8, H=1, d_head=4, **net), 16)
