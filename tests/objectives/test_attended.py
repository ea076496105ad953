import functools

import jax
import numpy as np
import pytest

import icldyn as ic
from icldyn.models import softmax_attention as softmax
from icldyn.objectives import attended
from icldyn.objectives.prompts import Sampled

D, N, B = 3, 2, 5


@pytest.mark.parametrize(
    ("sizes", "settings"), [((3,), {}), ((2, 1), {"O": 2, "R": 2, "scale": 0.5, "values_apart": True})]
)
def test_the_gradient_by_hand_is_that_of_autodiff_on_the_same_prompts_and_so_is_its_own(sizes, settings):
    task = ic.block_regression(N, ic.disjoint(sizes), sigma2=0.3)
    model = softmax.softmax_attention(D, 2, query_attends_itself=False, **settings)
    params = softmax.uniform(model)(jax.random.key(0), np.float64(3.0))
    direction = jax.tree.map(np.cos, params)

    def curvature(objective, params, key):
        return jax.jvp(lambda params: jax.value_and_grad(objective.loss)(params, key), (params,), (direction,))

    objectives = (Sampled(task, model, B), ic.attended(task, model, B))
    wanted, found = (jax.jit(functools.partial(curvature, one))(params, jax.random.key(1)) for one in objectives)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), found, wanted)  # round-off


def test_a_large_batch_is_the_mean_of_its_pieces():
    task = ic.block_regression(N, ic.disjoint((D,)))
    model = softmax.softmax_attention(D, 1, query_attends_itself=False)
    params = softmax.uniform(model)(jax.random.key(0), np.float64(1.0))
    whole = jax.jit(ic.attended(task, model, 2 * attended.PIECE).loss)(params, jax.random.key(1))
    piece = jax.jit(ic.attended(task, model, attended.PIECE).loss)
    halves = [piece(params, key) for key in jax.random.split(jax.random.key(1))]
    np.testing.assert_allclose(whole, np.mean(halves), rtol=1e-12)  # round-off


def test_large_logits_do_not_overflow():
    task = ic.block_regression(N, ic.disjoint((D,)))
    model = softmax.softmax_attention(D, 1, query_attends_itself=False)
    params = softmax.manifold(model, task.blocks, np.ones((1, 1)), np.ones((1, 1)))(jax.random.key(0), np.float64(1e5))
    assert np.isfinite(jax.jit(ic.attended(task, model, B).loss)(params, jax.random.key(1)))


@pytest.mark.parametrize(
    ("model", "batch", "sentence"),
    [
        (softmax.softmax_attention(D, 1), B, "`model` must have query_attends_itself=False"),
        (
            softmax.softmax_attention(2, 1, query_attends_itself=False),
            B,
            "`model` must have the task's D = 3 and O = 1",
        ),
        (softmax.softmax_attention(D, 1, query_attends_itself=False), 0, "`batch` must be at least 1"),
    ],
)
def test_bad_arguments_are_named(model, batch, sentence):
    with pytest.raises(ic.BadArgument) as error:
        ic.attended(ic.block_regression(N, ic.disjoint((D,))), model, batch)
    assert sentence in str(error.value)
