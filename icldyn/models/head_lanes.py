"""Heads of many seeds side by side, the seeds in the last axis: their folded weights, and the gradient back to the heads.

The same sums as `Heads.kernel` and its transpose, written out over heads, pairs and directions: every one is then a loop over
seeds, which fills the vector lanes of a CPU. `jax.vmap` puts seeds first for such tiny contractions, five times as slow.
Weights are those of `Heads.shapes` with one more axis, S; folded weights are (n, D, S), the transpose of `Heads.kernel`.
"""

from collections.abc import Iterable

import jax.numpy as jnp
from jax import Array, lax

from .heads import Heads, pair_number
from .linear_attention import Params

WRITTEN_OUT = 256  # terms of one sum at most: more would only take longer to compile


def fold_lanes(model: Heads, params: Params) -> Array:
    """`Heads.kernel` of every seed, transposed: (n, D, S)."""
    v, Q = params["v"], _key_query(model, params)
    if model.zero_blocks:
        return total(v[h, None, None] * Q[h] for h in range(model.H))

    def terms(a: int, h: int) -> Array:
        return v[h, a, None, None] * Q[h, a + 1 :] + v[h, a + 1 :, None] * Q[h, a, None]

    rows = []
    for a in range(model.D + 1):
        rows.append(total(v[h, a, None] * Q[h, a] for h in range(model.H))[None])
        if a < model.D:
            rows.append(total(terms(a, h) for h in range(model.H)))
    return jnp.concatenate(rows)


def unfold_lanes(model: Heads, params: Params, slope: Array) -> Params:
    """dL/dweights from slope (n, D, S) = dL/dkernel, transposed."""
    v, Q, n = params["v"], _key_query(model, params), model.D + 1
    if model.zero_blocks:
        down = {"v": _products(slope[None], Q)}
        dQ = v[:, None, None] * slope[None]
    else:
        G = lax.optimization_barrier(slope[pair_number(n)])  # (n, n, D, S)
        down = {"v": jnp.stack([_products(G[a][None], Q) for a in range(n)], 1)}
        dQ = total(v[:, a, None, None] * G[a][None] for a in range(n))
    if model.R is None:
        return down | {"U": dQ}
    K, q = params["K"], params["Q"]
    dK = total(dQ[:, None, :, k] * q[:, :, k, None] for k in range(model.D))
    return down | {"K": dK, "Q": total(dQ[:, None, a] * K[:, :, a, None] for a in range(K.shape[2]))}


def total(terms: Iterable[Array]) -> Array:
    """Their sum, from left to right."""
    first, *others = terms
    for term in others:
        first = first + term
    return first


def _key_query(model: Heads, params: Params) -> Array:
    """`Heads.key_query`: (H, D or D+1, D, S)."""
    if model.R is None:
        return params["U"]
    return total(params["K"][:, r, :, None] * params["Q"][:, r, None] for r in range(model.R))


def _products(a: Array, b: Array) -> Array:
    """sum_ij a_hij b_hij, (H, S)."""
    rows, columns = b.shape[1:3]
    if rows * columns > WRITTEN_OUT:
        return jnp.sum(a * b, (1, 2))
    return total(a[:, i, j] * b[:, i, j] for i in range(rows) for j in range(columns))
