"""Gaussian and Wishart moments that the population losses are made of.

For C = (1/N) sum_n x_n x_n^T with x_n ~ N(0, S), and x ~ N(0, S).
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from ..struct import struct


def wishart_sandwich(M: Array, S: Array, N: ArrayLike) -> Array:
    """E[C M C] = S M S + (S M^T S + tr(M S) S) / N.  M, S: (D, D)."""
    return S @ M @ S + (S @ M.T @ S + jnp.trace(M @ S) * S) / N


def quartic(A: Array, B: Array, S: Array) -> Array:
    """E[(x^T A x)(x^T B x)] = tr(AS) tr(BS) + tr(A S (B + B^T) S)."""
    return jnp.trace(A @ S) * jnp.trace(B @ S) + jnp.trace(A @ S @ (B + B.T) @ S)


def sextic(A: Array, B: Array, S: Array) -> Array:
    """E[(x^T A x)(x^T B x)^2] for symmetric A, with B replaced by its symmetric part.

    = tr A (tr B)^2 + 2 tr A tr B^2 + 4 tr B tr AB + 8 tr A B B, where A and B stand for AS and BS.
    """
    B = (B + B.T) / 2
    AS, BS = A @ S, B @ S
    a, b = jnp.trace(AS), jnp.trace(BS)
    return a * b**2 + 2 * a * jnp.trace(BS @ BS) + 4 * b * jnp.trace(AS @ BS) + 8 * jnp.trace(AS @ BS @ BS)


@struct
class TaskMoments:
    """Moments over tasks W of the token covariance Sz = [[S, S W^T], [W S, W S W^T + rho I]], n = D + O."""

    S: ArrayLike  # (D, D)
    N: ArrayLike  # context length
    yy: ArrayLike  # E tr(W S W^T)
    W: ArrayLike  # E W, (O, D)
    Sz: ArrayLike  # E Sz, (n, n)
    SzW: ArrayLike  # E Sz_ij W_ob, (n, n, O, D)
    SzSz: ArrayLike  # E Sz_ij Sz_kl, (n, n, n, n)


def gaussian_task_moments(S: ArrayLike, Lambda: ArrayLike, rho: float, N: float) -> TaskMoments:
    """Moments for Gaussian tasks of mean 0 with E[W_ia W_jb] = Lambda_iajb (O, D, O, D), by Isserlis' theorem. [derived]

    Label noise of variance rho. Holds for every family of `LinearRegression` with fresh tasks. Cost O(n^4) memory, once.
    """
    S, Lambda = np.asarray(S, float), np.asarray(Lambda, float)
    O, D = Lambda.shape[:2]  # noqa: E741
    n = D + O
    x, y = slice(0, D), slice(D, n)
    eye = np.eye(O)

    Y0 = np.einsum("iajb,ab->ij", Lambda, S)  # E W S W^T
    Y = Y0 + rho * eye
    Sz = np.zeros((n, n))
    Sz[x, x], Sz[y, y] = S, Y

    SzW = np.zeros((n, n, O, D))
    SzW[x, y] = np.einsum("ac,icob->aiob", S, Lambda)  # E (S W^T)_ai W_ob
    SzW[y, x] = SzW[x, y].swapaxes(0, 1)

    SzSz = np.zeros((n, n, n, n))
    SzSz[x, x, x, x] = np.einsum("ab,cd->abcd", S, S)
    SzSz[x, x, y, y] = np.einsum("ab,kl->abkl", S, Y)
    SzSz[y, y, x, x] = np.einsum("ij,cd->ijcd", Y, S)
    XY = np.einsum("ac,bd,icjd->aibj", S, S, Lambda)  # E (S W^T)_ai (S W^T)_bj
    SzSz[x, y, x, y] = XY
    SzSz[x, y, y, x] = XY.swapaxes(2, 3)
    SzSz[y, x, x, y] = XY.swapaxes(0, 1)
    SzSz[y, x, y, x] = XY.swapaxes(0, 1).swapaxes(2, 3)
    crossed = np.einsum("iakc,jbld,ab,cd->ijkl", Lambda, Lambda, S, S, optimize=True)
    SzSz[y, y, y, y] = np.einsum("ij,kl->ijkl", Y, Y) + crossed + crossed.swapaxes(2, 3)
    return TaskMoments(S, np.float64(N), np.trace(Y0), np.zeros((O, D)), Sz, SzW, SzSz)


def pool_task_moments(S: ArrayLike, pool: ArrayLike, rho: float, N: float) -> TaskMoments:
    """The same moments for tasks drawn uniformly from a fixed pool (P, O, D): plain averages over it."""
    S, pool = np.asarray(S, float), np.asarray(pool, float)
    P, O, D = pool.shape  # noqa: E741
    n = D + O
    WS = pool @ S
    Sz = np.zeros((P, n, n))
    Sz[:, :D, :D], Sz[:, D:, :D], Sz[:, :D, D:] = S, WS, WS.swapaxes(1, 2)
    Sz[:, D:, D:] = WS @ pool.swapaxes(1, 2) + rho * np.eye(O)
    return TaskMoments(
        S,
        np.float64(N),
        np.einsum("poa,poa->", WS, pool) / P,
        pool.mean(0),
        Sz.mean(0),
        np.einsum("pij,pob->ijob", Sz, pool) / P,
        np.einsum("pij,pkl->ijkl", Sz, Sz) / P,
    )
