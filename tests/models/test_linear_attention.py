import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic

TWO = ic.linear_attention(2)


@pytest.fixture(params=[True, False], ids=["query attends to itself", "query masked"])
def model(request):
    return ic.linear_attention(3, 2, query_attends_itself=request.param)


def weights(model, seed=0):
    return ic.gaussian(model)(jax.random.key(seed), jnp.float64(0.7))


def prompts(B=5, N=4):
    key_x, key_y, key_q = jax.random.split(jax.random.key(1), 3)
    x, y = jax.random.normal(key_x, (B, N, 3)), jax.random.normal(key_y, (B, N, 2))
    return x, y, jax.random.normal(key_q, (B, 3))


def test_the_answer_is_the_label_slot_of_the_querys_column(model):
    params, (x, y, x_q) = weights(model), prompts()
    for b in range(5):
        context = jnp.concatenate([x[b], y[b]], axis=1)
        Z = jnp.concatenate([context, jnp.append(x_q[b], jnp.zeros(2))[None]]).T
        np.testing.assert_allclose(model.apply(params, x, y, x_q)[b], model.forward(params, Z)[3:, -1], rtol=1e-12)


def test_only_four_blocks_have_a_gradient(model):
    x, y, x_q = prompts()
    grads = jax.grad(lambda w: jnp.sum(model.apply(w, x, y, x_q) ** 2))(weights(model))
    assert not np.any(grads["W_P"][:3]) and not np.any(grads["W_Q"][:, 3:])
    assert all(np.all(np.asarray(block) != 0) for block in model.blocks(grads))


def test_blocks_and_from_blocks_are_inverse(model):
    params = ic.from_blocks(*model.blocks(weights(model)))
    for one, other in zip(model.blocks(params), model.blocks(weights(model)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.any(params["W_P"][:3]) and not np.any(params["W_Q"][:, 3:])


def test_an_aligned_start_is_diagonal_in_the_eigenbasis_and_scaled():
    U = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    model = ic.linear_attention(3)
    params = ic.aligned(model, U, p=[1.0, 2.0, 3.0], q=0.5)(jax.random.key(0), jnp.float64(0.1))
    p1, p2, q1, q2 = model.blocks(params)
    np.testing.assert_allclose(U.T @ p2 @ U, np.diag([0.1, 0.2, 0.3]), atol=1e-15)
    np.testing.assert_allclose(U.T @ q1 @ U, 0.05 * np.eye(3), atol=1e-15)
    assert not np.any(p1) and not np.any(q2)


def test_gaussian_starts_have_the_scale_as_standard_deviation_and_may_leave_null_blocks():
    model = ic.linear_attention(3)
    keys = jax.random.split(jax.random.key(0), 20_000)
    full = jax.vmap(ic.gaussian(model), (0, None))(keys, jnp.float64(0.3))
    assert np.std(full["W_P"]) == pytest.approx(0.3, rel=0.01)  # 720k entries
    p1, p2, q1, q2 = model.blocks(ic.gaussian(model, null_blocks=False)(jax.random.key(1), jnp.float64(1.0)))
    assert not np.any(p1) and not np.any(q2) and np.all(p2 != 0) and np.all(q1 != 0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ic.linear_attention(0), "`D` must be at least 1, but is 0"),
        (lambda: ic.given(TWO, np.ones((4, 4)), np.ones((4, 3))), "`W_Q` must have shape (4, 4), but has shape (4, 3)"),
        (lambda: ic.given(TWO, np.ones((6, 6)), np.ones((6, 6))), "`W_P` must have shape (4, 4), but has shape (6, 6)"),
        (
            lambda: ic.given(TWO, np.full((4, 4), np.nan), np.ones((4, 4))),
            "`W_P` must be finite, but 16 entries are not",
        ),
        (lambda: ic.aligned(ic.linear_attention(3), p=[1.0, 2.0]), "`p` must have shape (3,), but has shape (2,)"),
        (lambda: ic.aligned(ic.linear_attention(3, 2)), "`model` must have O = 1 or O = D = 3"),
    ],
)
def test_a_bad_argument_is_named_in_one_sentence(call, sentence):
    with pytest.raises(ic.BadArgument) as caught:
        call()
    assert sentence in str(caught.value)
