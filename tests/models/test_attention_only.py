import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.models import attention_only

T = 6


def weights_of(net):
    """Weights so large that attention is far from uniform."""
    shapes = jax.eval_shape(net.start, jax.random.key(0), jnp.asarray(1.0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 2 / np.sqrt(net.d)), shapes)


NETS = {
    "heads read tokens, then logits": ic.transformer(3, T, layers=2, d=16, H=2, d_head=4),
    "middle layers read values": ic.transformer(3, T, layers=3, d=64, H=2, d_head=4),
    "features outnumber the stream": ic.transformer(3, T, layers=3, d=8, H=3, d_head=4),
    "one layer": ic.transformer(3, T, layers=1, d=8, H=2, d_head=4),
    "tokens and outputs outnumber the head": ic.transformer(5, T, layers=2, d=8, H=2, d_head=3),
    "tokens outnumber the stream": ic.transformer(9, T, layers=2, d=4, H=2, d_head=2, outputs=2),
    "absolute positions": ic.transformer(3, T, layers=2, d=8, H=2, d_head=4, positions="absolute"),
    "rotary positions": ic.transformer(3, T, layers=2, d=8, H=2, d_head=4, positions="rotary"),
    "no positions": ic.transformer(3, T, layers=2, d=8, H=2, d_head=4, positions="none"),
    "every token sees all": ic.transformer(3, T, layers=2, d=8, H=2, d_head=4, causal=False),
}


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize("t", [T, 5])
def test_one_sequence_has_the_logits_of_the_network_and_their_gradients(net, t):
    tokens = jnp.asarray(np.random.default_rng(1).integers(net.k, size=t))
    pull = jnp.asarray(np.random.default_rng(2).normal(size=(t, net.outputs)))

    def whole(params):
        return net.logits(params, tokens[None])[0]

    def by_folds(params):
        return attention_only.logits(net, attention_only.folded(net, params), tokens).T

    params = weights_of(net)
    wanted, found = (
        jax.jit(jax.value_and_grad(lambda params, f=f: jnp.sum(pull * f(params)), argnums=0))(params)
        for f in (whole, by_folds)
    )
    np.testing.assert_allclose(jax.jit(by_folds)(params), jax.jit(whole)(params), rtol=0, atol=1e-11)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), found, wanted)  # round-off


def test_products_of_a_sequence_are_no_larger_than_they_must_be():
    net = NETS["heads read tokens, then logits"]
    shapes = jax.tree.map(jnp.shape, attention_only.folded(net, weights_of(net)))
    rows = 2 * net.H * net.d_head
    assert shapes["layer_0"] == {
        "W": (rows, 3),
        "W_T": (3, rows),
        "place": (rows, T),
    }  # tables of tokens and of places, no values
    features = net.k * (1 + net.H)  # the tokens, and how often a head reads each
    assert shapes["layer_1"]["W"] == (rows + net.H * net.outputs, features)  # and what every head gives the logits
    assert shapes["end"] == (net.outputs, features)


@pytest.mark.parametrize("t", [1, 2, 7, 9, 64, 65])
def test_attention_takes_the_largest_score_of_any_number_of_places(t):
    y = jnp.asarray(
        np.random.default_rng(t).normal(size=(2 * 3 + 2, t)) * 400
    )  # exp overflows, unless the largest is taken off
    read = np.asarray(jax.jit(attention_only.heads_read, static_argnums=(2, 3, 4))(y, None, 1, 3, True))[0]
    q, k, v = np.split(np.asarray(y), [3, 6])
    for place in range(t):
        scores = q[:, place] @ k[:, : place + 1]
        A = np.exp(scores - scores.max())
        np.testing.assert_allclose(read[:, place], v[:, : place + 1] @ A / A.sum(), rtol=1e-9)


@pytest.mark.parametrize(
    "setting", [{"hidden": 4}, {"norm": True}, {"positions": "relative"}], ids=["a hidden layer", "norms", "offsets"]
)
def test_other_networks_are_not_folded(setting):
    assert not attention_only.folds(ic.transformer(3, T, layers=2, d=8, H=2, d_head=4, **setting))
