"""Optimisers that optax does not have ready: AdamW with warm-up for params that hold data, and steps that keep to a subspace.

Each is a function of the learning rate: bind the rest, as in `functools.partial(adamw, weight_decay=1.0)`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from .. import checks
from ..measures import fourier
from .descend import OptimiserFactory

SIDES = ("inside", "outside")


def adamw(
    lr: Array,
    *,
    weight_decay: float,
    b1: float = 0.9,
    b2: float = 0.98,
    warm_up: int = 10,
    held: tuple[str, ...] = ("order", "shuffle"),
) -> optax.GradientTransformation:
    """AdamW at rates lr min(step / warm_up, 1), step = 0, 1, ...; arrays named in `held` are data and do not decay."""

    def decays(params: Mapping[str, Any]) -> dict[str, bool]:
        return {name: name not in held for name in params}

    def rate(step: Array) -> Array:
        return lr * jnp.minimum(step / warm_up, 1.0)

    return optax.adamw(rate if warm_up else lr, b1, b2, weight_decay=weight_decay, mask=decays)


class Steered(NamedTuple):
    """State of `steered`: steps done, the frequencies chosen (M,), the state of the optimiser inside."""

    step: Array
    chosen: Array
    inner: Any


def steered(
    lr: Array, *, inner: OptimiserFactory, first: int, count: int, side: str = "inside", shuffled: bool = False
) -> optax.GradientTransformation:
    """Training that from step `first` on keeps the embedding of p tokens to a subspace of R^p, found at that step.

        W_E[:p] <- Q (W_E[:p] + update),    Q = P + 1 1^T/p ("inside") or I - P ("outside"),

    P the projector on cos and sin of the `count` frequencies that have most power in the seed's own W_E[:p] at step `first`.
    With `shuffled` tokens change places in Q by the permutation that the params hold, "shuffle" (p,): a random subspace of the
    same dimension, for the null distribution.

    Raises:
        icldyn.BadArgument: if `side` is neither, or `count` or `first` is below 1.
    """
    checks.one_of("side", side, SIDES), checks.integer("count", count, 1), checks.integer("first", first, 1)
    optimiser = inner(lr)

    def init(params):
        p = len(params["shuffle"])
        nothing = jnp.zeros((p - 1) // 2, params["W_E"].dtype)
        return Steered(jnp.zeros((), jnp.int32), nothing, optimiser.init(params))

    def update(grads, state, params):
        updates, now = optimiser.update(grads, state.inner, params)
        p, W = len(params["shuffle"]), params["W_E"]
        found = fourier.leading(fourier.power(W[:p]), count)
        chosen = jnp.where(state.step == first, found, state.chosen)
        Q = fourier.projector(chosen)
        Q = Q + 1 / p if side == "inside" else jnp.eye(p, dtype=Q.dtype) - Q
        if shuffled:
            place = params["shuffle"].astype(jnp.int32)
            Q = Q[place[:, None], place[None]]
        moved = (W + updates["W_E"]).at[:p].set(Q @ (W + updates["W_E"])[:p])
        step = jnp.where(state.step >= first, moved - W, updates["W_E"])
        return updates | {"W_E": step}, Steered(state.step + 1, chosen, now)

    return optax.GradientTransformation(init, update)
