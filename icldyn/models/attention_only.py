"""An attention-only `transformer` without norms, one sequence at a time and by few products: what a core of a CPU does best.

All that layers do to the residual stream is linear in it but for the patterns A. So products of weights are taken once a step
(`folded`), before any sequence, and a sequence (`logits`) carries features F (f, t), tokens last, of which the stream is M F:
- at first F is the one-hot tokens (k, t) and M is W_E^T;
- a layer takes queries, keys and values of its heads by one product, (W M) F, and appends what heads read to F, and W_O^T to M;
- heads of the first layer read the tokens themselves, A one-hot, where k <= d_head: M gains (W_E W_V W_O)^T;
- heads of the last layer read (W_V W_O W_U)^T M F, which are logits, where there are at most d_head of these;
- with more features than d the stream itself is taken, F = M F.

The logits are those of `icldyn.models.transformer`, up to rounding. The gradient of attention is by hand (`heads_read`): softmax
keeps exp(scores - max), a row of ones among the values gives its sums, and its gradient is one product more and no sum.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .transformer import Transformer, turned

FOLDED = ("shortformer", "absolute", "rotary", "none")  # "relative" adds to scores what depends on both places


def folds(net: Transformer) -> bool:
    """Whether a network is of this kind."""
    return not net.hidden and not net.norm and net.positions in FOLDED


def folded(net: Transformer, params: Any) -> dict[str, Any]:
    """Products of the weights: W M and M of every layer, and W_U^T M."""
    place = params["W_pos"].T if "W_pos" in params else None
    M: Array | None = params["W_E"].T
    out: dict[str, Any] = {}
    if net.positions == "absolute" or net.k > net.d:
        out["start"], M = M, None
    if net.positions == "absolute":
        out["place"] = place
    for n in range(net.layers):
        given, kind = params[f"layer_{n}"], _read(net, n)
        rows = [_rows(given["W_Q"]) / math.sqrt(net.d_head), _rows(given["W_K"])]
        added = _rows(given["W_O"].swapaxes(1, 2)).T
        if kind == "tokens":
            added = jnp.einsum("kd,hde,hef->fhk", params["W_E"], given["W_V"], given["W_O"]).reshape(net.d, -1)
        elif kind == "logits":
            rows += [jnp.einsum("hde,hef,fo->hod", given["W_V"], given["W_O"], params["W_U"]).reshape(-1, net.d)]
        else:
            rows += [_rows(given["W_V"])]
        W = _times(jnp.concatenate(rows), M)
        layer = {"W": W, "W_T": W.T}
        if net.positions == "shortformer":
            seen = jnp.concatenate(rows[:2]) @ place
            layer["place"] = jnp.pad(seen, ((0, len(W) - len(seen)), (0, 0)))
        if kind != "logits":
            M = jnp.concatenate([jnp.eye(net.d, dtype=added.dtype) if M is None else M, added], axis=1)
            if M.shape[1] > net.d:
                layer["M"], M = M, None
        out[f"layer_{n}"] = layer
    return out | {"end": _times(params["W_U"].T, M)}


def logits(net: Transformer, weights: dict[str, Any], tokens: Array) -> Array:
    """Logits (outputs, t) of tokens (t,), from `folded` weights."""
    H, e, t = net.H, net.d_head, len(tokens)
    seen = jax.nn.one_hot(tokens, net.k, axis=0, dtype=weights["end"].dtype)
    F, read = seen, None
    if "start" in weights:
        F = weights["start"] @ F
    if "place" in weights:
        F = F + weights["place"][:, :t]
    for n in range(net.layers):
        layer, kind = weights[f"layer_{n}"], _read(net, n)
        y = product(layer["W"], layer["W_T"], F)
        if "place" in layer:
            y = y + layer["place"][:, :t]
        if net.positions == "rotary":
            y = jnp.concatenate([_turned(y[: 2 * H * e], e), y[2 * H * e :]])
        read = heads_read(y, seen if kind == "tokens" else None, H, e, net.causal)
        if kind != "logits":
            F = jnp.concatenate([F, read.reshape(-1, t)])
            F = layer["M"] @ F if "M" in layer else F
    out = weights["end"] @ F
    return out + read.sum(0) if _read(net, net.layers - 1) == "logits" else out


@jax.custom_vjp
def product(W: Array, W_T: Array, F: Array) -> Array:
    """W F, with W^T at hand for its gradient by F: a CPU multiplies slowly by a matrix that lies the other way."""
    return W @ F


def _product(W: Array, W_T: Array, F: Array) -> tuple[Array, tuple[Array, Array]]:
    return W @ F, (W_T, F)


def _product_slopes(kept: tuple[Array, Array], slope: Array) -> tuple[Array, Array, Array]:
    W_T, F = kept
    return slope @ F.T, jnp.zeros_like(W_T), W_T @ slope


product.defvjp(_product, _product_slopes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def heads_read(y: Array, seen: Array | None, H: int, e: int, causal: bool) -> Array:
    """What heads read, sum_s softmax_s(q_t . k_s) v_s, (H, m, t).

    The rows of y (rows, t) are those of q and of k, H e each, and of v, H m; or v is `seen` (m, t), which has no gradient.
    """
    return _heads_read(y, seen, H, e, causal)[0]


def _heads_read(y: Array, seen: Array | None, H: int, e: int, causal: bool) -> tuple[Array, tuple[Array, ...]]:
    t = y.shape[1]
    q, k = y[: 2 * H * e].reshape(2, H, e, t)
    v = y[2 * H * e :].reshape(H, -1, t) if seen is None else jnp.broadcast_to(seen[None], (H, *seen.shape))
    scores = jnp.einsum("hes,het->hst", k, q)
    if causal:
        scores = jnp.where(np.triu(np.ones((t, t), bool))[None], scores, -jnp.inf)
    P = jnp.exp(scores - _largest(scores))
    sums = jnp.einsum("hms,hst->hmt", jnp.concatenate([v, jnp.ones_like(v[:, :1])], axis=1), P)
    weight = 1 / sums[:, -1:]
    read = sums[:, :-1] * weight
    return read, (q, k, v, P, read, weight, seen)


def _slopes(H: int, e: int, causal: bool, kept: tuple[Array, ...], slope: Array) -> tuple[Array, None]:
    """By y: dL/dscores_st = A_st (slope_t . v_s - slope_t . read_t), the second term by the row of ones in v."""
    q, k, v, P, read, weight, seen = kept
    g = slope * weight
    g_and_mean = jnp.concatenate([g, -jnp.sum(g * read, axis=1, keepdims=True)], axis=1)
    v = jnp.concatenate([v.swapaxes(1, 2), jnp.ones_like(v[:, :1].swapaxes(1, 2))], axis=2)
    by_scores = P * jnp.einsum("hsm,hmt->hst", v, g_and_mean)
    slopes = [jnp.einsum("hes,hst->het", k, by_scores), jnp.einsum("het,hst->hes", q, by_scores)]
    if seen is None:
        slopes.append(jnp.einsum("hmt,hst->hms", g, P))
    return jnp.concatenate([slope.reshape(-1, slope.shape[2]) for slope in slopes]), None


heads_read.defvjp(_heads_read, _slopes)


def _largest(scores: Array) -> Array:
    """Over s of (H, s, t), kept: by halves, which may overlap and which vectors take, until few are left."""
    while scores.shape[1] > 8:
        half = (scores.shape[1] + 1) // 2
        scores = jnp.maximum(scores[:, :half], scores[:, -half:])
    return jnp.max(scores, axis=1, keepdims=True)


def _read(net: Transformer, n: int) -> str:
    """What heads of a layer read: "tokens", "logits" or "values"."""
    if n == 0 and net.k <= net.d_head and net.positions != "absolute":
        return "tokens"
    return "logits" if n == net.layers - 1 and net.outputs <= net.d_head else "values"


def _turned(qk: Array, e: int) -> Array:
    """Rows (2 H e, t) of queries and keys, turned by their places."""
    heads = qk.reshape(1, -1, e, qk.shape[1]).swapaxes(2, 3)
    return turned(heads).swapaxes(2, 3).reshape(qk.shape)


def _rows(W: Array) -> Array:
    """Columns of (H, d, e) as rows (H e, d)."""
    return W.swapaxes(1, 2).reshape(-1, W.shape[1])


def _times(W: Array, M: Array | None) -> Array:
    return W if M is None else W @ M
