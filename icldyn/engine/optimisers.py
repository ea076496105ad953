"""Optimisers that optax does not have ready: AdamW with warm-up for params that hold data, and with clipped gradients.

Each is a function of the learning rate: bind the rest, as in `functools.partial(adamw, weight_decay=1.0)`.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

HELD = ("order", "first", "inside", "shuffle")  # data that params of `icldyn.objectives` hold


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


def clipped_adamw(lr: Array, *, clip: float = 1.0, **settings: float) -> optax.GradientTransformation:
    """Gradients of a global norm above `clip` are scaled down to it, then AdamW, which decays all weights."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(lr, **settings))
