"""What a context of N tokens allows: exact losses of one-step descent, of debiased descent and of ridge regression.

x ~ N(0, I) in d dimensions, beta ~ N(0, I/d), label noise sigma2 in the context and in the query. As in He et al. (2025, arXiv
2503.12734), but with the 1/2 in the loss: twice these numbers are theirs.
"""

import numpy as np

from .. import checks


def descent_loss(eta: float, N: float, d: float, sigma2: float) -> float:
    """Of yhat = (eta/N) sum_l y_l x_l.x_q: 2 loss = 1 + sigma2 - 2 eta + eta^2 (N + 1 + d + sigma2 d)/N."""
    return 0.5 * (1 + sigma2 - 2 * eta + eta**2 * (N + 1 + d + sigma2 * d) / N)


def best_descent(N: float, d: float, sigma2: float) -> tuple[float, float]:
    """(eta, loss) at the best step."""
    eta = N / (N + 1 + d + sigma2 * d)
    return eta, 0.5 * (1 + sigma2 - eta)


def debiased_loss(eta: float, N: float, d: float, sigma2: float) -> float:
    """Of yhat = (eta/N) sum_l y_l (x_l - xbar).x_q.

    2 loss = 1 + sigma2 - 2 eta n/N + eta^2 n (n + 1 + d + sigma2 d)/N^2, n = N - 1.
    Two heads omega = (w, -w), mu = (m, -m) tend to it as w -> 0 with 2 m w = eta.
    """
    n = N - 1
    return 0.5 * (1 + sigma2 - 2 * eta * n / N + eta**2 * n * (n + 1 + d + sigma2 * d) / N**2)


def best_debiased(N: float, d: float, sigma2: float) -> tuple[float, float]:
    """(eta, loss) at the best step: eta = N/(N + d(1 + sigma2)), 2 loss = 1 + sigma2 - (N - 1)/(N + d(1 + sigma2))."""
    bottom = N + d * (1 + sigma2)
    return N / bottom, 0.5 * (1 + sigma2 - (N - 1) / bottom)


def ridge_loss(N: int, d: int, sigma2: float, draws: int = 20_000, seed: int = 0) -> float:
    """Of the best answer, ridge regression with sigma2 d: sigma2 (1 + E tr (W + sigma2 d)^{-1}) / 2, W = sum_l x_l x_l^T.

    The mean is one over so many draws of W: some 2e-3 of the loss at the default, for d = 5 and N = 20.
    """
    N, d = checks.integer("N", N, 1), checks.integer("d", d, 1)
    ridge = checks.real("sigma2", sigma2, above=0) * d
    x = np.random.default_rng(seed).normal(size=(checks.integer("draws", draws, 1), N, d))
    values = np.linalg.eigvalsh(x.swapaxes(1, 2) @ x)
    return float(0.5 * sigma2 * (1 + (1 / (np.maximum(values, 0) + ridge)).sum(1).mean()))


def proportional_ridge_loss(xi: float, sigma2: float) -> float:
    """Its limit for d, N -> infinity with d/N = xi.

    2 loss = (sigma2 + s + (4 sigma2 + (sigma2 - s)^2)^(1/2)) / 2, s = (xi - 1)/xi.
    """
    s = (xi - 1) / xi
    return float((sigma2 + s + np.sqrt(4 * sigma2 + (sigma2 - s) ** 2)) / 4)


def proportional_descent_loss(xi: float, sigma2: float) -> float:
    """The limit of `best_descent`: 2 loss = 1 + sigma2 - 1/(1 + xi (1 + sigma2))."""
    return 0.5 * (1 + sigma2 - 1 / (1 + xi * (1 + sigma2)))
