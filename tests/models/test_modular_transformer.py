import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

import icldyn as ic
from icldyn.models.modular_transformer import modular_transformer


def three_tokens(params, a, b):
    """Logits at "=" of the sequence (a, b, =), token by token and head by head, in numpy."""
    w = {name: np.asarray(value) for name, value in params.items()}
    p = w["W_U"].shape[1]
    x = w["W_E"][[a, b, p]] + w["W_pos"]  # (3, d)
    z = x[2].copy()
    for W_Q, W_K, W_V, W_O in zip(w["W_Q"], w["W_K"], w["W_V"], w["W_O"], strict=True):
        q, K, V = x[2] @ W_Q, x @ W_K, x @ W_V
        z += softmax(K @ q / np.sqrt(len(q))) @ V @ W_O
    hidden = np.maximum(z @ w["W_in"] + w["b_in"], 0)
    return (z + hidden @ w["W_out"] + w["b_out"]) @ w["W_U"]


@pytest.fixture
def drawn():
    net = modular_transformer(7, d=12, H=3, d_head=5, d_mlp=9)
    params = net.init(jax.random.key(0), jnp.float64(1.5))
    params["b_in"], params["b_out"] = (jax.random.normal(jax.random.key(k), (n,)) for k, n in ((1, 9), (2, 12)))
    return net, params


def test_tables_over_tokens_answer_as_the_transformer_does(drawn):
    net, params = drawn
    a, b = (jnp.asarray(c.ravel()) for c in np.indices((7, 7)))
    wanted = [three_tokens(params, m, n) for m, n in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_allclose(net.apply(params, a, b), wanted, rtol=1e-10, atol=1e-12)


def test_gradients_of_queries_and_keys_have_rank_one(drawn):
    net, params = drawn
    a, b = (jnp.asarray(c.ravel()) for c in np.indices((7, 7)))
    slope = jax.grad(lambda w: jnp.sum(jnp.sin(net.apply(w, a, b))))(params)
    for name in ("W_Q", "W_K"):
        s = np.linalg.svd(slope[name], compute_uv=False)  # (H, d_head)
        assert (s[:, 0] > 1e-6).all() and (s[:, 1] < 1e-10 * s[:, 0]).all()
    assert (np.linalg.svd(slope["W_V"], compute_uv=False)[:, 1] > 1e-3).all()


def test_initial_weights_have_the_spread_said():
    params = modular_transformer(53).init(jax.random.key(0), jnp.float32(1))
    assert sum(w.size for w in params.values()) == 54 * 64 + 3 * 64 + 4 * 4 * 64 * 16 + 2 * 64 * 256 + 320 + 64 * 53
    for name, w in params.items():
        wanted = 0 if name.startswith("b_") else (53 if name == "W_U" else 64) ** -0.5
        assert w.dtype == jnp.float32
        np.testing.assert_allclose(np.std(w), wanted, rtol=5 / np.sqrt(w.size))  # 7 standard errors


def test_a_size_below_one_is_refused():
    with pytest.raises(ic.BadArgument, match="`d_head` must be at least 1, but is 0"):
        modular_transformer(7, d_head=0)
