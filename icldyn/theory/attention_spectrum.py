"""Closed forms for softmax attention near its manifold (`attention_manifold`): the published approximation and one order more.

- `spectral`: He et al. (2025) and Chen et al. (2024), for long contexts, with E_hk = exp(sum_j d_j omega_hj omega_kj),

      2 loss_i = phi_i - 2 sum_h mu_hi omega_hi + sum_hk mu_hi mu_ki (omega_hi omega_ki + (phi_i/N) E_hk),

  phi_i = 1 + sigma2_i.
  He et al. integrate the flow of this half without the 1/d of `merged_rate`: their d omega / dt is d times ours.
- `corrected`: one task, all terms of order 1/N with exact averages over the length of the query; holds for
  q_h = (1 - 2 omega_h^2)^(-d/2-1) << N, and nowhere else.

Loss with the 1/2; both go into `attention_manifold.merged_rate` and `separate_rate`.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .. import checks
from ..struct import struct

Weights = dict[str, Array]  # {"omega", "mu"}, (H, I) each


@struct
class Spectral:
    """The published approximation at N tokens, d_i coordinates (I,) and noise sigma2_i (I,)."""

    N: ArrayLike
    sizes: ArrayLike
    sigma2: ArrayLike

    def loss(self, params: Weights, key: Array | None = None) -> Array:
        """sum_i loss_i; the key is not used."""
        del key
        omega, mu = jnp.asarray(params["omega"]), jnp.asarray(params["mu"])
        kernel = _kernel(omega, self.sizes, self.sigma2, self.N)
        phi = 1 + jnp.asarray(self.sigma2)
        return 0.5 * (jnp.sum(phi) - 2 * jnp.sum(mu * omega) + jnp.einsum("hi,ki,hki->", mu, mu, kernel))


@struct
class Corrected:
    """All terms of order 1/N for one task of d coordinates, noise sigma2 and N tokens."""

    N: ArrayLike
    sizes: ArrayLike  # (1,)
    sigma2: ArrayLike  # (1,)

    def loss(self, params: Weights, key: Array | None = None) -> Array:
        """1/2 (1 + sigma2 - 2 mu.s + mu^T M mu), with q_h = (1 - 2 omega_h^2)^(-d/2-1), c_hk = 1 - 2 omega_h omega_k,

        s_h = omega_h (1 - q_h/N),
        M_hk = omega_h omega_k (1 - (q_h + q_k)/N) + ((1 + sigma2) c_hk^(-d/2) + omega_h omega_k c_hk^(-d/2-1)) / N.
        """
        del key
        omega, mu = (jnp.asarray(params[name])[:, 0] for name in ("omega", "mu"))
        d, phi, N = jnp.asarray(self.sizes)[0], 1 + jnp.asarray(self.sigma2)[0], jnp.asarray(self.N)
        q = (1 - 2 * omega**2) ** (-d / 2 - 1)
        both = omega[:, None] * omega[None]
        c = 1 - 2 * both
        M = both * (1 - (q[:, None] + q[None]) / N) + (phi * c ** (-d / 2) + both * c ** (-d / 2 - 1)) / N
        return 0.5 * (phi - 2 * jnp.sum(mu * omega * (1 - q / N)) + mu @ M @ mu)


def spectral(N: int, sizes: ArrayLike, sigma2: float | ArrayLike = 0.0) -> Spectral:
    """The published approximation, for tasks of `sizes` (I,) coordinates."""
    return Spectral(*_settings(N, sizes, sigma2))


def corrected(N: int, d: int, sigma2: float = 0.0) -> Corrected:
    """All terms of order 1/N, for one task of d coordinates."""
    return Corrected(*_settings(N, [d], sigma2))


def best_mu(loss: Spectral, omega: ArrayLike) -> Array:
    """mu (H, I) that minimises the approximation at omega (H, I): (omega_i omega_i^T + (phi_i/N) E)^{-1} omega_i."""
    omega = jnp.asarray(omega)
    kernel = _kernel(omega, loss.sizes, loss.sigma2, loss.N)
    return jnp.linalg.solve(kernel.transpose(2, 0, 1), omega.T[:, :, None])[:, :, 0].T


def single_head(N: float, d: float, sigma2: float) -> tuple[float, float, float]:
    """(omega, mu, loss) at the minimum of the approximation with one head and one task.

    omega = 1/d^(1/2), mu = d^(1/2) / k and 2 loss = 1 + sigma2 - 1/k, with k = 1 + (1 + sigma2) e d / N.
    """
    k = 1 + (1 + sigma2) * np.e * d / N
    return d**-0.5, d**0.5 / k, 0.5 * (1 + sigma2 - 1 / k)


def two_heads(N: float, d: float, sigma2: float) -> tuple[float, float]:
    """(2 m w, loss) in the valley omega = (w, -w), mu = (m, -m), w -> 0: 2 m w = 1/(1 + phi d/N) = phi - 2 loss."""
    gain = 1 / (1 + (1 + sigma2) * d / N)
    return gain, 0.5 * (1 + sigma2 - gain)


def warm_up(d: float, scale: float, start: float) -> float:
    """t ~ d / (2 scale mu_0), when small balanced keys, queries, values and outputs (k = q, o = v) leave their start mu_0 = o v.

    d omega / dt = 2 scale omega mu / d and d mu / dt = 2 mu (omega - phi mu / N) run away along omega = (scale/d + phi/N) mu, on
    which 1/mu falls by 2 scale t / d; from elsewhere they first go there. Half of that time for the loss without 1/2.
    """
    return d / (2 * scale * start)


def _kernel(omega: Array, sizes: ArrayLike, sigma2: ArrayLike, N: ArrayLike) -> Array:
    """omega_hi omega_ki + (phi_i/N) E_hk, (H, H, I)."""
    E = jnp.exp(jnp.einsum("hj,kj,j->hk", omega, omega, jnp.asarray(sizes)))
    return omega[:, None] * omega[None] + E[:, :, None] * (1 + jnp.asarray(sigma2))[None, None] / jnp.asarray(N)


def _settings(N: int, sizes: ArrayLike, sigma2: float | ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    d = checks.array("sizes", sizes, ndim=1)
    if (d < 1).any():
        raise checks.refuse("sizes", "be at least 1", d.tolist())
    return np.float64(checks.integer("N", N, 1)), d, checks.of_each("sigma2", sigma2, d.size)
