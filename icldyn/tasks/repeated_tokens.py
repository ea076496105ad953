"""The probe of Olsson et al. 2022 (arXiv 2209.11895): random tokens, said again and again.

A start token, numbered k, and then the same `period` tokens, uniform on 0 ... k - 1, `repeats` times. What stands after the first
period follows from the context alone: nothing but induction, or positions at distance `period` - 1, predicts it.
"""

import jax
import jax.numpy as jnp
from jax import Array

from .. import checks
from ..struct import static, struct


@struct
class RepeatedTokens:
    """The law of sequences. Make one with `repeated_tokens`."""

    k: int = static()
    period: int = static()
    repeats: int = static()
    started: bool = static()

    @property
    def T(self) -> int:
        """Tokens to be predicted: all but the first."""
        return self.period * self.repeats - (not self.started)

    def sample(self, key: Array, B: int) -> Array:
        """B sequences of tokens (B, T + 1)."""
        said = jnp.tile(jax.random.randint(key, (B, self.period), 0, self.k), (1, self.repeats))
        return jnp.pad(said, ((0, 0), (1, 0)), constant_values=self.k) if self.started else said


def repeated_tokens(k: int, *, period: int = 25, repeats: int = 4, started: bool = True) -> RepeatedTokens:
    """`period` random tokens of k, `repeats` times, after a start token if `started` (the network then needs k + 1 tokens).

    Raises:
        icldyn.BadArgument: if a size is below 1, or nothing is repeated.
    """
    sizes = {"k": checks.integer("k", k, 1), "period": checks.integer("period", period, 1)}
    return RepeatedTokens(**sizes, repeats=checks.integer("repeats", repeats, 2), started=bool(started))
