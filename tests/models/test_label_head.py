import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icldyn import BadArgument
from icldyn.models.label_head import label_head, zeros
from icldyn.models.softmax_attention import softmax_attention

D, N, B = 3, 5, 4


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_it_is_softmax_attention_with_value_1_on_the_label_and_no_label_row(rng):
    Q, x, y, x_q = (rng.normal(size=shape) for shape in ((D, D), (B, N, D), (B, N, 1), (B, D)))
    params = {"v": np.eye(D + 1)[None, -1], "U": np.concatenate([Q, np.zeros((1, D))])[None]}
    wanted = softmax_attention(D, query_attends_itself=False).apply(params, x, y, x_q)
    np.testing.assert_allclose(label_head(D).apply({"Q": Q}, x, y, x_q), wanted, rtol=1e-12)  # round-off


def test_equal_tokens_share_their_attention(rng):
    params, w = {"Q": rng.normal(size=(D, D))}, rng.normal(size=(B, D))
    tokens, x_q = rng.integers(D, size=(B, N)), np.eye(D)[rng.integers(D, size=B)]
    x, y = np.eye(D)[tokens], np.take_along_axis(w, tokens, axis=1)[:, :, None]
    a = label_head(D).attention(params, jnp.asarray(x.sum(1).T), x_q.T)
    yhat = label_head(D).apply(params, x, y, x_q)[:, 0]
    np.testing.assert_allclose(jnp.sum(a * w.T, axis=0), yhat, rtol=1e-12)  # round-off


def test_absent_tokens_have_no_attention_and_no_gradient_however_strong():
    n, x_q = jnp.array([[0.0], [2.0], [3.0]]), jnp.array([[1.0], [0.0], [0.0]])
    model, Q = label_head(D), jnp.array([[1e4, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    a, grad = jax.value_and_grad(lambda Q: model.attention({"Q": Q}, n, x_q)[1, 0])(Q)
    share = 2 * np.e / (2 * np.e + 3)
    assert a == pytest.approx(share, rel=1e-12)
    np.testing.assert_allclose(grad[:, 0], share * (1 - share) * np.array([0, 1, -1]), atol=1e-12)


def test_every_seed_starts_at_zero():
    assert not np.any(zeros(label_head(D))(jax.random.key(0), jnp.float64(1))["Q"])


def test_a_size_that_cannot_be_is_refused_by_name():
    with pytest.raises(BadArgument, match="Argument `D` must be at least 1, but is 0"):
        label_head(0)
