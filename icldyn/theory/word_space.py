"""Gradient flow of attention over orthonormal words, closed in the space of words: Hongru Yang et al. 2024 (arXiv 2410.09605).

A loss L(G, S) of G = sqrt m1 W_V^T w (d,) and S = W_K^T W_Q (d, d), with c = dL/dG and B = dL/dS, under gradient flow of all
weights moves with the Gram matrices V = W_V^T W_V, P = W_K^T W_K, R = W_Q^T W_Q (d, d) and u = |w|^2:

    dG/dt = -m1 (V + u I) c,    dV/dt = -(G c^T + c G^T),         du/dt = -2 G.c,
    dS/dt = -(P B + B R),       dP/dt = -(B S^T + S B^T),         dR/dt = -(S^T B + B^T S).

Exact for any widths m and m1, which appear in the start and in m1 alone. As m grows, W_V, W_K, W_Q ~ N(0, sigma0^2) and
w ~ N(0, sigma1^2) start at V = P = R = m sigma0^2 I, u = m sigma1^2 and G = S = 0, up to 1/sqrt m: one curve for all seeds.

With uniform attention F = N G: G separates the sentences by the counts of their words, and its direction goes to the largest
margin in L2. Sums of g_i = 1/(1 + e^(y_i F_i)) over the types then go as the multipliers of `margin`.
"""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
from jax import Array

from .. import checks

LABELS = np.array([1, -1, -1, -1])
WORDS = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1]])  # mu_1, mu_2, mu_3 in sentences of the four types


def field(state: dict[str, Array], c: Array, B: Array, m1: float) -> dict[str, Array]:
    """Time derivatives of {"G", "V", "u", "S", "P", "R"}, given c (d,) and B (d, d)."""
    G, V, u, S, P, R = (state[name] for name in ("G", "V", "u", "S", "P", "R"))
    Gc, BS, SB = jnp.outer(G, c), B @ S.T, S.T @ B
    return {
        "G": -jnp.asarray(m1, G.dtype) * (V @ c + u * c),
        "V": -(Gc + Gc.T),
        "u": -2 * G @ c,
        "S": -(P @ B + B @ R),
        "P": -(BS + BS.T),
        "R": -(SB + SB.T),
    }


def wide_start(d: int, m: int, sigma0: float, sigma1: float) -> dict[str, np.ndarray]:
    """Where large m starts: G = S = 0, V = P = R = m sigma0^2 I, u = m sigma1^2."""
    gram, nothing = m * sigma0**2 * np.eye(d), np.zeros((d, d))
    return {"G": np.zeros(d), "V": gram, "u": np.float64(m * sigma1**2), "S": nothing, "P": gram, "R": gram}


def margin(counts: tuple[int, ...], L: int) -> np.ndarray:
    """Multipliers (4,) of the largest margin in L2, summed over each type: min |G|^2 / 2 with y_i N_i.G >= 1.

    For `counts` sentences of each type and irrelevant words that all differ: sentences of one type have equal multipliers, and
    G = sum_i y_i alpha_i N_i. For n -> infinity with equal I_2, I_3 it is G_1 = G_2 = 2, G_3 = -3.
    """
    counts = checks.array("counts", counts, shape=(4,))
    if (counts < 1).any():
        raise checks.refuse("counts", "be at least 1 for every type", counts.tolist())
    irrelevant = checks.integer("L", L, 3) - WORDS.sum(1)
    H = np.outer(LABELS, LABELS) * (WORDS @ WORDS.T) + np.diag(irrelevant / counts)
    for size in (4, 3, 2, 1):
        for held in map(list, itertools.combinations(range(4), size)):
            alpha = np.zeros(4)
            alpha[held] = np.linalg.lstsq(H[np.ix_(held, held)], np.ones(size))[0]
            if (alpha >= 0).all() and (H @ alpha >= 1 - 1e-9).all():
                return alpha
    raise AssertionError("a convex problem that can be met has a solution")


def largest_margin(N: np.ndarray) -> np.ndarray:
    """G (d,) of least |G| with y_i N_i.G >= 1 for any sentences with counts N (n, d), where there is one.

    G is A^T alpha up to a factor, with alpha >= 0 the least of |A^T alpha|^2 + (sum alpha - 1)^2, A_i = y_i N_i.
    """
    from scipy.optimize import nnls

    N = checks.array("N", N, ndim=2)
    A = np.where((N[:, :2] > 0).all(1, keepdims=True), N, -N)
    target = np.append(np.zeros(N.shape[1]), 1.0)
    G = A.T @ nnls(np.vstack([A.T, np.ones(len(A))]), target)[0]
    return G / (A @ G).min()


def margin_values(alpha: np.ndarray) -> np.ndarray:
    """G_1, G_2, G_3 (3,) of multipliers."""
    return (LABELS * alpha) @ WORDS


def balance(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two ratios of automatic balancing, of sums of g over the types (..., 4).

    |sum_2 - sum_3| / min(sum_2, sum_3) and (-sum_1 + sum_2 + sum_3 + sum_4) / (sum_1 - sum_2); for uniform attention and large m
    the second is (-dG_3/dt) / (dG_1/dt). Not finite where a type has no sentences.
    """
    one, two, three, four = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(two - three) / np.minimum(two, three), (two + three + four - one) / (one - two)
