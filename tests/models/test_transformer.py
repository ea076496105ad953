import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.models.transformer import POSITIONS

B, K, T = 3, 5, 6


def weights_of(net, seed=0):
    """Weights of order 1, so that attention is far from uniform; gains and biases too."""
    shapes = jax.eval_shape(net.start, jax.random.key(0), jnp.asarray(1.0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.normal(size=a.shape) * 0.7, shapes)


def normed(x, gain):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * gain["scale"]


def turned(q, t):
    """As complex numbers."""
    half = len(q) // 2
    z = (q[:half] + 1j * q[half:]) * np.exp(1j * t * 10000.0 ** (-2 * np.arange(half) / len(q)))
    return np.concatenate([z.real, z.imag])


def written_out(net, w, tokens):
    """One sequence, token by token and head by head: logits and patterns."""
    n, places = len(tokens), net.positions
    table = w["W_pos"] if "W_pos" in w else np.zeros((n, net.d))
    x = np.stack([w["W_E"][token] for token in tokens])
    if places == "absolute":
        x, table = x + table[:n], np.zeros((n, net.d))
    patterns = np.zeros((net.layers, net.H, n, n))
    for layer in range(net.layers):
        p = w[f"layer_{layer}"]
        u = normed(x, p["norm_attention"]) if net.norm else x
        out = x.copy()
        for h in range(net.H):
            for t in range(n):
                score = np.full(n, -np.inf)
                for s in range(t + 1 if net.causal else n):
                    q, k = (u[t] + table[t]) @ p["W_Q"][h], (u[s] + table[s]) @ p["W_K"][h]
                    if places == "rotary":
                        q, k = turned(q, t), turned(k, s)
                    score[s] = q @ k
                    if places == "relative":
                        score[s] += q @ p["R"][t - s + (0 if net.causal else net.T - 1), h]
                A = np.exp((score - score.max()) / np.sqrt(net.d_head))
                patterns[layer, h, t] = A / A.sum()
                out[t] += patterns[layer, h, t] @ u @ p["W_V"][h] @ p["W_O"][h]
        x = out
        if net.hidden:
            u = normed(x, p["norm_hidden"]) if net.norm else x
            x = x + np.maximum(u @ p["W_in"] + p["b_in"], 0) @ p["W_out"] + p["b_out"]
    return (normed(x, w["norm_final"]) if net.norm else x) @ w["W_U"], patterns


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("positions", POSITIONS)
def test_logits_and_patterns_are_those_of_the_layers_written_out(positions, full):
    more = {"hidden": 7, "norm": True, "causal": False, "outputs": 4} if full else {}
    net = ic.transformer(K, T + 1, layers=2, d=6, H=2, d_head=4, positions=positions, **more)
    w, tokens = weights_of(net), np.random.default_rng(1).integers(0, K, (B, T))
    logits, patterns = net.traced(w, jnp.asarray(tokens))
    for b in range(B):
        wanted, seen = written_out(net, w, tokens[b])
        np.testing.assert_allclose(logits[b], wanted, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(patterns[:, b], seen, rtol=1e-9, atol=1e-13)


def test_many_tokens_are_looked_up_as_few_are():
    """Above 128 rows are picked, below they are a product."""
    few, many = (ic.transformer(k, T, layers=1, d=4, H=1, d_head=4, outputs=3) for k in (128, 129))
    w, tokens = weights_of(many), jnp.arange(T)[None]
    fewer = w | {"W_E": w["W_E"][:128]}
    np.testing.assert_allclose(many.logits(w, tokens), few.logits(fewer, tokens), rtol=1e-12)


def test_gelu_is_not_relu():
    nets = [ic.transformer(K, T, layers=1, d=4, H=1, d_head=4, hidden=8, activation=a) for a in ("relu", "gelu")]
    w, tokens = weights_of(nets[0]), jnp.arange(K)[None]
    a, b = (net.logits(w, tokens) for net in nets)
    assert 1e-3 < np.abs(a - b).max() < 1  # they differ by at most 0.17 a neuron


def count(net):
    return sum(w.size for w in jax.tree.leaves(jax.eval_shape(net.start, jax.random.key(0), jnp.asarray(1.0))))


def test_parameters_are_counted_as_in_the_notes():
    small = [ic.transformer(8, 48, layers=L, d=32, H=2, d_head=8) for L in (1, 2, 3, 4)]
    assert [count(net) for net in small] == [4096, 6144, 8192, 10240]
    normed = [ic.transformer(8, 48, layers=L, d=32, H=2, d_head=8, norm=True) for L in (1, 2, 3, 4)]
    assert [count(net) for net in normed] == [4160, 6240, 8320, 10400]
    one_head = {"d": 32, "H": 1, "d_head": 32, "positions": "relative"}
    assert count(ic.transformer(8, 64, layers=2, **one_head)) == 12800
    assert [count(ic.transformer(3, 64, layers=L, **one_head)) for L in (1, 2)] == [6336, 12480]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_weights_have_the_asked_spread_and_the_dtype_of_their_scale(dtype):
    net = ic.transformer(50, 40, layers=2, d=32, H=2, d_head=16, hidden=64)
    w = net.start(jax.random.key(1), jnp.asarray(0.5, dtype))
    assert {a.dtype.name for a in jax.tree.leaves(w)} == {dtype}
    assert np.std(w["layer_1"]["W_in"]) == pytest.approx(0.01, rel=0.06)  # 2048 draws: 4 standard errors
    assert not np.any(w["layer_0"]["b_in"]) and not np.allclose(w["layer_0"]["W_Q"], w["layer_1"]["W_Q"])
    assert net.logits(w, jnp.zeros((1, 3), int)).dtype.name == dtype
    wide = ic.transformer(50, 40, layers=1, d=32, H=2, d_head=16, outputs=200, std=None)
    w = wide.start(jax.random.key(1), jnp.asarray(1.0, dtype))
    assert np.std(w["W_E"]) == pytest.approx(32**-0.5, rel=0.08)
    assert np.std(w["W_U"]) == pytest.approx(200**-0.5, rel=0.04)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layers": 0}, "`layers` must be at least 1, but is 0"),
        ({"positions": "rotory"}, "`positions` must be one of .*did you mean 'rotary'"),
        ({"positions": "rotary", "d_head": 3}, "`d_head` must be even for rotary positions, but is 3"),
        ({"activation": "tanh"}, "`activation` must be one of gelu, relu"),
        ({"std": -1.0}, "`std` must be finite and not negative"),
    ],
)
def test_what_is_no_transformer_is_refused(settings, sentence):
    with pytest.raises(ic.BadArgument, match=sentence):
        ic.transformer(**({"k": K, "T": T, "layers": 1, "d": 4, "H": 1, "d_head": 2} | settings))
