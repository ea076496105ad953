"""The exact loss and gradient flow of softmax attention, H heads on I regressions side by side, from diagonal weights.

He et al. (2025, arXiv 2503.12734; I = 1) and Chen et al. (2024, arXiv 2402.19442). Task i reads its own d_i coordinates of
x ~ N(0, I): y_i = beta_i . x_{J_i} + e_i, beta_i ~ N(0, I/d_i), e_i ~ N(0, sigma2_i), the label of the query too; the query is
none of its own keys. Rotations of a block and the sign of a task are symmetries, so population gradient flow keeps every
key-query matrix at diag(omega_h1 I_{d_1}, ..., omega_hI I_{d_I}, 0) and every value matrix at diag(0, mu_h1, ..., mu_hI).
There, with g ~ N(0, I) (N, I), r_j ~ chi_{d_j} the length of the query in block j, p^h = softmax_l(sum_j omega_hj r_j g_lj)
and P_i = sum_h mu_hi p^h,

    2 loss_i = sigma2_i + E(P_i.g_i - r_i)^2 / d_i + ((d_i - 1)/d_i + sigma2_i) E|P_i|^2,    loss = sum_i loss_i,

exactly, at any N. The mean is one over fixed draws (common random numbers), of an integrand from which Stein's lemma,
E[g_li f] = E[df/dg_li], has taken what is known. With s = sum_h mu_hi omega_hi, m_h = p^h.g_i, a_h = omega_hi r_i,

    2 loss_i = 1 + sigma2_i - 2 s + s^2 + (1 + sigma2_i) E|P_i|^2
             + E[ B ((2 - s) r_i - P_i.g_i) + sum_l P_il sum_h mu_hi a_h p^h_l (g_li - m_h) ] / d_i

and B = sum_h mu_hi a_h |p^h|^2:

all that is left to chance is O(1/N), and as N -> infinity attention is linear, with yhat = s h^T x_q. Over scrambles of the 4,096
points of `manifold` the loss has a standard deviation of 1e-3 of itself where heads matter, and far less near 0.

Conventions: loss with the 1/2, t = learning rate x steps. The papers leave the 1/2 out: their losses are twice ours, and come at
half our t.
"""

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import ArrayLike

from .. import checks
from ..struct import struct

Weights = dict[str, Array]  # {"omega", "mu"}, (H, I) each
CHUNK = 64  # draws at a time, which fit the caches


class Loss(Protocol):
    """A loss of the weights omega and mu."""

    sizes: ArrayLike

    def loss(self, params: Weights, key: Array | None = None) -> Array:
        """The loss of all tasks together."""
        ...


@struct
class Manifold:
    """The exact loss, over n draws. Make one with `manifold`."""

    g: ArrayLike  # (n / CHUNK, I, N, CHUNK)
    r: ArrayLike  # (n / CHUNK, I, CHUNK)
    sizes: ArrayLike  # (I,), d_i
    sigma2: ArrayLike  # (I,)

    def loss(self, params: Weights, key: Array | None = None) -> Array:
        """sum_i loss_i; the key is not used."""
        del key
        return jnp.sum(self.losses(params))

    def losses(self, params: Weights) -> Array:
        """loss_i of every task, (I,)."""
        omega, mu = jnp.asarray(params["omega"]), jnp.asarray(params["mu"])

        def chunk(drawn):
            return _chance(*drawn, omega, mu)

        draws = jnp.asarray(self.g), jnp.asarray(self.r)
        square, rest = (jnp.mean(mean, axis=0) for mean in lax.map(jax.checkpoint(chunk), draws))
        s, sigma2 = jnp.sum(mu * omega, axis=0), jnp.asarray(self.sigma2)
        return 0.5 * (1 + sigma2 - 2 * s + s**2 + (1 + sigma2) * square + rest / jnp.asarray(self.sizes))


