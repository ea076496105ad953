"""Optimisers that are several of optax in a row, as functions of the learning rate."""

import optax
from jax import Array


def clipped_adamw(lr: Array, *, clip: float = 1.0, **settings: float) -> optax.GradientTransformation:
    """Gradients of a global norm above `clip` are scaled down to it, then AdamW, which decays all weights.

    As an `optimiser`: `functools.partial(clipped_adamw, b2=0.99, weight_decay=0.01)`.
    """
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(lr, **settings))
