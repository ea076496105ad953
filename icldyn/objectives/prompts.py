"""The batch loss of prompts drawn number by number."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from ..struct import static, struct


@struct
class Sampled:
    """Mean loss of `batch` prompts, drawn and answered one number at a time."""

    task: Any
    model: Any
    batch: int = static()

    @property
    def narrow(self) -> bool:
        """Sums over the tokens of one prompt are short: vectors of 512 bits, which other objectives gain by, cost it a fifth."""
        return True

    def loss(self, params: Any, key: Array) -> Array:
        """1/2 mean |y_q - yhat_q|^2 over the batch."""
        x, y, x_q, y_q = self.task.sample(key, self.batch)
        error = y_q - self.model.apply(params, x, y, x_q)
        return jnp.sum(error**2) / (2 * self.batch)
