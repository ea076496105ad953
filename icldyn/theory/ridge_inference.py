"""What attention over a dictionary converges to, and how fast: Yang, Huang, Liang and Chi 2024 (arXiv 2408.10147).

Tokens k = 1 ... K have representations z_k in R^m, the columns of `z` (m, K); the first N = labelled ones, Z = z[:, :N], have
labels y_k = lambda^T (z_k + eps_k), E lambda lambda^T = I, eps ~ N(0, tau I). Predictors linear in the labels are matrices
(N, K), yhat = y_1:N a. The loss (1/2K) E sum_k (yhat_k - y_k)^2 is

    L(a) = L* + (1/2K) sum_k (a_k - A_k)^T G (a_k - A_k),    G = Z^T Z + m tau I,

least at A: labels copied for k <= N, and for k > N ridge regression with penalty m tau. With fixed attention s_hk (N,), the
columns of C_k (N, H), gradient descent on the value weights w_k alone, from 0, is linear:

    L(t) - L* = (1/2K) sum_k |exp(-t M_k / K) G^(1/2) A_k|^2,    M_k = G^(1/2) C_k C_k^T G^(1/2),    t = lr x steps,

and what is left of it as t -> infinity is the floor of these heads, 0 where every C_k has rank N. The slowest rate of the loss
is 2 zeta^2 / K with zeta^2 = min_k lambda_min(M_k). All in float64 on the host; leading axes of s, z are for many dictionaries.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .. import checks

SMALLEST = 1e-10  # singular values of G^(1/2) C_k below this share of the largest count as 0


def gram(z: ArrayLike, N: int, tau: float) -> np.ndarray:
    """G = Z^T Z + m tau I (..., N, N): the second moment of the labels of a prompt."""
    z = np.asarray(z, np.float64)
    Z = z[..., :N]
    return np.swapaxes(Z, -1, -2) @ Z + z.shape[-2] * tau * np.eye(N)


def ridge(z: ArrayLike, N: int, penalty: float) -> np.ndarray:
    """(..., N, K): labels copied for k <= N, ridge regression over the representations for k > N.

    yhat_k = z_k^T argmin_lambda sum_{i<=N} (y_i - lambda^T z_i)^2 + penalty |lambda|^2.
    """
    z = np.asarray(z, np.float64)
    Z, unseen = z[..., :N], z[..., N:]
    moments = Z @ np.swapaxes(Z, -1, -2) + penalty * np.eye(z.shape[-2])
    weights = np.swapaxes(Z, -1, -2) @ np.linalg.solve(moments, unseen)
    return np.concatenate([np.broadcast_to(np.eye(N), (*z.shape[:-2], N, N)), weights], axis=-1)


def minimiser(z: ArrayLike, N: int, tau: float) -> np.ndarray:
    """A (..., N, K): what training converges to, ridge regression with penalty m tau."""
    return ridge(z, N, np.shape(z)[-2] * _noise(tau))


def best(z: ArrayLike, N: int, tau: float) -> np.ndarray:
    """(..., N, K): the best predictor, ridge regression with penalty N tau: the noise of N labels, not of m directions."""
    return ridge(z, N, N * _noise(tau))


def least_loss(z: ArrayLike, N: int, tau: float) -> np.ndarray:
    """L* (...) = (1/2K) sum_{k>N} [m tau + |z_k|^2 - z_k^T Z A_k], the targets k > N noisy too."""
    z = np.asarray(z, np.float64)
    m, K = z.shape[-2:]
    answered = z[..., :N] @ minimiser(z, N, tau)[..., N:]
    return ((K - N) * m * tau + (z[..., N:] * (z[..., N:] - answered)).sum((-2, -1))) / (2 * K)


def mean_square(
    a: ArrayLike, z: ArrayLike, N: int, tau: float, mean: float = 0.0, deviation: float = 1.0
) -> np.ndarray:
    """(1/K) E |y_1:N a|^2 (...) for a (..., N, K) and lambda ~ N(mean 1, deviation^2 I).

    E y y^T = Z^T S Z + tau tr(S) I with S = deviation^2 I + mean^2 1 1^T; G for the defaults.
    """
    z, a = np.asarray(z, np.float64), np.asarray(a, np.float64)
    m, Za = z.shape[-2], z[..., :N] @ a
    of_noise = tau * m * (deviation**2 + mean**2) * (a**2).sum((-2, -1))
    return (deviation**2 * (Za**2).sum((-2, -1)) + mean**2 * (Za.sum(-2) ** 2).sum(-1) + of_noise) / z.shape[-1]


def gap(z: ArrayLike, N: int, tau: float, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    """(1/K) E |yhat* - y_best|^2 (...): how far what training finds is from the best predictor; 0 for N = m."""
    return mean_square(minimiser(z, N, tau) - best(z, N, tau), z, N, tau, mean, deviation)


def decay(s: ArrayLike, z: ArrayLike, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of M_k (..., K, N), descending, and the shares (1/2K) (u_j^T G^(1/2) A_k)^2 of L(0) - L* that decay with them.

    s (..., N, H, K) is the attention; an eigenvalue 0 stands for a share that the heads cannot reach.
    """
    s, z = np.asarray(s, np.float64), np.asarray(z, np.float64)
    N, _, K = s.shape[-3:]
    values, vectors = np.linalg.eigh(gram(z, N, tau))
    root = (vectors * np.sqrt(values)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    B = np.moveaxis(np.einsum("...ij,...jhk->...ihk", root, s), -1, -3)  # (..., K, N, H)
    vectors, found, _ = np.linalg.svd(B)  # of B, not of its square: Gaussian tokens leave singular values of 1e-12
    kept = np.where(found > SMALLEST * found[..., :1], found**2, 0.0)
    values = np.concatenate([kept, np.zeros((*kept.shape[:-1], N - kept.shape[-1]))], axis=-1)
    target = np.moveaxis(root @ minimiser(z, N, tau), -1, -2)  # (..., K, N)
    return values, np.einsum("...knj,...kn->...kj", vectors, target) ** 2 / (2 * K)


def frozen_excess(t: ArrayLike, s: ArrayLike, z: ArrayLike, tau: float, lr: float | None = None) -> np.ndarray:
    """L(t) - L* (..., T) for fixed attention s (..., N, H, K): gradient flow, or with `lr` gradient descent of that step.

    Exact in the limit of value weights that learn infinitely faster than the key-query matrices.
    """
    values, shares = decay(s, z, tau)
    K = values.shape[-2]
    t = checks.array("t", t, ndim=1)
    values, shares = (a.reshape(*a.shape[:-2], 1, -1) for a in (values, shares))
    if lr is None:
        return (shares * np.exp(-2 * values / K * t[:, None])).sum(-1)
    return (shares * np.abs(1 - lr * values / K) ** (2 * t[:, None] / lr)).sum(-1)


def frozen_floor(s: ArrayLike, z: ArrayLike, tau: float) -> np.ndarray:
    """The least L - L* (...) that heads of fixed attention s (..., N, H, K) reach; 0 in general for H >= N.

    The attention of long tokens, such as v ~ N(0, I), is nearly one-hot: singular values of C_k then go down to any size, and
    the floor for H > 1 is where `SMALLEST` cuts them, though in exact arithmetic it would be 0 for H >= N.
    """
    values, shares = decay(s, z, tau)
    return np.where(values == 0, shares, 0.0).sum((-2, -1))


def zeta_square(s: ArrayLike, z: ArrayLike, tau: float) -> np.ndarray:
    """zeta_0^2 (...) = min_k sigma_min(G^(1/2) C_k)^2: the loss decays at 2 zeta_0^2 / K per unit t, or faster."""
    return decay(s, z, tau)[0][..., -1].min(-1)


def rate_bound(steps: ArrayLike, lr: float, zeta2: ArrayLike, K: int) -> np.ndarray:
    """(..., T): the paper's form of the bound on (L - L*) / (L(0) - L*) after steps of `lr` on the value weights.

    (1 - lr zeta_0^2 / (4K))^steps, an eighth of the true rate of fixed attention: zeta may halve while the attention moves, and
    descent loses a factor of two to smoothness. The constant is derived, not the paper's own.
    """
    return (1 - lr * np.asarray(zeta2)[..., None] / (4 * K)) ** np.asarray(steps)


def enough_steps(
    error: float, start: float, z: ArrayLike, N: int, tau: float, lr: float, zeta2: float, length: float, odds: float
) -> float:
    """Steps after which (1/2K) |yhat - yhat*|^2 <= `error` for all |lambda| <= `length`, with probability 1 - `odds`.

    From (1/2K) |yhat - yhat*|^2 <= |y|^2 (L - L*) / (m tau) with |y|^2 <= 2 length^2 (|Z|^2 + tau (N + 2 sqrt(N ln 1/odds)
    + 2 ln 1/odds)) (Laurent and Massart) and `rate_bound`; `start` is L(0) - L*.
    """
    z = np.asarray(z, np.float64)
    m, K = z.shape
    logarithm = np.log(1 / odds)
    noise = tau * (N + 2 * np.sqrt(N * logarithm) + 2 * logarithm)
    labels = 2 * length**2 * (np.linalg.norm(z[:, :N], 2) ** 2 + noise)
    return float(np.log(labels * start / (m * tau * error)) / -np.log1p(-lr * zeta2 / (4 * K)))


def _noise(tau: float) -> float:
    return checks.real("tau", tau, least=0)
