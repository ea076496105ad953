"""A transformer of flax, attention-only or full, whose weights are one array a matrix with its heads in the first axis.

    A_h[t, s] = softmax_s((u_t + p_t) W_Q W_K^T (u_s + p_s)^T / sqrt(d_head)),   x_t <- x_t + sum_hs A_h[t, s] u_s W_V W_O,

with u = x, or its layer norm; then, if `hidden`, x <- x + act(u W_in + b_in) W_out + b_out. Logits are x W_U. Rows are tokens, as
in all of `icldyn.measures`. What says where a token stands, `positions`:
- "shortformer": one learned table p is added to what queries and keys see, in every layer; values and residual stream lack it;
- "absolute": a learned table is added to the embedding;
- "rotary": queries and keys are turned by t 10000^(-2i/d_head) in their planes (i, i + d_head/2);
- "relative": scores gain q_t . R[t - s], R learned in every layer, before the division by sqrt(d_head);
- "none".

Weights: "W_E" (k, d), "W_U" (d, outputs), a table "W_pos" (T, d), and in "layer_0", "layer_1", ... "W_Q", "W_K", "W_V"
(H, d, d_head), "W_O" (H, d_head, d), "R" (offsets, H, d_head). No biases but those of the hidden layer; norms have gains alone.
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .. import checks

POSITIONS = ("shortformer", "absolute", "rotary", "relative", "none")
ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu}


@dataclass(frozen=True)
class Transformer:
    """The network: its sizes and choices. Make one with `transformer`."""

    k: int
    T: int
    outputs: int
    layers: int
    d: int
    H: int
    d_head: int
    positions: str
    hidden: int
    activation: str
    norm: bool
    causal: bool
    std: float | None

    def start(self, key: Array, scale: Array) -> Any:
        """Initial weights, times scale, in its dtype: the `init` of an experiment."""
        weights = Network(self).init(key, jnp.zeros((1, self.T), jnp.int32), scale.dtype)
        return jax.tree.map(lambda w: scale * w, weights["params"])

    def logits(self, params: Any, tokens: Array) -> Array:
        """Logits (B, t, outputs) of tokens (B, t)."""
        return self.traced(params, tokens)[0]

    def traced(self, params: Any, tokens: Array) -> tuple[Array, Array]:
        """Logits, and where heads look, (layers, B, H, t, t), query before key."""
        logits, patterns = Network(self).apply({"params": params}, tokens)
        return logits, jnp.stack(patterns)

    def drawn(self, shape: tuple[int, ...], dtype: Any, width: int | None = None) -> tuple:
        """How a matrix starts, N(0, std^2), or N(0, 1/width) without a std; with its shape and dtype."""
        std = (width or self.d) ** -0.5 if self.std is None else self.std
        return nn.initializers.normal(std), shape, dtype


class Network(nn.Module):
    """Embedding, layers, logits."""

    of: Transformer

    @nn.compact
    def __call__(self, tokens: Array, dtype: Any = jnp.float32) -> tuple[Array, list[Array]]:
        """Logits (B, t, outputs) of tokens (B, t), and the patterns (B, H, t, t) of layers; `dtype` is that of new weights."""
        of, table = self.of, None
        x = _looked_up(self.param("W_E", *of.drawn((of.k, of.d), dtype)), tokens)
        if of.positions in ("shortformer", "absolute"):
            table = self.param("W_pos", *of.drawn((of.T, of.d), dtype))[: tokens.shape[1]]
        if of.positions == "absolute":
            x, table = x + table[None], None
        patterns = []
        for n in range(of.layers):
            x, A = Layer(of, dtype, name=f"layer_{n}")(x, table)
            patterns.append(A)
        x = _norm(x, "norm_final")(x) if of.norm else x
        return x @ self.param("W_U", *of.drawn((of.d, of.outputs), dtype, of.outputs)), patterns


class Layer(nn.Module):
    """One layer; takes x (B, t, d) and a table (t, d) or None, returns the next x and the patterns A (B, H, t, t)."""

    of: Transformer
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, table: Array | None) -> tuple[Array, Array]:
        """The next x, and where every token looked."""
        of, (d, H, e) = self.of, (self.of.d, self.of.H, self.of.d_head)
        u = _norm(x, "norm_attention")(x) if of.norm else x
        seen = u if table is None else u + table[None]
        shapes = {"W_Q": (H, d, e), "W_K": (H, d, e), "W_V": (H, d, e), "W_O": (H, e, d)}
        W_Q, W_K, W_V, W_O = (self.param(name, *of.drawn(shape, self.dtype)) for name, shape in shapes.items())
        q, k = (jnp.einsum("btd,hde->bhte", seen, W) for W in (W_Q, W_K))
        if of.positions == "rotary":
            q, k = turned(q), turned(k)
        scores = jnp.einsum("bhte,bhse->bhts", q, k)
        if of.positions == "relative":
            scores = scores + self._of_offsets(q)
        A = jax.nn.softmax(_masked(scores / math.sqrt(e), of.causal), axis=-1)
        mixed = jnp.einsum("bhts,bhse->bhte", A, jnp.einsum("bsd,hde->bhse", u, W_V))
        x = x + jnp.einsum("bhte,hed->btd", mixed, W_O)
        return x + self._hidden(x) if of.hidden else x, A

    def _of_offsets(self, q: Array) -> Array:
        """q_t . R[t - s], (B, H, t, t); offsets from 0 if causal, else from 1 - T."""
        of, t = self.of, q.shape[2]
        first = 0 if of.causal else of.T - 1
        R = self.param("R", *of.drawn((of.T + first, of.H, of.d_head), self.dtype))
        offset = np.arange(t)[:, None] - np.arange(t) + first
        return jnp.einsum("bhte,tshe->bhts", q, R[np.maximum(offset, 0)])

    def _hidden(self, x: Array) -> Array:
        """act(u W_in + b_in) W_out + b_out."""
        of, zeros = self.of, nn.initializers.zeros
        u = _norm(x, "norm_hidden")(x) if of.norm else x
        W_in = self.param("W_in", *of.drawn((of.d, of.hidden), self.dtype))
        W_out = self.param("W_out", *of.drawn((of.hidden, of.d), self.dtype))
        b_in = self.param("b_in", zeros, (of.hidden,), self.dtype)
        b_out = self.param("b_out", zeros, (of.d,), self.dtype)
        return ACTIVATIONS[of.activation](u @ W_in + b_in[None, None]) @ W_out + b_out[None, None]


def transformer(
    k: int,
    T: int,
    *,
    layers: int,
    d: int,
    H: int,
    d_head: int,
    outputs: int | None = None,
    positions: str = "shortformer",
    hidden: int = 0,
    activation: str = "relu",
    norm: bool = False,
    causal: bool = True,
    std: float | None = 0.02,
) -> Transformer:
    """A transformer on sequences of at most T of k tokens.

    Args:
        k: tokens that there are.
        T: the longest sequence.
        layers: how many.
        d: width of the residual stream.
        H: heads of a layer.
        d_head: width of a head; H d_head may differ from d.
        outputs: logits of a position, k unless said.
        positions: "shortformer", "absolute", "rotary", "relative" or "none".
        hidden: neurons of the hidden layer after attention; 0 for attention only.
        activation: "relu" or "gelu" of the hidden layer.
        norm: whether layer norms stand before attention, before the hidden layer and before W_U.
        causal: whether a token sees itself and those before it alone, or all.
        std: of all initial weights; None for 1/sqrt(d), and 1/sqrt(outputs) of W_U, as Nanda et al. 2023 have it.

    Raises:
        icldyn.BadArgument: if a size is below 1, or a head is turned that has an odd width.
    """
    sizes = {
        "k": k,
        "T": T,
        "layers": layers,
        "d": d,
        "H": H,
        "d_head": d_head,
        "outputs": k if outputs is None else outputs,
    }
    sizes = {name: checks.integer(name, size, 1) for name, size in sizes.items()}
    if checks.one_of("positions", positions, POSITIONS) == "rotary" and d_head % 2:
        raise checks.refuse("d_head", "be even for rotary positions", d_head)
    return Transformer(
        **sizes,
        positions=positions,
        hidden=checks.integer("hidden", hidden, 0),
        activation=checks.one_of("activation", activation, ACTIVATIONS),
        norm=bool(norm),
        causal=bool(causal),
        std=None if std is None else checks.real("std", std, least=0),
    )


def _norm(x: Array, name: str) -> nn.LayerNorm:
    """A layer norm with a gain and no bias."""
    of_type = {"dtype": x.dtype, "param_dtype": x.dtype}
    return nn.LayerNorm(use_bias=False, force_float32_reductions=False, name=name, **of_type)


def _looked_up(W: Array, tokens: Array) -> Array:
    """Rows of W (k, d); as a product where there are few, whose gradient is one as well and not a sum into places."""
    return jax.nn.one_hot(tokens, len(W), dtype=W.dtype) @ W if len(W) <= 128 else W[tokens]


def _masked(scores: Array, causal: bool) -> Array:
    """Scores (B, H, t, s), those of later tokens at -infinity."""
    if not causal:
        return scores
    t = scores.shape[-1]
    return jnp.where(np.tril(np.ones((t, t), bool))[None, None], scores, -jnp.inf)


def turned(q: Array) -> Array:
    """q (B, H, t, d_head) turned in the planes (i, i + d_head/2) by t 10000^(-2i/d_head)."""
    t, half = q.shape[2], q.shape[3] // 2
    angle = np.arange(t)[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = (jnp.asarray(f(angle), q.dtype)[None, None] for f in (np.cos, np.sin))
    a, b = q[..., :half], q[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
