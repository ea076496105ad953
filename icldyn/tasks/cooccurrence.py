"""Labelled sentences over orthonormal words, to be told by which words occur together (Hongru Yang et al. 2024).

Words mu_1 ... mu_d are orthonormal, so a word is a number, and a sentence of L words the row of its counts N (n, d). Every
sentence has mu_3 once. Of a positive one, y = +1, the words mu_1 and mu_2 are both there; of a negative one, y = -1, only mu_1,
only mu_2, or neither. These are the four types I_1 ... I_4, of probability 1/2, 1/6, 1/6, 1/6. All other words are irrelevant:
uniform on mu_4 ... mu_d, or all of the data set distinct, as the paper's theory assumes.

Order within a sentence means nothing to attention without positions: mu_1, mu_2 and mu_3 come first.
"""

import jax
import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike

from .. import checks
from ..struct import static, struct


@struct
class Cooccurrence:
    """The law of data sets. Make one with `cooccurrence`."""

    balanced: ArrayLike
    distinct: ArrayLike
    n: int = static()
    L: int = static()
    d: int = static()

    def tokens(self, key: Array) -> Array:
        """A data set (n, L) of words by number, from 0."""
        place, u = jnp.arange(self.n), jax.random.uniform(key, (self.n, self.L + 1))
        drawn = (6 * u[:, 0]).astype(place.dtype)
        sixth = jnp.where(jnp.asarray(self.balanced), 6 * place // self.n, drawn)
        kind = jnp.maximum(sixth - 2, 0)  # three sixths are I_1
        relevant = jnp.stack([kind <= 1, (kind == 0) | (kind == 2), kind >= 0], axis=1)
        relevant = jnp.pad(relevant, ((0, 0), (0, self.L - 3)))
        each = 2 + jnp.cumsum(~relevant.ravel(), dtype=place.dtype).reshape(self.n, self.L)
        any_word = 3 + ((self.d - 3) * u[:, 1:]).astype(place.dtype)
        other = jnp.where(jnp.asarray(self.distinct), each, any_word)
        return jnp.where(relevant, jnp.arange(self.L)[None], other)

    def counts(self, key: Array, dtype: jnp.dtype) -> Array:
        """A data set as counts N (n, d)."""
        return jnp.sum(jax.nn.one_hot(self.tokens(key), self.d, dtype=dtype), axis=1)


def types(N: Array) -> Array:
    """Of sentences with counts N (n, d), whether they are of type I_1, I_2, I_3, I_4: (4, n), zeros and ones."""
    first, second = N[:, 0], N[:, 1]
    return jnp.stack([first * second, first * (1 - second), (1 - first) * second, (1 - first) * (1 - second)])


def labels(N: Array) -> Array:
    """y (n,): +1 where mu_1 and mu_2 are both there, else -1."""
    return 2 * N[:, 0] * N[:, 1] - 1


def cooccurrence(n: int, *, L: int, d: int, balanced: bool = False, distinct: bool = False) -> Cooccurrence:
    """Data sets of n sentences of L words out of d.

    Args:
        n: sentences.
        L: words of a sentence.
        d: words that there are.
        balanced: whether exactly n/2, n/6, n/6 and n/6 sentences are of each type, in this order, or types are drawn.
        distinct: whether all irrelevant words of a data set differ.

    Raises:
        icldyn.BadArgument: if L is below 3, n is not a multiple of 6 where types are balanced, or d has too few words.
    """
    n, L = checks.integer("n", n, 1), checks.integer("L", L, 3)
    if balanced and n % 6:
        raise checks.refuse("n", "be a multiple of 6, for balanced types", n)
    irrelevant = n // 6 * (6 * L - 14) if balanced else n * (L - 1)
    least = 3 + irrelevant if distinct else 4
    return Cooccurrence(bool(balanced), bool(distinct), n=n, L=L, d=checks.integer("d", d, least))