def _chance(g: Array, r: Array, omega: Array, mu: Array) -> tuple[Array, Array]:
    """E|P_i|^2 and the mean in brackets, (I,) each, over draws g (I, N, n) and r (I, n)."""
    a = omega[:, :, None] * r[None]  # (H, I, n)
    p = jax.nn.softmax(jnp.sum(a[:, :, None] * g[None], axis=1), axis=1)  # (H, N, n)
    m = jnp.sum(p[:, None] * g[None], axis=2)  # (H, I, n)
    P, c = jnp.einsum("hi,hln->iln", mu, p), mu[:, :, None] * a
    W = jnp.sum(c[:, :, None] * p[:, None] * (g[None] - m[:, :, None]), axis=0)
    B = jnp.sum(c * jnp.sum(p**2, axis=1)[:, None], axis=0)
    s = jnp.sum(mu * omega, axis=0)
    rest = B * ((2 - s)[:, None] * r - jnp.sum(P * g, axis=1)) + jnp.sum(P * W, axis=1)
    return jnp.mean(jnp.sum(P**2, axis=1), axis=1), jnp.mean(rest, axis=1)


def manifold(
    N: int, sizes: Sequence[int], *, sigma2: float | Sequence[float] = 0.0, draws: int = 4096, seed: int = 0
) -> Manifold:
    """The exact loss at contexts of N tokens, one task of `sizes[i]` coordinates each.

    Args:
        N: tokens before the query.
        sizes: (I,) coordinates of every task.
        sigma2: variance of the label noise, of all tasks or of each.
        draws: points of the mean, scrambled Sobol points in N I + I dimensions: a power of 2, at least 64.
        seed: of their scrambling: another one says how large the error is.

    Raises:
        icldyn.BadArgument: a sentence that names the argument, what it must be and what it is.
    """
    from scipy import special, stats

    N, draws = checks.integer("N", N, 1), checks.integer("draws", draws, CHUNK, 2**24)
    if draws & (draws - 1):
        raise checks.refuse("draws", "be a power of 2", draws)
    d = np.array([checks.integer(f"sizes[{i}]", k, 1) for i, k in enumerate(checks.entries("sizes", tuple(sizes)))])
    I = len(d)  # noqa: E741
    if not I:
        raise checks.refuse("sizes", "hold at least one number", sizes)
    held = checks.of_each("sigma2", sigma2, I)
    points = stats.qmc.Sobol((N + 1) * I, seed=checks.integer("seed", seed, 0)).random(draws)
    points = np.clip(points, 1e-12, 1 - 1e-12).T.reshape(I, N + 1, -1, CHUNK).transpose(2, 0, 1, 3)
    r = np.sqrt(2 * special.gammaincinv(d[:, None] / 2, points[:, :, 0]))  # chi_d by its quantile function
    return Manifold(special.ndtri(points[:, :, 1:]), r, d.astype(float), held)


def merged_rate(loss: Loss, params: Weights) -> Weights:
    """d omega_hi / dt = -(1/d_i) dloss/d omega_hi, d mu_hi / dt = -dloss/d mu_hi: a merged matrix holds omega_hi d_i times."""
    slope = jax.grad(loss.loss)(params)
    return {"omega": -slope["omega"] / jnp.asarray(loss.sizes)[None], "mu": -slope["mu"]}


def separate_rate(loss: Loss, scale: ArrayLike, params: Weights) -> Weights:
    """The flow of keys k, queries q, outputs o and values v, (H, I) each, omega = scale k q and mu = o v.

    d k / dt = -(1/d_i) dloss/dk and d o / dt = -dloss/do, q and v likewise: k^2 - q^2 and o^2 - v^2 are conserved.
    """
    slope = jax.grad(lambda w: loss.loss(products(scale, w)))(params)
    d = jnp.asarray(loss.sizes)[None]
    return {name: -w / d if name in ("k", "q") else -w for name, w in slope.items()}


def products(scale: ArrayLike, params: Weights) -> Weights:
    """omega = scale k q and mu = o v."""
    return {"omega": scale * params["k"] * params["q"], "mu": params["o"] * params["v"]}
