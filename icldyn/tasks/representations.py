"""A fixed dictionary of tokens, a representation f of each, and labels linear in it (Yang, Huang, Liang and Chi 2024).

Tokens v_1 ... v_K in R^d and z_k = f(v_k) in R^m stay the same in all prompts. A task is lambda in R^m with independent entries
of mean 0 and variance 1, and y_k = lambda^T (z_k + eps_k), eps_k ~ N(0, tau I): given lambda the noise has variance
tau |lambda|^2, on average m tau. A prompt is the first N tokens with their labels; the labels of all K are to be answered.

f is drawn with the dictionary, so that E z^2 is about 1, one of
- "lookup": z_k ~ N(0, I), nothing to do with v_k (the paper's experiments);
- "random_features": sqrt(2) cos(W v + b);
- "polynomial": (a_i.v + ((b_i.v)^2 - 1) / sqrt(2)) / sqrt(2);
- "mlp": W_2 tanh(W_1 v), 4 m hidden units.
The last three see v divided by its typical length.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .. import checks
from ..struct import static, struct

KINDS = ("lookup", "random_features", "polynomial", "mlp")
TANH_SQUARE = 0.3942944903  # E tanh(g)^2, g ~ N(0, 1)


@struct
class Representations:
    """The law of dictionaries and of their prompts. Make one with `representations`."""

    tau: ArrayLike
    unit: ArrayLike
    d: int = static()
    K: int = static()
    m: int = static()
    N: int = static()
    f: str = static()

    def dictionary(self, key: Array, dtype: jnp.dtype) -> dict[str, Array]:
        """Tokens "V" (d, K), of length 1 or N(0, I), and their representations "z" (m, K)."""
        key_v, key_f = jax.random.split(key)
        V = jax.random.normal(key_v, (self.d, self.K), dtype)
        unit, direction = jnp.asarray(self.unit), V / jnp.linalg.norm(V, axis=0, keepdims=True)
        seen = jnp.where(unit, direction, V / np.sqrt(self.d).astype(dtype))
        return {"V": jnp.where(unit, direction, V), "z": _represented(self.f, key_f, seen, self.m)}

    def labels(self, key: Array, z: Array, batch: int) -> Array:
        """Labels (B, K) of all tokens for `batch` tasks lambda ~ N(0, I)."""
        key_task, key_noise = jax.random.split(key)
        task = jax.random.normal(key_task, (batch, self.m), z.dtype)
        noise = jax.random.normal(key_noise, (batch, self.K), z.dtype)
        size = jnp.sqrt(jnp.asarray(self.tau, z.dtype) * jnp.sum(task**2, axis=1, keepdims=True))
        return task @ z + size * noise


def representations(
    N: int, *, K: int, d: int, m: int, tau: float, f: str = "lookup", unit: bool = False
) -> Representations:
    """K tokens in R^d of which N are labelled, representations in R^m, label noise tau; `unit` makes tokens of length 1.

    Raises:
        icldyn.BadArgument: if a size is below 1, N is not below K, or tau is negative.
    """
    K = checks.integer("K", K, 2)
    return Representations(
        checks.real("tau", tau, least=0),
        bool(unit),
        d=checks.integer("d", d, 1),
        K=K,
        m=checks.integer("m", m, 1),
        N=checks.integer("N", N, 1, K - 1),
        f=checks.one_of("f", f, KINDS),
    )


def _represented(f: str, key: Array, v: Array, m: int) -> Array:
    """f of tokens v (d, K) of length about 1: (m, K)."""
    (d, K), dtype = v.shape, v.dtype
    if f == "lookup":
        return jax.random.normal(key, (m, K), dtype)
    key_1, key_2 = jax.random.split(key)
    if f == "random_features":
        W, b = jax.random.normal(key_1, (m, d), dtype), jax.random.uniform(key_2, (m, 1), dtype, 0, 2 * np.pi)
        return np.sqrt(2).astype(dtype) * jnp.cos(W @ v + b)
    if f == "polynomial":
        linear, square = jax.random.normal(key_1, (m, d), dtype) @ v, jax.random.normal(key_2, (m, d), dtype) @ v
        return (linear + (square**2 - 1) / np.sqrt(2).astype(dtype)) / np.sqrt(2).astype(dtype)
    hidden = jnp.tanh(jax.random.normal(key_1, (4 * m, d), dtype) @ v)
    return jax.random.normal(key_2, (m, 4 * m), dtype) @ hidden / np.sqrt(4 * m * TANH_SQUARE).astype(dtype)
