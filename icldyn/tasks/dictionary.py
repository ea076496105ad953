"""In-context regression on a dictionary: every token is one of K orthonormal features (Huang, Cheng and Liang 2023).

Tokens x_1 ... x_N and the query are v_k with probability p_k, independently; labels are w.x with w ~ N(0, I), without noise.
In the basis of the features v_k is the unit vector e_k and w_k its label, and a prompt is, but for the order of its pairs,

    n ~ Multinomial(N, p),    the query k ~ p,    w ~ N(0, I_K).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import ArrayLike

from .. import checks
from ..normals import words
from ..struct import static, struct
from .linear_regression import Prompts


@struct
class Dictionary:
    """The law of the prompts. Make one with `dictionary`."""

    cumulative: ArrayLike  # (K,): p_1 + ... + p_k; sets the dtype
    N: int = static()

    @property
    def D(self) -> int:
        """Input dimension, K."""
        return np.shape(self.cumulative)[0]

    @property
    def O(self) -> int:  # noqa: E743
        """Output dimension."""
        return 1

    def sample(self, key: Array, B: int) -> Prompts:
        """B prompts, token by token, x in the basis of the features."""
        cumulative = jnp.asarray(self.cumulative)
        key_tokens, key_w = jax.random.split(key)
        u = jax.random.uniform(key_tokens, (B, self.N + 1), cumulative.dtype)
        tokens = jnp.sum(u[:, :, None] >= cumulative[None, None, :-1], axis=2)
        x = jax.nn.one_hot(tokens, self.D, dtype=cumulative.dtype)
        y = jnp.einsum("bnk,bk->bn", x, jax.random.normal(key_w, (B, self.D), cumulative.dtype))[:, :, None]
        return Prompts(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1])

    def counts(self, key: Array, B: int) -> tuple[Array, Array]:
        """The counts n (K, B) of the tokens of B prompts, and their queries (K, B), one-hot; p_k to within 1e-7.

        n_1 + ... + n_k is how many of N uniform words lie below p_1 + ... + p_k: no token is ever made.
        """
        cumulative = jnp.asarray(self.cumulative)
        edges = jnp.round(cumulative[:-1] * 2**24).astype(jnp.uint32) << 8
        drawn = words(key, (self.N + 1, B))

        def below(word: Array) -> Array:
            return (word[None] < edges[:, None]).astype(cumulative.dtype)  # (K-1, B)

        query = below(drawn[self.N])
        n = lax.fori_loop(0, self.N, lambda i, sums: sums + below(drawn[i]), jnp.zeros_like(query))
        return _differences(n, self.N), _differences(query, 1)


def _differences(sums: Array, total: int) -> Array:
    """(K, B) of which these (K-1, B) are the cumulative sums, and the last the total."""
    return jnp.diff(sums, axis=0, prepend=jnp.zeros_like(sums[:1]), append=jnp.full_like(sums[:1], total))


def dictionary(N: int, p: ArrayLike) -> Dictionary:
    """Contexts of N pairs of tokens of probabilities p (K,).

    Raises:
        icldyn.BadArgument: if N is below 1, or p does not hold at least two positive numbers that add up to 1.
    """
    p = checks.array("p", p, ndim=1)
    if p.size < 2 or (p < 1e-6).any() or abs(p.sum() - 1) > 1e-6:
        raise checks.refuse("p", "hold at least two numbers of at least 1e-6 that add up to 1", p.tolist())
    return Dictionary(np.cumsum(p), checks.integer("N", N, 1))
