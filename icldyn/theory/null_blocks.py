"""Exact theory with p1 = q2 = 0, where gradient flow keeps them: yhat = p2 H q1 x_q, H = (1/N) sum_n y_n x_n^T.

First any p2 and q1 (unaligned starts: how alignment arises), then p2 and q1 diagonal in the eigenbasis (the coupled modes).
All arrays are in the eigenbasis of Sigma, S = diag(s). Source: derived for this project (the query's own term never enters,
so these hold whether or not the query attends to itself). Tasks: `shared_eigenbasis` or `iid`; label noise rho.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .. import checks


def loss(
    p2: Array, q1: Array, s: Array, N: ArrayLike, family: str = "shared_eigenbasis", rho: ArrayLike = 0.0
) -> Array:
    """L at any p2, q1 (D, D), with B = q1 S q1^T and E = S B S + (S B S + tr(B S) S)/N:

    shared eigenbasis:  2L = tr S   - 2 tr(p2 Diag(S q1 S)) + tr(p2^T p2 Diag(E)) + (rho/N) tr(S B) ||p2||^2
    i.i.d.:             2L = D tr S - 2 tr(p2) tr(S q1 S)   + ||p2||^2 tr(E)      + (rho/N) tr(S B) ||p2||^2
    """
    B = (q1 * s[None]) @ q1.T
    BS = jnp.vdot(jnp.diagonal(B), s)
    E = (1 + 1 / N) * s**2 * jnp.diagonal(B) + BS * s / N  # diagonal of E
    SqS = s**2 * jnp.diagonal(q1)
    norms = jnp.sum(p2**2, axis=0)  # diagonal of p2^T p2
    if family == "iid":
        twice = s.size * s.sum() - 2 * jnp.trace(p2) * SqS.sum() + norms.sum() * E.sum()
    else:
        twice = s.sum() - 2 * jnp.vdot(jnp.diagonal(p2), SqS) + jnp.vdot(norms, E)
    return (twice + rho / N * BS * norms.sum()) / 2


def modes_loss(p: Array, q: Array, s: Array, N: ArrayLike, family: str = "shared_eigenbasis") -> Array:
    """L of the aligned modes p, q (D,):

    shared eigenbasis:  L = 1/2 sum_a [s_a - 2 s_a^2 p_a q_a + p_a^2 ((N+1)/N s_a^3 q_a^2 + s_a T / N)],  T = sum_b q_b^2 s_b^2
    i.i.d.:             L = 1/2 [D tr S - 2 sum_a p_a sum_a s_a^2 q_a + sum_a p_a^2 ((N+1)/N sum_a s_a^3 q_a^2 + tr(S) T / N)]
    """
    T = jnp.vdot(q**2, s**2)
    own = (N + 1) / N * s**3 * q**2 + s * T / N
    if family == "iid":
        return (s.size * s.sum() - 2 * p.sum() * jnp.vdot(s**2, q) + jnp.vdot(p, p) * own.sum()) / 2
    return jnp.sum(s - 2 * s**2 * p * q + p**2 * own) / 2


def modes_flow(p: Array, q: Array, s: Array, N: ArrayLike, family: str = "shared_eigenbasis") -> tuple[Array, Array]:
    """The exact coupled flow (dp/dt, dq/dt) of the aligned modes at finite N:

    dp_a/dt = s_a^2 q_a - p_a ((N+1)/N s_a^3 q_a^2 + s_a T / N),     T = sum_b q_b^2 s_b^2
    dq_a/dt = s_a^2 p_a - q_a ((N+1)/N s_a^3 p_a^2 + s_a^2 R / N),   R = sum_b p_b^2 s_b

    (shared eigenbasis; for i.i.d. tasks the sums over modes couple the leading terms as well, see the body).
    Conserved: sum_a p_a^2 - q_a^2. At finite N the modes are coupled and no p_a^2 - q_a^2 is conserved on its own.
    """
    T, R = jnp.vdot(q**2, s**2), jnp.vdot(p**2, s)
    if family == "iid":
        PP, QQ = jnp.vdot(p, p), jnp.vdot(s**3, q**2)
        dp = jnp.vdot(s**2, q) - p * ((N + 1) / N * QQ + s.sum() * T / N)
        dq = s**2 * p.sum() - q * PP * ((N + 1) / N * s**3 + s**2 * s.sum() / N)
        return dp, dq
    dp = s**2 * q - p * ((N + 1) / N * s**3 * q**2 + s * T / N)
    dq = s**2 * p - q * ((N + 1) / N * s**3 * p**2 + s**2 * R / N)
    return dp, dq


def modes_optimum(s: ArrayLike, N: float, family: str = "shared_eigenbasis") -> tuple[np.ndarray, np.ndarray]:
    """The balanced (p, q), (D,) each, that minimise `modes_loss`: the end of the exact flow.

    Alternating exact minimisation: in p for given q, then in q for given p, each a linear problem, to round-off.
    The loss is invariant under p -> c p, q -> q / c; balanced means sum p^2 = sum q^2.
    """
    s = checks.eigenvalues("s", s)
    N = checks.real("N", N, least=1)
    p = q = 1 / np.sqrt(s)
    for _ in range(10_000):
        before = p * q
        T = np.vdot(q**2, s**2)
        if family == "iid":
            total = (N + 1) / N * np.vdot(s**3, q**2) + s.sum() * T / N
            p = np.full_like(s, np.vdot(s**2, q) / total)
            q = p.sum() / np.vdot(p, p) / ((N + 1) / N * s + s.sum() / N)
        else:
            p = s**2 * q / ((N + 1) / N * s**3 * q**2 + s * T / N)
            q = s**2 * p / ((N + 1) / N * s**3 * p**2 + s**2 * np.vdot(p**2, s) / N)
        if np.abs(p * q - before).max() <= 1e-15 * np.abs(p * q).max():
            break
    c = (np.vdot(q, q) / np.vdot(p, p)) ** 0.25
    return p * c, q / c
