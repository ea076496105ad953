import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.models.looped_attention import constant, looped


def contexts(D=4, P=6, B=3):
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, P, D)), rng.normal(size=(B, P, 1)), rng.normal(size=(B, D)), rng.normal(size=(D, D))


@pytest.mark.parametrize("L", [1, 2, 5])
def test_the_answer_of_the_tokens_is_the_sum_over_powers(L):
    x, y, x_q, Gamma = contexts()
    found = looped(4, L, "matrix").apply({"w": jnp.asarray(Gamma)}, *map(jnp.asarray, (x, y, x_q)))
    for b in range(3):
        C, Xy = x[b].T @ x[b] / 6, x[b].T @ y[b, :, 0]
        powers = sum(np.linalg.matrix_power(np.eye(4) - C @ Gamma / L, k) for k in range(L))
        np.testing.assert_allclose(found[b, 0], x_q[b] @ Gamma @ powers @ Xy / (L * 6), rtol=1e-10)  # rounding


def test_depth_1_is_linear_attention_that_does_not_see_its_query():
    x, y, x_q, Gamma = map(jnp.asarray, contexts())
    zero = jnp.zeros((1, 4)), jnp.zeros((1, 4))
    layer = ic.linear_attention(4, 1, query_attends_itself=False)
    answer = layer.apply(ic.from_blocks(zero[0], jnp.ones((1, 1)), Gamma.T, zero[1]), x, y, x_q)
    np.testing.assert_allclose(looped(4, 1, "matrix").apply({"w": Gamma}, x, y, x_q), answer, rtol=1e-10)


def test_scalar_diagonal_and_matrix_weights_of_the_same_gamma_answer_alike():
    x, y, x_q, _ = map(jnp.asarray, contexts())
    models = {"scalar": (5, 1.1), "diagonal": (1, 1.1**5), "matrix": (1, 1.1**5)}
    answers = []
    for kind, (power, w) in models.items():
        model = looped(4, 3, kind, power)
        params = constant(model, w)(jax.random.key(0), jnp.asarray(1.0))
        assert params["w"].shape == model.shape
        answers.append(model.apply(params, x, y, x_q))
    np.testing.assert_allclose(answers[1:], [answers[0]] * 2, rtol=1e-12)


def test_a_start_is_multiplied_by_the_scale():
    params = constant(looped(2, 1, "diagonal"), [1.0, 3.0])(jax.random.key(0), jnp.asarray(0.5))
    np.testing.assert_allclose(params["w"], [0.5, 1.5])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: looped(0, 1), "`D` must be at least 1"),
        (lambda: looped(3, 0), "`L` must be at least 1"),
        (lambda: looped(3, 1, "tensor"), "`kind` must be one of"),
        (lambda: looped(3, 1, "matrix", 5), "`power` must be 1 for kind 'matrix'"),
        (lambda: constant(looped(3, 1, "diagonal"), [1.0]), "`w` must have shape"),
        (lambda: looped(3, 1, "diagonal").precondition({"w": jnp.ones(2)}, jnp.ones((3, 1))), "of shape (3,)"),
    ],
)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises(ic.BadArgument) as error:
        call()
    assert sentence in str(error.value)
