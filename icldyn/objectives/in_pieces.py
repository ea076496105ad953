"""A batch cut in pieces, and gradients that are known without being derived."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

ROWS = 384  # at a time on a CPU: what a small transformer keeps of so many tokens stays in the second cache


def pieces_of(batch: int, rows: int) -> int:
    """Into how many equal pieces to cut a batch of so many rows each; one on an accelerator."""
    if jax.default_backend() != "cpu":
        return 1
    return next(n for n in range(1, batch + 1) if batch % n == 0 and (n == batch or batch // n * rows <= ROWS))


def handed(value: Array, params: Any, slopes: Any) -> Array:
    """`value`, with `slopes` for its gradient by `params`: plus a term that is 0 and has them."""
    linear = sum(jnp.sum(w * s) for w, s in zip(jax.tree.leaves(params), jax.tree.leaves(slopes), strict=True))
    return value + linear - lax.stop_gradient(linear)


def mean_of_pieces(loss: Callable[[Any, Array], Array], params: Any, batch: Array, pieces: int) -> Array:
    """Mean of loss(params, piece) over equal pieces of a batch, its gradient taken piece by piece.

    What a piece keeps for its gradient is as large as the piece: small ones leave it in the caches.
    """
    if pieces == 1:
        return loss(params, batch)
    fixed = lax.stop_gradient(params)
    cut = lax.stop_gradient(batch.reshape(pieces, -1, *batch.shape[1:]))

    def more(total, piece):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(fixed, piece)), None

    nothing = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(jax.value_and_grad(loss), fixed, cut[0])
    )
    (value, slopes), _ = lax.scan(more, nothing, cut)
    return handed(value / pieces, params, jax.tree.map(lambda a: a / pieces, slopes))
