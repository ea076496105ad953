"""Standard normals at less cost than `jax.random.normal`, of the same law: random numbers bound prompt-free training.

`jax.random` keeps one 32-bit word of the two that every threefry hash makes; here both are used, with the same uniform grid
and the same inverse error function after it. Rates of both: benchmarks/README.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.random import threefry_2x32

GENERATORS = ("both_words", "stock")


def normals(key: Array, shape: tuple[int, ...], dtype: jnp.dtype, generator: str = "both_words") -> Array:
    """Independent N(0, 1) numbers. float64, and the "stock" generator, are `jax.random.normal`.

    As there, x = sqrt(2) erf^-1(u) with u uniform on a grid of 2^23 points in (-1, 1): |x| < 5.5.
    """
    if generator == "stock" or dtype != jnp.float32:
        return jax.random.normal(key, shape, dtype)
    counts = jnp.arange(int(np.prod(shape)), dtype=jnp.uint32)
    words = lax.optimization_barrier(threefry_2x32(jax.random.key_data(key), counts).reshape(shape))
    unit = lax.bitcast_convert_type((words >> jnp.uint32(9)) | jnp.uint32(0x3F800000), jnp.float32) - jnp.float32(
        1
    )  # [0, 1)
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(low, unit * (np.float32(1) - low) + low)
    return np.float32(np.sqrt(2)) * lax.erf_inv(uniform)
