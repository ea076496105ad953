"""Exact population loss of one linear-attention layer at any weights: all four blocks, any task family, any N.

Given the task W, the tokens z_n = (x_n; y_n) are N independent Gaussians of covariance Sz(W), so the context matrix is a
Wishart matrix and every moment that the squared error needs is closed form; averaging over W leaves the moments of
`TaskMoments`. This is a shorter road than expanding the loss in the blocks and covers vector and scalar tasks, label noise
and task pools alike. [derived; checked against sampled prompts and against the formula of `scalar_population_loss`]
"""

import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike

from .moments import TaskMoments, quartic, sextic


def population_loss(P: Array, Q: Array, moments: TaskMoments, query_attends_itself: bool = True) -> Array:
    """L = 1/2 E |W x_q - P (G + z_q z_q^T / N) Q x_q|^2, exactly.

    With B = Q S Q^T, p1 = P[:, :D], q1 = Q[:D] and averages over W,

        2L = E tr(W S W^T) - 2 E tr(P Sz Q S W^T) + E tr(P [(1 + 1/N) Sz B Sz + tr(B Sz) Sz / N] P^T)
             + (2/N) E[x^T (P Sz Q - W)^T p1 x x^T q1 x] + (1/N^2) E[|p1 x|^2 (x^T q1 x)^2],

    the second line only if the query attends to itself. P: (O, D+O), Q: (D+O, D), the rows of W_P and the columns of W_Q
    that reach the answer. Holds for every N >= 1. Cost O((D+O)^4), independent of N.
    """
    S, Sz, SzSz, W, N = (jnp.asarray(a, P.dtype) for a in (moments.S, moments.Sz, moments.SzSz, moments.W, moments.N))
    D = S.shape[0]
    B = Q @ S @ Q.T
    linear = jnp.einsum("oi,ijob,jb->", P, jnp.asarray(moments.SzW, P.dtype), Q @ S)
    SBS = jnp.einsum("ijkl,jk->il", SzSz, B)
    BSS = jnp.einsum("ijkl,ij->kl", SzSz, B)
    square = jnp.sum((P.T @ P) * ((1 + 1 / N) * SBS + BSS / N))
    twice = jnp.asarray(moments.yy, P.dtype) - 2 * linear + square
    if query_attends_itself:
        p1, q1 = P[:, :D], Q[:D]
        twice = twice + 2 / N * quartic((P @ Sz @ Q - W).T @ p1, q1, S) + sextic(p1.T @ p1, q1, S) / N**2
    return twice / 2


def scalar_population_loss(
    M: Array, S: Array, Sigma_w: Array, rho: ArrayLike, N: ArrayLike, query_attends_itself: bool = True
) -> Array:
    """L for scalar tasks and any number of heads, from the tensor M_abk = sum_h p_ha Q_hbk, (D+1, D+1, D).

    yhat = h^T A x_q + <F, C + x_q x_q^T / N> x_q + c m.x_q splits into a part odd in (w, e) and an even one, so
    2L = T_odd + T_even; A, F and m are read off M below. S, Sigma_w: (D, D). Holds for every N >= 1, label noise rho.
    Source: derived for this project; independent of `population_loss`, which agrees with it to round-off. Cost O(D^4).
    """
    D = S.shape[0]
    A = M[:D, D] + M[D, :D]  # multiplies h_a
    F = (M[:D, :D] + M[:D, :D].swapaxes(0, 1)) / 2  # multiplies C_ab + x_qa x_qb / N
    m = M[D, D]  # multiplies c

    SwS = Sigma_w @ S
    tw = jnp.trace(SwS)
    ASA = A @ S @ A.T
    CASAC = S @ ASA @ S + (S @ ASA @ S + jnp.trace(ASA @ S) * S) / N
    odd = tw - 2 * jnp.trace(SwS @ A @ S) + jnp.trace(Sigma_w @ CASAC) + rho / N * jnp.trace(S @ ASA)

    u = jnp.einsum("ab,abk->k", S, F)
    CC = jnp.outer(u, u) + 2 / N * jnp.einsum("abk,ac,bd,cdl->kl", F, S, S, F)
    Ec = tw + rho
    Cs = jnp.einsum("ab,abk->k", S * Ec + 2 / N * S @ SwS, F)
    Ec2 = (tw**2 + 2 * jnp.trace(SwS @ SwS) + 2 * rho * tw + rho**2) * (1 + 2 / N)
    # Ec2 is E[c^2] with c | w ~ (w^T S w + rho) chi^2_N / N
    V = CC + jnp.outer(Cs, m) + jnp.outer(m, Cs) + Ec2 * jnp.outer(m, m)
    even = jnp.trace(V @ S)
    if query_attends_itself:
        Ev = u + Ec * m
        ways = jnp.einsum("ka,bc->kabc", S, S)
        ways = ways + jnp.einsum("kb,ac->kabc", S, S) + jnp.einsum("kc,ab->kabc", S, S)
        cross = jnp.einsum("k,abc,kabc->", Ev, F, ways)
        F3 = sum(F.transpose(order) for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))) / 6
        g = jnp.einsum("abc,ab->c", F3, S)
        six = 9 * g @ S @ g + 6 * jnp.einsum("abc,ad,be,cf,def->", F3, S, S, S, F3)
        even = even + 2 / N * cross + six / N**2
    return (odd + even) / 2
