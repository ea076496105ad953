"""How far a matrix M is from spanning what another, M_inf, uses: the best linear map of the one leaves so much of the other.

    row side:     min_A ||A M - M_inf||_F = ||M_inf (I - P_row(M))||_F       key side of W_QK, write side of W_OV
    column side:  min_B ||M B - M_inf||_F = ||(I - P_col(M)) M_inf||_F       query side of W_QK, read side of W_OV

A distance is that over ||M_inf||_F, in [0, 1]. Matrices may be arrays or the `SVD` of `spectra.qk`, `spectra.ov`; all functions
are of one pair. The distance says nothing where M spans the whole space (a square matrix of full rank, heads summed until
H R >= D): it is then 0 for every M_inf, and is refused; under vmap and jit, where nothing can be refused, ask `spans_all`.
M_inf is a limit, or a checkpoint later than what is plotted: the last plotted one forces the distance to 0, converged or not.
"""

import jax
import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike

from .. import checks
from .spectra import RCOND, SVD, svd

SIDES = {"qk": {"row": "key", "column": "query"}, "ov": {"row": "write", "column": "read"}}


def distance(
    M: ArrayLike | SVD,
    M_inf: ArrayLike | SVD,
    side: str = "row",
    *,
    rcond: ArrayLike = RCOND,
    rank: int | None = None,
    norm: str = "frobenius",
) -> Array:
    """||M_inf (I - P)|| / ||M_inf||, P on the row space of M (on its column space: the transposes).

    Args:
        M: (m, n), or its SVD.
        M_inf: (m, n), or its SVD.
        side: "row" or "column".
        rcond: P keeps the singular values of M above rcond times the largest.
        rank: P keeps the leading so many instead.
        norm: "frobenius" or "spectral".

    Raises:
        icldyn.BadArgument: of arrays that are known: if P is the identity, or M_inf is 0.
    """
    M, M_inf = _both(M, M_inf)
    _check_sides(M, M_inf, side)
    if rank is not None:
        checks.integer("rank", rank, 1, M.s.size)
    if not any(isinstance(a, jax.core.Tracer) for a in (*M, *M_inf, rcond)):
        refuse_degenerate(M, M_inf, side, rcond=rcond, rank=rank)
    return residual(_kept(M.s, rcond, rank), M, M_inf, side, norm)


def ridge_distance(M: ArrayLike | SVD, M_inf: ArrayLike | SVD, lam: ArrayLike, side: str = "row") -> Array:
    """||M_inf (I - M^T (M M^T + lam I)^-1 M)||_F / ||M_inf||_F: smooth in M, and of use where M spans everything.

    lam > 0 has the units of M^2; the distance of M_inf from itself is above 0.
    """
    M, M_inf = _both(M, M_inf)
    _check_sides(M, M_inf, side)
    return residual(M.s**2 / (M.s**2 + lam), M, M_inf, side)


def ridge_distance_of_modes(m: ArrayLike, m_inf: ArrayLike, lam: ArrayLike) -> Array:
    """D_lam^2 = sum_a (m_inf_a lam / (m_a^2 + lam))^2 / sum_a m_inf_a^2: the same where M and M_inf commute, modes (D,)."""
    m, m_inf = jnp.asarray(m), jnp.asarray(m_inf)
    return jnp.sqrt(jnp.sum((m_inf * lam / (m**2 + lam)) ** 2) / jnp.sum(m_inf**2))


def chordal_distance(M: ArrayLike | SVD, M_inf: ArrayLike | SVD, r: int, side: str = "row") -> Array:
    """sqrt((r - ||V_r V_inf,r^T||_F^2) / r), V_r (r, n) the leading right singular vectors (left ones: side "column"), in [0, 1].

    Free of scale; it compares the r leading directions of both alike.

    Raises:
        icldyn.BadArgument: if one of them has fewer than r directions.
    """
    M, M_inf = _both(M, M_inf)
    _check_sides(M, M_inf, side)
    checks.integer("r", r, 1, min(M.s.size, M_inf.s.size))
    overlap = _basis(M, side)[:r] @ _basis(M_inf, side)[:r].T
    return jnp.sqrt(jnp.maximum(r - jnp.sum(overlap**2), 0) / r)


