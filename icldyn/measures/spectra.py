"""How many directions a matrix uses: effective rank and its marginalised form, from a matrix or from its factors.

Row-vector activations x W, one head: W_QK = W_Q W_K^T and W_OV = W_V W_O, of rank at most R. Everything is of one matrix; map it
over heads, layers, checkpoints and seeds. Source: Roy and Vetterli 2007, "The effective rank".
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import entr
from numpy.typing import ArrayLike

from .. import checks
from .one_by_one import one_by_one

RCOND = 1e-6  # singular values below so much of the largest are rounding
_qr = one_by_one(lambda M: tuple(np.linalg.qr(M)), lambda M: tuple(jnp.linalg.qr(M)))
_svd = one_by_one(
    lambda M: tuple(np.linalg.svd(M, full_matrices=False)), lambda M: tuple(jnp.linalg.svd(M, full_matrices=False))
)
_singular_values = one_by_one(
    lambda M: np.linalg.svd(M, compute_uv=False), lambda M: jnp.linalg.svd(M, compute_uv=False)
)


class SVD(NamedTuple):
    """M = U diag(s) Vh, thin: U (m, r), s (r,) descending, Vh (r, n)."""

    U: Array
    s: Array
    Vh: Array


def svd(M: ArrayLike) -> SVD:
    """M = U diag(s) Vh of a matrix (m, n), r = min(m, n); of matrices (..., m, n) one after another within a program."""
    return SVD(*_svd(jnp.asarray(M)))


def product_svd(A: ArrayLike, B: ArrayLike) -> SVD:
    """A B = Q_A (R_A R_B^T) Q_B^T by QR of A (m, r) and of B^T (n, r), and the SVD of the core, r x r where r is smallest."""
    A, B = jnp.asarray(A), jnp.asarray(B).T
    if A.shape == B.shape:  # both in one go, so that neither waits for the other
        (Q_A, Q_B), (R_A, R_B) = _qr(jnp.stack([A, B]))
    else:
        (Q_A, R_A), (Q_B, R_B) = _qr(A), _qr(B)
    U, s, Vh = _svd(R_A @ R_B.T)
    return SVD(Q_A @ U, s, Vh @ Q_B.T)


def qk(W_Q: ArrayLike, W_K: ArrayLike) -> SVD:
    """W_QK = W_Q W_K^T of one head, W_Q and W_K (D, R): rows are the key side, columns the query side."""
    return product_svd(W_Q, jnp.asarray(W_K).T)


def ov(W_V: ArrayLike, W_O: ArrayLike) -> SVD:
    """W_OV = W_V W_O of one head, W_V (D, R) and W_O (R, D): rows are the write side, columns the read side."""
    return product_svd(W_V, W_O)


def effective_rank(M: ArrayLike, k: int = 0, rcond: ArrayLike = RCOND) -> Array:
    """er_k of a matrix (m, n); `effective_rank_of` says what it is."""
    return effective_rank_of(_singular_values(jnp.asarray(M)), k, rcond)


def effective_rank_of(s: ArrayLike, k: int = 0, rcond: ArrayLike = RCOND) -> Array:
    """er_k = exp(-sum_i p_i log p_i), p = s[k:] / sum(s[k:]), of singular values s (r,), descending: 1 <= er_k <= rank - k.

    Marginalised (k > 0): what is left without the k leading directions. NaN where s[k] < rcond s[0], for then it is the entropy
    of rounding, and of a matrix that is 0.

    Raises:
        icldyn.BadArgument: if `s` has no entry k.
    """
    s = jnp.asarray(s)
    checks.integer("k", k, 0, s.shape[-1] - 1)
    p = s[k:] / jnp.sum(s[k:])
    return jnp.where(s[k] < rcond * s[0], jnp.nan, jnp.exp(jnp.sum(entr(p))))
