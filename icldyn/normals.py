"""Standard normals at less cost than `jax.random.normal`, of the same law: random numbers bound prompt-free training.

`jax.random` keeps one 32-bit word of the two that every threefry hash makes; here both are used. On a CPU the hash is written
out, where jax loops over its rounds and stores every one, and the logarithm in the inverse error function is a polynomial
that vectorises. Rates of both: benchmarks/README.md.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

GENERATORS = ("both_words", "stock")

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
# Giles, "Approximating the erfinv function" (2010), single precision: polynomials in w - 2.5 below w = 5, sqrt(w) - 3 above.
CENTRE = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 2.1858087e-04, -1.25372503e-03,
          -4.17768164e-03, 0.246640727, 1.50140941)  # fmt: skip
TAIL = (-2.00214257e-04, 1.00950558e-04, 1.34934322e-03, -3.67342844e-03, 5.73950773e-03, -7.6224613e-03,
        9.43887047e-03, 1.00167406, 2.83297682)  # fmt: skip


def normals(key: Array, shape: tuple[int, ...], dtype: jnp.dtype, generator: str = "both_words") -> Array:
    """Independent N(0, 1) numbers. float64, and the "stock" generator, are `jax.random.normal`.

    As there, x = sqrt(2) erf^-1(u) with u uniform on a grid of 2^23 points in (-1, 1): |x| < 5.5. x is within 5e-7 of that
    function relatively: the error of Giles' polynomials and of single precision.
    """
    if generator == "stock" or dtype != jnp.float32:
        return jax.random.normal(key, shape, dtype)
    return _drawn(_normal, key, shape)


def words(key: Array, shape: tuple[int, ...]) -> Array:
    """Independent uniform words of 32 bits, both of every hash."""
    return _drawn(lambda word: word, key, shape)


def _drawn(function: Callable[[Array], Array], key: Array, shape: tuple[int, ...]) -> Array:
    """`function` of words, stored."""
    rows, *rest = shape or (1,)
    half = (-(-rows // 2), *rest)  # one half of the rows for each word
    counts = jnp.arange(int(np.prod(half)), dtype=jnp.uint32).reshape(half)
    both = jnp.stack(_threefry(jax.random.key_data(key), counts, counts + jnp.uint32(counts.size)))
    return stored(function, both).reshape(2 * half[0], *rest)[:rows].reshape(shape)


def stored(function: Callable[..., Any], *rows: Array) -> Any:
    """`function` of arrays, row by row, stored: for what costs much and is read often.

    The CPU's compiler makes such a thing anew in every loop that reads it, also behind an optimisation barrier; but not what
    comes out of a loop of its own. Elsewhere all rows at once.
    """
    return lax.platform_dependent(
        *rows, cpu=lambda *a: lax.map(lambda row: function(*row), a), default=jax.vmap(function)
    )


def _threefry(key: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds of the counters (Salmon et al. 2011), the hash of `jax.random`."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    first, second = first + keys[0], second + keys[1]
    for five in range(5):
        for r in ROTATIONS[five % 2]:
            first = first + second
            second = first ^ ((second << jnp.uint32(r)) | (second >> jnp.uint32(32 - r)))
        first, second = first + keys[(five + 1) % 3], second + keys[(five + 2) % 3] + jnp.uint32(five + 1)
    return first, second


def _normal(words: Array) -> Array:
    """sqrt(2) erf^-1(u) of uniform u, from the upper 23 bits."""
    unit = lax.bitcast_convert_type((words >> jnp.uint32(9)) | jnp.uint32(0x3F800000), jnp.float32) - jnp.float32(1)
    low = np.nextafter(np.float32(-1), np.float32(0))
    u = jnp.maximum(low, unit * (np.float32(1) - low) + low)
    w = -_log((np.float32(1) - u) * (np.float32(1) + u))
    central = w < 5
    t = jnp.where(central, w - np.float32(2.5), jnp.sqrt(w) - np.float32(3))
    p = jnp.zeros_like(t)
    for a, b in zip(CENTRE, TAIL, strict=True):
        p = p * t + jnp.where(central, np.float32(a), np.float32(b))
    return np.float32(np.sqrt(2)) * p * u


def _log(x: Array) -> Array:
    """Natural logarithm of normal numbers: x = 2^e (1 + t), t in [-1/3, 1/3], log(1 + t) = t q(t)."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    e = (bits - np.int32(0x3F2AAAAB)) >> np.int32(23)  # the bits of 2/3
    t = lax.bitcast_convert_type(bits - (e << np.int32(23)), jnp.float32) - np.float32(1)
    q = jnp.full_like(t, LOG[-1])
    for c in LOG[-2::-1]:
        q = q * t + c
    return e.astype(jnp.float32) * np.float32(np.log(2)) + t * q


def _log_series(degree: int) -> np.ndarray:
    """Coefficients of q, degree 0 first, by interpolation in the Chebyshev nodes of [-1/3, 1/3]."""
    from numpy.polynomial import Chebyshev, Polynomial

    q = Chebyshev.interpolate(lambda t: np.log1p(t) / t, degree, domain=[-1 / 3, 1 / 3])
    return q.convert(kind=Polynomial, domain=[-1, 1], window=[-1, 1]).coef.astype(np.float32)


LOG = _log_series(7)
