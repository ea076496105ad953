"""The spectrum of C = (1/P) X^T X, X (P, D) standard normal: as D -> infinity, and exactly at finite size.

Both come as Gauss quadrature of lambda rho(lambda), rho the mean spectral density: the mean of f, an atom at 0 included, is
f(0) + sum_i weight_i (f(node_i) - f(0)) / node_i, exact where f is a polynomial of degree <= 2n.
"""

import functools
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from .. import checks

Spectrum = tuple[ArrayLike, ArrayLike]  # nodes (n,), weights (n,)


@functools.cache
def trace_moment(powers: tuple[int, ...], D: int, P: int) -> int:
    """E prod_k tr W^k over `powers` k, for W = X^T X with X (P, D) standard normal; exact, in integers.

    Gaussian integration by parts on the smallest power k,
    E[tr W^k R] = (P + k - 1) E[tr W^{k-1} R] + sum_{j<k-1} E[tr W^{j+1} tr W^{k-2-j} R] + sum_{m in R} 2m E[tr W^{k+m-1} R/m],
    where R is the product of the other traces. The number of terms grows as the partitions of sum k: up to 20 is quick.
    """
    if not powers:
        return 1
    k, rest = powers[0], powers[1:]
    if k == 0:
        return D * trace_moment(rest, D, P)

    def moment(*ks: int) -> int:
        return trace_moment(tuple(sorted(ks)), D, P)

    total = (P + k - 1) * moment(k - 1, *rest) + sum(moment(j + 1, k - 2 - j, *rest) for j in range(k - 1))
    return total + sum(2 * m * moment(k + m - 1, *rest[:i], *rest[i + 1 :]) for i, m in enumerate(rest))


def marchenko_pastur(n: int, alpha: float) -> Spectrum:
    """Gauss quadrature of lambda rho(lambda), rho the Marchenko-Pastur law of (1/P) X^T X as D -> infinity, P = alpha D.

    lambda rho(lambda) = alpha/(2 pi) ((b - lambda)(lambda - a))^{1/2} is a semicircle of mass 1 with centre 1 + 1/alpha and
    radius 2 alpha^{-1/2}, for every alpha: lambda = centre + radius cos(theta) leaves the weight sin^2(theta). The mean of f,
    atom at 0 included, is f(0) + sum_i weight_i (f(node_i) - f(0)) / node_i: exact where f is a polynomial of degree <= 2n.
    """
    alpha = checks.real("alpha", alpha, above=0)
    theta = np.arange(1, checks.integer("n", n, 1) + 1) * np.pi / (n + 1)
    return 1 + 1 / alpha + 2 / alpha**0.5 * np.cos(theta), 2 / (n + 1) * np.sin(theta) ** 2


def wishart(n: int, D: int, P: int) -> Spectrum:
    """The same of (1/P) X^T X at finite P and D: mean spectral density times lambda, exact for polynomials of degree <= 2n.

    From the exact moments E (1/D) tr C^k, k <= 2n, by Chebyshev's algorithm in fractions and the eigenvalues of the Jacobi
    matrix. Costs seconds from n = 10 on.
    """
    n, D, P = checks.integer("n", n, 1, 12), checks.integer("D", D, 1), checks.integer("P", P, 1)
    moments = [Fraction(trace_moment((k + 1,), D, P), D * P ** (k + 1)) for k in range(2 * n)]
    before, now, a, b = [Fraction(0)] * (2 * n), moments, [moments[1] / moments[0]], [Fraction(0)]
    for k in range(1, n):
        new = [Fraction(0)] * (2 * n)
        for j in range(k, 2 * n - k):
            new[j] = now[j + 1] - a[-1] * now[j] - b[-1] * before[j]
        a.append(new[k + 1] / new[k] - now[k] / now[k - 1])
        b.append(new[k] / now[k - 1])
        before, now = now, new
    off = np.sqrt([float(v) for v in b[1:]])
    nodes, vectors = np.linalg.eigh(np.diag([float(v) for v in a]) + np.diag(off, 1) + np.diag(off, -1))
    return nodes, vectors[0] ** 2
