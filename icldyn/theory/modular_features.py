"""Weights in closed form that solve modular addition exactly (Gromov 2023, arXiv 2301.02679).

    A_nk = cos(2 pi f_k n/p + phi1_k),    B_mk = cos(2 pi f_k m/p + phi2_k),    W_kq = cos(2 pi f_k q/p + phi1_k + phi2_k)

for the network f(n, m) = sum_k (A_nk + B_mk)^2 W_kq. The term 2 A B W of a neuron holds cos(2 pi f_k (n + m - q)/p)/2
whatever its phases; all others average out over them. So over phases

    E f_q(n, m) = (1/2) sum_k cos(2 pi f_k (n + m - q)/p),

which is N/2 at the answer q = n + m and -N / (2 (p - 1)) elsewhere, if all frequencies 1 ... (p-1)/2 occur equally often.
"""

import numpy as np
from numpy.typing import ArrayLike

from .. import checks

Weights = dict[str, np.ndarray]


def cycled(p: int, N: int) -> np.ndarray:
    """Frequencies of N neurons (N,): 1, 2, ..., (p-1)/2, 1, 2, ... in turn.

    Raises:
        icldyn.BadArgument: if p is not odd and at least 3, or N is below 1.
    """
    return 1 + np.arange(checks.integer("N", N, 1)) % frequencies(p)


def frequencies(p: int) -> int:
    """How many there are beside the constant, (p - 1) / 2.

    Raises:
        icldyn.BadArgument: if p is not odd and at least 3.
    """
    if checks.integer("p", p, 3) % 2 == 0:
        raise checks.refuse("p", "be odd", p)
    return (p - 1) // 2


def weights(p: int, frequency: ArrayLike, phi1: ArrayLike, phi2: ArrayLike) -> Weights:
    """{"A": (p, N), "B": (p, N), "W": (N, p)} for frequencies and phases (N,).

    Raises:
        icldyn.BadArgument: if they differ in length, or p is below 2.
    """
    p, frequency = checks.integer("p", p, 2), checks.array("frequency", frequency, ndim=1)
    phi1, phi2 = (checks.array(name, phi, shape=frequency.shape) for name, phi in (("phi1", phi1), ("phi2", phi2)))
    angle = 2 * np.pi / p * np.arange(p)[:, None] * frequency
    return {"A": np.cos(angle + phi1), "B": np.cos(angle + phi2), "W": np.cos(angle + phi1 + phi2).T}


def outputs(held: Weights) -> np.ndarray:
    """f of all pairs, (p, p, p)."""
    return (held["A"][:, None] + held["B"][None]) ** 2 @ held["W"]


def mean_outputs(p: int, frequency: ArrayLike) -> np.ndarray:
    """(1/2) sum_k cos(2 pi f_k (n + m - q)/p), (p, p, p): the mean of `outputs` over phases."""
    n, m, q = np.indices((p, p, p), sparse=True)
    by_shift = np.cos(2 * np.pi / p * np.arange(p)[:, None] * checks.array("frequency", frequency, ndim=1)).sum(1) / 2
    return by_shift[(n + m - q) % p]


def accuracy(held: Weights) -> float:
    """Share of all pairs whose largest output is n + m mod p."""
    p = len(held["A"])
    n, m = np.indices((p, p))
    return float((outputs(held).argmax(-1) == (n + m) % p).mean())


def random_participation(p: int) -> float:
    """4 / (p + 1): the inverse participation ratio over frequencies of a Gaussian column, on average.

    Its (p - 1)/2 powers are independent and exponential, so their shares are uniform on the simplex, and of M shares
    E sum_k share_k^2 = 2 / (M + 1).

    Raises:
        icldyn.BadArgument: if p is not odd and at least 3.
    """
    return 2 / (frequencies(p) + 1)
