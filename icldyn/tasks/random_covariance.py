"""Scalar in-context regression whose inputs have another covariance in every prompt (Zhang, Frei and Bartlett 2023).

Per prompt: Lambda = diag(l) with independent l_i ~ Exp(1), x ~ N(0, Lambda), w ~ N(0, I), labels w.x without noise.

An answer that sees a context through h = (1/N) sum_n y_n x_n alone cannot tell the N pairs from the one pair (h, 1), which
stands for them here. Given l and w the labels are N(0, v), v = w^T Lambda w, and x_n = Lambda w y_n / v + r_n with r_n
independent of all labels, so with one more pair (x', y') of the same task

    h = (|y|^2/N) Lambda w / v + (|y|/N) r,    r = x' - Lambda w y' / v.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from numpy.typing import ArrayLike

from .. import checks
from ..struct import static, struct
from .linear_regression import Prompts


@struct
class RandomCovariance:
    """The law of the prompts. Make one with `random_covariance`."""

    scale: ArrayLike  # E l_i; sets the dtype
    D: int = static()
    N: int = static()

    @property
    def O(self) -> int:  # noqa: E743
        """Output dimension."""
        return 1

    def sample(self, key: Array, B: int) -> Prompts:
        """B prompts, their contexts as the one pair (h, 1): N + 3 D normals and D exponentials a prompt."""
        D, scale = self.D, jnp.asarray(self.scale)
        key_l, key_normal = jax.random.split(key)
        l = scale * lax.optimization_barrier(jax.random.exponential(key_l, (B, D), scale.dtype))
        g = lax.optimization_barrier(jax.random.normal(key_normal, (B, 3 * D + self.N), scale.dtype))  # drawn once
        w, other, x_q, y = jnp.split(g, (D, 2 * D, 3 * D), axis=1)
        other, x_q = jnp.sqrt(l) * other, jnp.sqrt(l) * x_q
        along = l * w / jnp.sum(l * w**2, axis=1, keepdims=True)  # Lambda w / v
        r = other - along * jnp.sum(w * other, axis=1, keepdims=True)
        yy = jnp.sum(y**2, axis=1, keepdims=True) * jnp.sum(l * w**2, axis=1, keepdims=True)  # |y|^2
        h = (yy * along + jnp.sqrt(yy) * r) / self.N
        return Prompts(h[:, None], jnp.ones((B, 1, 1), h.dtype), x_q, jnp.sum(w * x_q, axis=1, keepdims=True))


def random_covariance(N: int, D: int, scale: float = 1.0) -> RandomCovariance:
    """Contexts of N pairs in D dimensions.

    Raises:
        icldyn.BadArgument: if N or D is below 1, or the scale is not positive.
    """
    N, D = checks.integer("N", N, 1), checks.integer("D", D, 1)
    return RandomCovariance(checks.real("scale", scale, above=0), D=D, N=N)
