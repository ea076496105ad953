"""Markov chains in context: every sequence has a transition matrix of its own (Edelman et al. 2024, arXiv 2402.11004).

    P_i. ~ Dirichlet(alpha 1_k),    x_1 ~ mean of the rows of P^16, about the stationary law,    x_{t+1} ~ P_{x_t .},

T + 1 tokens, of which the last T are to be predicted, each from those before it.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from numpy.typing import ArrayLike

from .. import checks
from ..struct import static, struct


@struct
class Markov:
    """The law of sequences. Make one with `markov`."""

    alpha: ArrayLike
    k: int = static()
    T: int = static()

    def sample(self, key: Array, B: int) -> Array:
        """B sequences of tokens (B, T + 1)."""
        key_P, key_x = jax.random.split(key)
        return self.walk(key_x, self.matrices(key_P, B))

    def matrices(self, key: Array, B: int) -> Array:
        """Transition matrices P (B, k, k)."""
        return dirichlet(key, jnp.asarray(self.alpha, jnp.float32), (B, self.k, self.k))

    def walk(self, key: Array, P: Array) -> Array:
        """A sequence (B, T + 1) of each chain P (B, k, k): one uniform number a token, against sums of a row."""
        P16 = P
        for _ in range(4):
            P16 = P16 @ P16
        u = jax.random.uniform(key, (self.T + 1, len(P)), P.dtype)
        sums = jnp.cumsum(P, axis=2)[:, :, :-1]  # the last is 1, up to rounding
        first = jnp.sum(jnp.cumsum(jnp.mean(P16, axis=1), axis=1)[:, :-1] <= u[0][:, None], axis=1)
        after = jnp.sum(sums[None] <= u[1:, :, None, None], axis=3)  # (T, B, k): what would follow every token

        def step(x, after):
            x = jnp.take_along_axis(after, x[:, None], axis=1)[:, 0]
            return x, x

        return jnp.concatenate([first[None], lax.scan(step, first, after)[1]]).T


def dirichlet(key: Array, alpha: Array, shape: tuple[int, ...]) -> Array:
    """Rows ~ Dirichlet(alpha 1) along the last axis, of gammas: G = G' u^(1/alpha) with G' ~ Gamma(alpha + 1).

    G' by Marsaglia and Tsang 2000: with d = alpha + 2/3, v = (1 + z / (3 sqrt d))^3 and z ~ N(0, 1), d v is kept if
    log u' < z^2/2 + d - d v + d log v. All are drawn anew until all are kept, a few times: jax.random.gamma goes through them
    one by one on a CPU.
    """
    key_u, key_g = jax.random.split(key)
    d = alpha + 2 / 3

    def propose(carry):
        n, log_g, kept = carry
        key_z, key_accept = jax.random.split(jax.random.fold_in(key_g, n))
        z = jax.random.normal(key_z, shape, alpha.dtype)
        root = 1 + z / (3 * jnp.sqrt(d))
        log_v = 3 * jnp.log(jnp.maximum(root, jnp.finfo(alpha.dtype).tiny))
        bound = z**2 / 2 + d * (1 - jnp.exp(log_v) + log_v)
        good = (root > 0) & (jnp.log1p(-jax.random.uniform(key_accept, shape, alpha.dtype)) < bound)
        return n + 1, jnp.where(kept, log_g, jnp.log(d) + log_v), kept | good

    start = (jnp.asarray(0), jnp.zeros(shape, alpha.dtype), jnp.zeros(shape, bool))
    _, log_g, _ = lax.while_loop(lambda carry: ~jnp.all(carry[2]), propose, start)
    log_u = jnp.log1p(-jax.random.uniform(key_u, shape, alpha.dtype))
    return jax.nn.softmax(log_g + log_u / alpha, axis=-1)  # of logarithms, as gammas of a small alpha underflow


def markov(k: int, T: int, *, alpha: float) -> Markov:
    """Chains of k states, with T tokens to be predicted in a sequence; the smaller alpha, the fewer transitions matter.

    Raises:
        icldyn.BadArgument: if there are fewer than two states or no tokens, or alpha is not positive.
    """
    return Markov(checks.real("alpha", alpha, above=0), k=checks.integer("k", k, 2), T=checks.integer("T", T, 1))
