"""A global bigram law, and triggers whose outputs are of the sequence (Bietti et al. 2023, arXiv 2306.00802).

Q tokens are triggers, in every sequence others, q_1 ... q_Q, and o_1 ... o_Q their outputs. A sequence walks the global bigram,
x_{t+1} ~ P_{x_t .}, but after q_i always comes o_i: the bigram predicts most, the context alone what follows a trigger.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from numpy.typing import ArrayLike

from .. import checks
from ..struct import static, struct


@struct
class TriggerBigrams:
    """The law of sequences. Make one with `trigger_bigrams`."""

    P: ArrayLike
    Q: int = static()
    T: int = static()

    @property
    def k(self) -> int:
        """Tokens that there are."""
        return self.P.shape[0]

    def sample(self, key: Array, B: int) -> Array:
        """B sequences of tokens (B, T + 1)."""
        return self.with_triggers(key, B)[0]

    def with_triggers(self, key: Array, B: int) -> tuple[Array, Array]:
        """Sequences (B, T + 1), and the triggers of each (B, Q), drawn without repetition; outputs are uniform."""
        key_q, key_o, key_x = jax.random.split(key, 3)
        order = jnp.argsort(jax.random.uniform(key_q, (B, self.k)), axis=1)
        q, o = order[:, : self.Q], jax.random.randint(key_o, (B, self.Q), 0, self.k)
        u = jax.random.uniform(key_x, (self.T + 1, B))
        sums = jnp.cumsum(jnp.asarray(self.P, u.dtype), axis=1)[:, :-1]

        def step(x, u):
            follows = jnp.sum(sums[x] <= u[:, None], axis=1)
            hit = x[:, None] == q
            x = jnp.where(jnp.any(hit, axis=1), jnp.sum(jnp.where(hit, o, 0), axis=1), follows)
            return x, x

        first = jnp.minimum((self.k * u[0]).astype(q.dtype), self.k - 1)
        return jnp.concatenate([first[None], lax.scan(step, first, u[1:])[1]]).T, q


def in_context(tokens: Array, q: Array) -> Array:
    """Positions t (B, T) whose successor the context tells: x_t is a trigger that stood before, (B, T + 1) and (B, Q) given."""
    x = tokens[:, :-1]
    before = jnp.any(jnp.tril(x[:, :, None] == x[:, None, :], -1), axis=2)
    return before & jnp.any(x[:, :, None] == q[:, None, :], axis=2)


def trigger_bigrams(P: ArrayLike, T: int, *, Q: int) -> TriggerBigrams:
    """Sequences of the bigram law P (k, k), its rows adding up to 1, with Q triggers each and T tokens to be predicted.

    Raises:
        icldyn.BadArgument: if P is no such matrix, T is below 1, or there are more triggers than tokens.
    """
    P = checks.array("P", P, ndim=2)
    if P.shape[0] != P.shape[1] or P.size == 0 or (P < 0).any() or abs(P.sum(1) - 1).max() > 1e-6:
        raise checks.refuse("P", "be a square matrix of rows that are not negative and add up to 1", P.tolist())
    return TriggerBigrams(P, Q=checks.integer("Q", Q, 1, len(P)), T=checks.integer("T", T, 1))
