"""A trained answer yhat = h^T A x_q under shifts: other lengths, inputs, queries, tasks and noise, and random covariances.

Scalar tasks, as in `one_layer`, whose loss this is where nothing is shifted; losses carry the 1/2. All expectations are exact.
Source: derived for this project; the setting is that of Zhang, Frei and Bartlett (arXiv 2306.09927).
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .one_layer import second_moment


def loss(
    A: Array, S: Array, N: ArrayLike, Sq: Array | None = None, Sw: Array | None = None, rho: ArrayLike = 0.0
) -> Array:
    """L = 1/2 tr(Sq E r r^T), r = w - A^T h, so E r r^T = Sw - Sw S A - (Sw S A)^T + A^T E[h h^T] A.

    A (..., D, D). Contexts of N pairs with inputs of covariance S and noise rho; tasks of second moment Sw (I by default);
    queries of second moment Sq (S by default). Only these moments of query and task enter, whatever their laws.
    """
    eye = jnp.eye(S.shape[0], dtype=S.dtype)
    Sq, Sw = S if Sq is None else Sq, eye if Sw is None else Sw
    cross = jnp.einsum("ij,...jk->...ik", Sw @ S, A)
    square = jnp.einsum("...ia,ij,...jb->...ab", A, second_moment(S, N, Sw, rho), A)
    return (jnp.vdot(Sq, Sw) - 2 * jnp.einsum("ab,...ab->...", Sq, cross) + jnp.einsum("ab,...ab->...", Sq, square)) / 2


def random_covariance_loss(A: Array, N: ArrayLike) -> Array:
    """L where every prompt has its own Lambda = diag(l), l_i ~ Exp(1) independent: E l^k = k!.

    2L = D - 2 E[l^2] tr A + sum_ij A_ij^2 W_ij,   W_ij = (1 + 1/N) E[l_i^2 l_j] + (1/N) E[tr(Lambda) l_i l_j]
    """
    D = A.shape[0]
    eye = jnp.eye(D, dtype=A.dtype)
    apart = (1 + 1 / N) * 2 + (4 + (D - 2)) / N  # i != j: E l^2 E l, and 2 E[l^2] E l + (D - 2) (E l)^3
    same = (1 + 1 / N) * 6 + (6 + (D - 1) * 2) / N  # i = j: E l^3, and E l^3 + (D - 1) E l E l^2
    return (D - 4 * jnp.trace(A) + jnp.sum(A**2 * (same * eye + apart * (1 - eye)))) / 2


def random_covariance_optimum(N: float, D: int) -> tuple[float, float]:
    """(a, L): the best A is a I, a = 2 N / (6 (N + 1) + 6 + 2 (D - 1)), and L = D (1 - 2 a) / 2.

    As N -> infinity a -> 1/3 and a third of the label's variance stays; for a fixed Lambda none does.
    """
    a = 2 * N / (6 * (N + 1) + 6 + 2 * (D - 1))
    return a, D * (1 - 2 * a) / 2


def flow_end(Gamma: np.ndarray) -> tuple[float, np.ndarray]:
    """(v, U) that the flow reaches from a balanced start, v^2 = ||U||_F^2 and v U = Gamma^-1:

    v = (tr Gamma^-2)^(1/4),  U = (tr Gamma^-2)^(-1/4) Gamma^-1.
    """
    inverse = np.linalg.inv(np.asarray(Gamma, float))
    v = np.linalg.norm(inverse) ** 0.5
    return float(v), inverse / v
