"""A batch cut in pieces, and gradients that are known without being derived."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

ROWS = 384  # at a time on a CPU: what a small transformer keeps of so many tokens stays in the second cache


def on_cpu() -> bool:
    """Whether caches decide, and not how many operations are started."""
    return jax.default_backend() == "cpu"


def pieces_of(batch: int, rows: int) -> int:
    """Into how many equal pieces to cut a batch of so many rows each; one on an accelerator."""
    if not on_cpu():
        return 1
    return next(n for n in range(1, batch + 1) if batch % n == 0 and (n == batch or batch // n * rows <= ROWS))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def handed(value: Callable[[Any, Any], Array], known: Callable[[Any, Any], Any], params: Any, data: Any) -> Array:
    """value(params, data); where its gradient is asked for, known(params, data) is both. The data, an argument, have none."""
    return value(params, data)


def _handed(value: Callable[[Any, Any], Array], known: Callable[[Any, Any], Any], params: Any, data: Any) -> Any:
    return known(params, data)


def _scaled(value: Callable[[Any, Any], Array], known: Callable[[Any, Any], Any], slopes: Any, by_value: Array) -> Any:
    return jax.tree.map(lambda a: by_value * a, slopes), None


handed.defvjp(_handed, _scaled)


def mean_of_pieces(loss: Callable[[Any, Array], Array], params: Any, batch: Array, pieces: int) -> Array:
    """Mean of loss(params, piece) over equal pieces of a batch, its gradient taken piece by piece.

    What a piece keeps for its gradient is as large as the piece: small ones leave it in the caches. The batch has no gradient.
    """
    value, known = (functools.partial(_over_pieces, pieces, f) for f in (loss, jax.value_and_grad(loss)))
    return handed(value, known, params, batch)


def _over_pieces(pieces: int, function: Callable[[Any, Array], Any], params: Any, batch: Array) -> Any:
    """Mean of any function (params, piece) over the pieces."""
    if pieces == 1:
        return function(params, batch)
    cut = batch.reshape(pieces, -1, *batch.shape[1:])

    def more(total: Any, piece: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(params, piece)), None

    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(function, params, cut[0]))
    return jax.tree.map(lambda a: a / pieces, lax.scan(more, nothing, cut)[0])
