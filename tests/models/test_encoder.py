import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic

B, K, N, n = 3, 7, 4, 5


@pytest.fixture(scope="module")
def net_and_weights():
    net = ic.encoder(N, layers=2, H=2, width=8, hidden=12)
    return net, net.init(jax.random.key(0), jnp.zeros((1, K, n)))


def normed(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def test_answers_are_those_of_the_layers_written_out(net_and_weights):
    net, weights = net_and_weights
    tokens = np.random.default_rng(0).normal(size=(B, K, n))
    w = jax.tree.map(np.asarray, weights["params"])
    (stacked,) = (w[name] for name in w if not name.startswith("Dense"))
    x = tokens @ w["Dense_0"]["kernel"] + w["Dense_0"]["bias"]
    for layer in range(2):
        p = jax.tree.map(lambda a, layer=layer: a[layer], stacked)
        attention = p["MultiHeadDotProductAttention_0"]
        q, k, v = (
            np.einsum("bkw,whe->bkhe", x[:, : None if name == "query" else N], attention[name]["kernel"])
            + attention[name]["bias"]
            for name in ("query", "key", "value")
        )
        scores = np.exp(np.einsum("bkhe,bnhe->bhkn", q, k) / 2)  # 4 dimensions a head
        seen = np.einsum("bhkn,bnhe->bkhe", scores / scores.sum(-1, keepdims=True), v)
        out = np.einsum("bkhe,hew->bkw", seen, attention["out"]["kernel"]) + attention["out"]["bias"]
        x = normed(x + out, p["LayerNorm_0"])
        inner = np.maximum(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], 0)
        x = normed(x + inner @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"], p["LayerNorm_1"])
    wanted = (x @ w["Dense_1"]["kernel"] + w["Dense_1"]["bias"])[..., 0]
    np.testing.assert_allclose(net.apply(weights, jnp.asarray(tokens)), wanted, rtol=1e-9, atol=1e-12)


def test_operations_are_those_that_the_compiler_counts():
    net = ic.encoder(8, layers=1, H=2, width=32, hidden=64)
    tokens = jnp.zeros((4, 24, 10))
    weights = net.init(jax.random.key(0), tokens)
    counted = jax.jit(net.apply).lower(weights, tokens).cost_analysis()["flops"]
    # norms, softmax and sums, which are not products, are a tenth at this size
    assert 3 * counted == pytest.approx(ic.encoder_flops(net, 4, 24, 10), rel=0.2)


def test_heads_that_do_not_split_the_width_are_refused():
    with pytest.raises(ic.BadArgument, match="`width` must be a multiple of `H`, 3, but is 8"):
        ic.encoder(4, H=3, width=8)