def chance(r: ArrayLike, d: ArrayLike) -> Array:
    """sqrt(1 - r/d): root mean square of both distances for a random space of r dimensions in R^d. Draw it in every plot."""
    return jnp.sqrt(1 - jnp.asarray(r, float) / d)


def spans_all(M: ArrayLike | SVD, side: str = "row", *, rcond: ArrayLike = RCOND, rank: int | None = None) -> Array:
    """Whether what P keeps of M is the whole space, so that every distance from it is 0."""
    M = _svd(M)
    return jnp.sum(_kept(M.s, rcond, rank)) >= _basis(M, side).shape[1]


def refuse_degenerate(
    M: ArrayLike | SVD, M_inf: ArrayLike | SVD, side: str = "row", *, rcond: ArrayLike = RCOND, rank: int | None = None
) -> None:
    """Refuse a pair whose distance would say nothing, with the reason; of arrays that are known.

    Raises:
        icldyn.BadArgument: if M spans the whole space, or M_inf is 0.
    """
    M, M_inf = _both(M, M_inf)
    if not M_inf.s[0] > 0:
        raise checks.BadArgument("Argument `M_inf` must have a singular value above 0, but has none: nothing to span.")
    if spans_all(M, side, rcond=rcond, rank=rank):
        d, cut = _basis(M, side).shape[1], f"rcond {float(rcond):g}" if rank is None else f"rank {rank}"
        raise checks.BadArgument(
            f"Argument `M` must leave a direction of its {side} space out, but spans all {d} at {cut}, and every distance "
            "is 0: take the matrix of one head, a fixed rank, a larger rcond, or ridge_distance."
        )


def residual(weights: Array, M: SVD, M_inf: SVD, side: str = "row", norm: str = "frobenius") -> Array:
    """||diag(s_inf) (V_inf - V_inf V^T diag(weights) V)|| / ||diag(s_inf)||, what M does not reach of M_inf; never refuses."""
    V, V_inf = _basis(M, side), _basis(M_inf, side)
    left = M_inf.s[:, None] * (V_inf - ((V_inf @ V.T) * weights[None]) @ V)
    if checks.one_of("norm", norm, ("frobenius", "spectral")) == "spectral":
        return jnp.linalg.norm(left, ord=2) / M_inf.s[0]
    return jnp.sqrt(jnp.sum(left**2) / jnp.sum(M_inf.s**2))


def _both(M: ArrayLike | SVD, M_inf: ArrayLike | SVD) -> tuple[SVD, SVD]:
    """Their SVDs; those of two arrays of one shape in one go, so that neither waits for the other (`one_by_one`)."""
    if isinstance(M, SVD) or isinstance(M_inf, SVD) or jnp.shape(M) != jnp.shape(M_inf):
        return _svd(M), _svd(M_inf)
    U, s, Vh = svd(jnp.stack([jnp.asarray(M), jnp.asarray(M_inf)]))
    return SVD(U[0], s[0], Vh[0]), SVD(U[1], s[1], Vh[1])


def _svd(M: ArrayLike | SVD) -> SVD:
    return M if isinstance(M, SVD) else svd(M)


def _basis(M: SVD, side: str) -> Array:
    """Singular vectors of a side as rows, (r, d)."""
    return M.Vh if side == "row" else M.U.T


def _kept(s: Array, rcond: ArrayLike, rank: int | None) -> Array:
    """1 for the singular values that a projector keeps, else 0."""
    keep = s > rcond * s[0] if rank is None else jnp.arange(s.size) < rank
    return keep.astype(s.dtype)


def _check_sides(M: SVD, M_inf: SVD, side: str) -> None:
    checks.one_of("side", side, ("row", "column"))
    d, d_inf = (_basis(one, side).shape[1] for one in (M, M_inf))
    if d != d_inf:
        raise checks.BadArgument(
            f"Argument `M_inf` must have {d} entries on its {side} side, as M has, but has {d_inf}."
        )
