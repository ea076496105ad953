"""Optimisers that optax does not have ready: AdamW with warm-up for params that hold data, and steps that keep to a subspace.

Each is a function of the learning rate: bind the rest, as in `functools.partial(adamw, weight_decay=1.0)`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from numpy.typing import ArrayLike

from .. import checks
from ..measures import fourier
from .descend import OptimiserFactory

HELD = ("order", "first", "inside", "shuffle")  # data among the params


def adamw(
    lr: Array,
    *,
    weight_decay: float,
    b1: float = 0.9,
    b2: float = 0.98,
    warm_up: int = 10,
    held: tuple[str, ...] = HELD,
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


def steering(first: ArrayLike, inside: ArrayLike, shuffle: Array) -> dict[str, Array]:
    """What `steered` is told by the params: add it to those of a seed. Values change without compiling anew.

    Args:
        first: the step from which on the embedding keeps to its subspace.
        inside: whether that is the span of the leading frequencies and the constant, or all that is outside of them.
        shuffle: (p,) a permutation of the tokens; 0, 1, ... for the seed's own subspace.
    """
    told = {"first": first, "inside": inside, "shuffle": shuffle}
    return {name: jnp.asarray(value).astype(shuffle.dtype) for name, value in told.items()}


def steered(lr: Array, *, inner: OptimiserFactory, count: int) -> optax.GradientTransformation:
    """Training that from a step on keeps the embedding of p tokens to a subspace of R^p, found at that step.

        W_E[:p] <- Q (W_E[:p] + update),    Q = P + 1 1^T/p (inside) or I - P (outside),

    P the projector on cos and sin of the `count` frequencies that have most power in the seed's own W_E[:p] then. The params
    hold `steering`: the step, the side, and a permutation by which tokens change places in Q. A random one makes it a random
    subspace of the same dimension, for the null distribution.

    Raises:
        icldyn.BadArgument: if `count` is below 1.
    """
    checks.integer("count", count, 1)
    optimiser = inner(lr)

    def init(params):
        nothing = jnp.zeros((len(params["shuffle"]) - 1) // 2, params["W_E"].dtype)
        return Steered(jnp.zeros((), jnp.int32), nothing, optimiser.init(params))

    def update(grads, state, params):
        updates, now = optimiser.update(grads, state.inner, params)
        W, inside, place = params["W_E"], params["inside"], params["shuffle"].astype(jnp.int32)
        p = len(place)
        found = fourier.leading(fourier.power(W[:p]), count)
        chosen = jnp.where(state.step == params["first"], found, state.chosen)
        P = fourier.projector(chosen)
        Q = inside * (P + 1 / p) + (1 - inside) * (jnp.eye(p, dtype=P.dtype) - P)
        moved = W + updates["W_E"]
        moved = moved.at[:p].set(Q[place[:, None], place[None]] @ moved[:p])
        step = jnp.where(state.step >= params["first"], moved - W, updates["W_E"])
        return updates | {"W_E": step}, Steered(state.step + 1, chosen, now)

    return optax.GradientTransformation(init, update)


def clipped_adamw(lr: Array, *, clip: float = 1.0, **settings: float) -> optax.GradientTransformation:
    """Gradients of a global norm above `clip` are scaled down to it, then AdamW, which decays all weights."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(lr, **settings))
