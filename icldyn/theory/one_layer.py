"""Exact theory of the answer yhat = h^T A x_q, h = (1/N) sum_n y_n x_n, on scalar tasks: what every one-layer study shares.

x ~ N(0, S), tasks of mean 0 and covariance Sw, label noise rho in the context (none on the query's label). The query's own
term never enters h. All losses carry the 1/2; the papers mostly do not. Matrices are (D, D), in any basis.
Source: derived for this project (Zhang, Frei and Bartlett 2023 for Sw = I, rho = 0); holds for every N >= 1.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .moments import wishart_sandwich


def loss(A: Array, S: Array, N: ArrayLike, Sw: Array | None = None, rho: ArrayLike = 0.0) -> Array:
    """2L = tr(Sw S) - 2 tr(Sw S A S) + tr(Sw E[C B C]) + (rho/N) tr(S B),  B = A S A^T, C the context covariance.

    At a test length M and test covariances S', Sw' it is this function at (A, S', M, Sw').
    """
    Sw = jnp.eye(S.shape[0], dtype=S.dtype) if Sw is None else Sw
    B = A @ S @ A.T
    CBC = wishart_sandwich(B, S, N)
    twice = jnp.trace(Sw @ S) - 2 * jnp.trace(Sw @ S @ A @ S) + jnp.trace(Sw @ CBC) + rho / N * jnp.trace(S @ B)
    return twice / 2


def descent(A: Array, S: Array, N: ArrayLike, Sw: Array | None = None, rho: ArrayLike = 0.0) -> Array:
    """G(A) = -dL/dA = S Sw S - [S Sw S + (S Sw S + tr(Sw S) S)/N + (rho/N) S] A S.

    For Sw = I it is S^2 - S Gamma A S.
    """
    Sw = jnp.eye(S.shape[0], dtype=S.dtype) if Sw is None else Sw
    return S @ Sw @ S - second_moment(S, N, Sw, rho) @ A @ S


def second_moment(S: Array, N: ArrayLike, Sw: Array | None = None, rho: ArrayLike = 0.0) -> Array:
    """E[h h^T] = S Sw S + (S Sw S + tr(Sw S) S)/N + (rho/N) S; for Sw = I it is S Gamma."""
    Sw = jnp.eye(S.shape[0], dtype=S.dtype) if Sw is None else Sw
    return wishart_sandwich(Sw, S, N) + rho / N * S


def gamma(S: Array, N: ArrayLike, rho: ArrayLike = 0.0) -> Array:
    """Gamma = (1 + 1/N) S + (tr S + rho)/N I."""
    return (1 + 1 / N) * S + (jnp.trace(S) + rho) / N * jnp.eye(S.shape[0], dtype=S.dtype)


def optimum(S: ArrayLike, N: float, Sw: ArrayLike | None = None, rho: float = 0.0) -> np.ndarray:
    """The A of least loss, E[h h^T]^-1 S Sw: Gamma^-1 for Sw = I.  S must be invertible."""
    S = np.asarray(S, float)
    Sw = np.eye(len(S)) if Sw is None else np.asarray(Sw, float)
    moment = S @ Sw @ S * (1 + 1 / N) + (np.trace(Sw @ S) + rho) / N * S
    return np.linalg.solve(moment, S @ Sw)


def least_loss(S: ArrayLike, N: float, rho: float = 0.0) -> float:
    """L at the optimum for Sw = I: 2L = tr S - tr(S^2 Gamma^-1)."""
    S = np.asarray(S, float)
    G = (1 + 1 / N) * S + (np.trace(S) + rho) / N * np.eye(len(S))
    return float(np.trace(S) - np.trace(S @ S @ np.linalg.inv(G))) / 2
