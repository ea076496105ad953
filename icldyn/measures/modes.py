"""Modes of one linear-attention layer, in the eigenbasis U of Sigma; weights {"W_P", "W_Q"} of a vector task (O = D).

Use as `jax.tree_util.Partial(strength, U)`, or all at once as `measures(U)`.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from numpy.typing import ArrayLike

Params = dict[str, Array]


def p2(U: Array, params: Params) -> Array:
    """U^T p2 U, (D, D)."""
    D = U.shape[0]
    return U.T @ params["W_P"][D:, D:] @ U


def q1(U: Array, params: Params) -> Array:
    """U^T q1 U, (D, D)."""
    D = U.shape[0]
    return U.T @ params["W_Q"][:D, :D] @ U


def p(U: Array, params: Params) -> Array:
    """p_a = u_a^T p2 u_a, (D,)."""
    return jnp.diagonal(p2(U, params))


def q(U: Array, params: Params) -> Array:
    """q_a = u_a^T q1 u_a, (D,)."""
    return jnp.diagonal(q1(U, params))


def strength(U: Array, params: Params) -> Array:
    """a_a = p_a q_a, (D,)."""
    return p(U, params) * q(U, params)


def norm_gap(U: Array, params: Params) -> Array:
    """||W_P||_F^2 - ||W_Q||_F^2 over all blocks: conserved by gradient flow."""
    del U
    return jnp.sum(params["W_P"] ** 2) - jnp.sum(params["W_Q"] ** 2)


def p2_off_diagonal(U: Array, params: Params) -> Array:
    """Share of ||p2||_F^2 that lies off the diagonal in the eigenbasis: 0 is aligned, 1 - 1/D is isotropic."""
    return _off_diagonal_share(p2(U, params))


def q1_off_diagonal(U: Array, params: Params) -> Array:
    """Share of ||q1||_F^2 that lies off the diagonal in the eigenbasis."""
    return _off_diagonal_share(q1(U, params))


def null_block_share(U: Array, params: Params) -> Array:
    """||p1||^2 + ||q2||^2 over that of all four blocks: 0 where yhat = p2 H q1 x_q, 1 where yhat = p1 H^T q2 x_q."""
    D = U.shape[0]
    squared_P, squared_Q = params["W_P"][D:] ** 2, params["W_Q"][:, :D] ** 2
    null = jnp.sum(squared_P[:, :D]) + jnp.sum(squared_Q[D:])
    return null / jnp.maximum(jnp.sum(squared_P) + jnp.sum(squared_Q), jnp.finfo(squared_P.dtype).tiny)


def preconditioner_distance(U: Array, wanted: Array, params: Params) -> Array:
    """||U^T p2 q1 U - diag(wanted)||_F / ||wanted||; the paper's fixed point has wanted = Gamma's inverse eigenvalues."""
    gap = p2(U, params) @ q1(U, params) - jnp.diag(wanted)
    return jnp.sqrt(jnp.sum(gap**2) / jnp.sum(wanted**2))


def measures(U: ArrayLike, wanted: ArrayLike | None = None) -> dict[str, Callable[[Any], Array]]:
    """All of the above by name, ready for `ensemble` and `flow`; the distance only where its target (D,) is given."""
    basis = np.asarray(U, float)
    functions = (strength, p, q, norm_gap, p2_off_diagonal, q1_off_diagonal, null_block_share)
    out: dict[str, Callable[[Any], Array]] = {f.__name__: Partial(f, basis) for f in functions}
    if wanted is not None:
        out["preconditioner_distance"] = Partial(preconditioner_distance, basis, np.asarray(wanted, float))
    return out


DIMS = {"strength": ("mode",), "p": ("mode",), "q": ("mode",)}


def _off_diagonal_share(M: Array) -> Array:
    total = jnp.sum(M**2)
    return (total - jnp.sum(jnp.diagonal(M) ** 2)) / jnp.maximum(total, jnp.finfo(M.dtype).tiny)
