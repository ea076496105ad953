r"""Looped linear attention on linear regression, after Bordelon, Letey and Pehlevan (2025, arXiv 2510.01098).

A context is answered by L steps of preconditioned descent, what_L = sum_{l<L} (I - Gamma C / L)^l Gamma h / L with
C = (1/P) X^T X and h = (1/P) X^T y, so that w - what_L = (I - Gamma C / L)^L w without label noise. Three settings:

- ISO: x ~ N(0, I), w ~ N(0, I/D), label noise sigma^2, P = alpha D, Gamma = gamma I.
- FS (fixed structure): x ~ N(0, Sigma) in every context, P = infinity, tasks w ~ N(0, Omega); all commute.
- RRS (randomly rotated structure): the same, rotated anew in every context, so that Gamma = gamma I.

Losses are 1/2 E (y - f)^2 as everywhere in icldyn (the paper has no 1/2), and t = learning rate x steps for this loss.
Losses and rates are numpy for numpy arguments and traced for traced ones.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .. import checks
from .wishart_spectrum import Spectrum, trace_moment
from .wishart_spectrum import marchenko_pastur as marchenko_pastur
from .wishart_spectrum import wishart as wishart

FLAT = 1e-100  # a rate at which nothing moves any more, far from underflow


def remainder(x: Array, L: float) -> Array:
    """(1 - x/L)^L, what L steps leave of a mode with gamma lambda = x; e^-x for L = infinity."""
    return jnp.exp(-x) if _is_infinite(L) else (1 - x / L) ** L


def _slope_of_remainder(x: Array, L: float) -> Array:
    """(1 - x/L)^{L-1}, minus its derivative."""
    return jnp.exp(-x) if _is_infinite(L) else (1 - x / L) ** (L - 1)


def _is_infinite(L: float) -> bool:
    """Whether L is infinite; a traced depth never is."""
    return isinstance(L, float) and L == math.inf


def iso_loss(gamma: Array, L: float, spectrum: Spectrum, noise: float = 0.0) -> Array:
    """1/2 E[ r^2 + noise (1 - r)^2 / lambda ], r = (1 - gamma lambda / L)^L, over the spectrum of C; noise = sigma^2 / alpha.

    ISO with Gamma = gamma I (their Eq. for finite alpha, halved). `marchenko_pastur(L, alpha)` gives D -> infinity and
    `wishart(L, D, P)` the exact loss at finite size: n = L nodes are exact, for L = infinity take some 64.
    """
    nodes, weights = spectrum
    r = remainder(gamma * nodes, L)
    return 0.5 * (1 + weights @ (noise * ((1 - r) / nodes) ** 2 - (1 - r**2) / nodes))


def iso_rate(gamma: Array, L: float, spectrum: Spectrum, noise: float = 0.0) -> Array:
    """d gamma / dt = -d loss / d gamma = E[ lambda r (1 - gamma lambda / L)^{L-1} ] - noise E[ (1 - r) (...)^{L-1} ]."""
    nodes, weights = spectrum
    r, slope = remainder(gamma * nodes, L), _slope_of_remainder(gamma * nodes, L)
    return weights @ (slope * (r - noise * (1 - r) / nodes))


def iso_optimum(L: int, spectrum: Spectrum, noise: float = 0.0) -> float:
    """The gamma that ends the flow from 0.

    For D -> infinity and noise = 0 it is L alpha / (1 + alpha) at every depth, where odd powers of the semicircle vanish.
    """
    return _root(lambda gamma: iso_rate(gamma, L, spectrum, noise))


def _root(rate) -> float:
    """The first zero of a rate that is positive at 0."""
    from scipy.optimize import brentq

    high = 1.0
    while rate(high) > 0:
        high *= 1.2
    return float(brentq(rate, 0.0, high, xtol=1e-14, rtol=1e-14))


def sgd_recursion(
    eta: float,
    alpha: float,
    kappa: float,
    tau: float,
    sigma2: float = 0.0,
    noisy_queries: bool = False,
    D: int | None = None,
) -> tuple[float, np.ndarray]:
    """s and the matrix (3, 3) that takes (E|Delta|^2/D, E tr Delta/D, 1) through one step of SGD, Delta = Gamma - I/s; L = 1.

    ISO, full Gamma, learning rate eta D, B = tau D fresh contexts of P = alpha D pairs with K = kappa D queries each. With
    u = h and v the mean over the queries of x (y - x^T Gamma u),
    E v u^T = -(s/D) Delta, E|v|^2|u|^2 = (1 + (D+1)/K) E|u|^2 |w - Gamma u|^2 + (sigma_q^2 D/K) s, and
    E|u|^2 |w - Gamma u|^2 = c0 - 2 c1 tr Gamma/D + c2 |Gamma|^2/D by rotation invariance: exact at every D. `D=None` is the
    limit, in which tr Delta drops out: a = (1 - eta s)^2 + (eta^2/tau)(1 + 1/kappa) s^2, and
    b = (eta^2/tau)[(1 + 1/kappa)(s - 1) + sigma_q^2 s / kappa], s = 1 + (1 + sigma^2)/alpha.
    """
    if D is None:
        s, one_over_B, spread = 1 + (1 + sigma2) / alpha, 0.0, 1 + 1 / kappa
        c0, c1, c2 = s, s, s**2
    else:
        s, c0, c1, c2 = _fourth_moments(D, _whole("alpha", alpha, D), sigma2)
        one_over_B, spread = 1 / _whole("tau", tau, D), 1 + (D + 1) / _whole("kappa", kappa, D)
    noise = sigma2 * s / kappa if noisy_queries else 0.0
    quadratic = np.array([c2, 2 * (c2 / s - c1), c0 - 2 * c1 / s + c2 / s**2])
    first = eta**2 / tau * (spread * quadratic + np.array([0, 0, noise]))
    first[0] += 1 - 2 * eta * s + eta**2 * (1 - one_over_B) * s**2
    return s, np.array([first, [0, 1 - eta * s, 0], [0, 0, 1]])


def _whole(name: str, ratio: float, D: int) -> int:
    if abs(ratio * D - round(ratio * D)) > 1e-9 * ratio * D:
        raise checks.refuse(name, f"make {name} D a whole number at D = {D}", ratio)
    return round(ratio * D)


def _fourth_moments(D: int, P: int, sigma2: float) -> tuple[float, float, float, float]:
    """E|u|^2, E|u|^2|w|^2, E|u|^2 u.w and E|u|^4.

    Given C, (u, w) is Gaussian with Cov u = C^2/D + sigma^2 C/P, Cov(u, w) = C/D and Cov w = I/D.
    """

    def T(*powers: int) -> float:
        return trace_moment(tuple(sorted(powers)), D, P) / P ** sum(powers)

    a, b = 1 / D, sigma2 / P
    s = a * T(2) + b * T(1)
    c0 = s + 2 * a**2 * T(2)
    c1 = a * (a * T(2, 1) + b * T(1, 1)) + 2 * a * (a * T(3) + b * T(2))
    square_of_trace = a**2 * T(2, 2) + 2 * a * b * T(2, 1) + b**2 * T(1, 1)
    return s, c0, c1, square_of_trace + 2 * (a**2 * T(4) + 2 * a * b * T(3) + b**2 * T(2))


def sgd_loss(steps: ArrayLike, *args, **settings) -> np.ndarray:
    """Mean loss (T,) after each number of steps from Gamma = 0: 1/2 (1 - 1/s + s E|Delta|^2/D); arguments of `sgd_recursion`."""
    s, step = sgd_recursion(*args, **settings)
    start = np.array([1 / s**2, -1 / s, 1.0])
    states = [np.linalg.matrix_power(step, int(k)) @ start for k in np.ravel(steps)]
    return 0.5 * (1 - 1 / s + s * np.array(states)[:, 0])


def sgd_floor(*args, **settings) -> tuple[float, float]:
    """(a, E|Delta|^2/D at the end) of `sgd_recursion`: b / (1 - a)."""
    _, step = sgd_recursion(*args, **settings)
    return float(step[0, 0]), float(step[0, 2] / (1 - step[0, 0]))


def power_law(D: int, nu: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """lambda_k = k^-nu and omega_k, (D,) each, with omega_k lambda_k proportional to k^(-nu beta - 1), of sum 1."""
    k = np.arange(1, checks.integer("D", D, 1) + 1, dtype=float)
    lam, share = k ** -checks.real("nu", nu, above=0), k ** (-nu * checks.real("beta", beta, above=0) - 1)
    return lam, share / share.sum() / lam


def modes_loss(gamma: Array, lam: ArrayLike, omega: ArrayLike, L: float) -> Array:
    """1/2 sum_k omega_k lambda_k (1 - lambda_k gamma_k / L)^{2L} at P = infinity; gamma (D,) for FS or a number for RRS."""
    return 0.5 * (omega * lam * remainder(gamma * lam, L) ** 2).sum()


def fs_rate(gamma: Array, lam: ArrayLike, omega: ArrayLike, L: float) -> Array:
    """d gamma_k / dt = omega_k lambda_k^2 (1 - lambda_k gamma_k / L)^{2L-1}, (D,); twice that for the loss without 1/2."""
    return omega * lam**2 * remainder(gamma * lam, L) * _slope_of_remainder(gamma * lam, L)


def fs_gamma(t: ArrayLike, lam: ArrayLike, omega: ArrayLike, L: float) -> np.ndarray:
    """The solution of `fs_rate` from 0, (T, D).

    1 - lambda gamma = e^{-c t} for L = 1, (1 - lambda gamma / L)^{-2(L-1)} = 1 + 2 (1 - 1/L) c t for 1 < L < infinity and
    e^{2 lambda gamma} = 1 + 2 c t for L = infinity, with c = omega lambda^3 (4 c t for the loss without 1/2).
    """
    lam = np.asarray(lam, float)
    ct = np.multiply.outer(np.asarray(t, float), np.asarray(omega, float) * lam**3)
    if L == 1:
        return -np.expm1(-ct) / lam
    if L == math.inf:
        return np.log1p(2 * ct) / (2 * lam)
    return -np.expm1(np.log1p(2 * (1 - 1 / L) * ct) / (2 - 2 * L)) * L / lam


def ood_loss(Gamma: Array, Sigma: ArrayLike, Omega: ArrayLike, L: int) -> Array:
    """1/2 tr Omega R^T Sigma R, R = (I - Gamma Sigma / L)^L, of weights Gamma (D, D) on another covariance and task law.

    At the end of FS, Gamma = L Sigma_train^{-1}, R = (I - Sigma_train^{-1} Sigma)^L grows with L wherever Sigma is far off.
    """
    R = np.eye(len(Sigma))
    for _ in range(L):
        R = R - Gamma @ Sigma @ R / L
    return 0.5 * (Omega @ R.T @ Sigma @ R).trace()


def rrs_rate(w: Array, lam: ArrayLike, omega: ArrayLike, L: float, power: int = 1) -> Array:
    """dw/dt = (d gamma/dw) sum_k omega_k lambda_k^2 (1 - lambda_k gamma / L)^{2L-1} for gamma = w^power."""
    return power * w ** (power - 1) * fs_rate(w**power, lam, omega, L).sum()


def rrs_optimum(L: int, lam: ArrayLike, omega: ArrayLike) -> float:
    """The gamma at the end of RRS, where the loss falls as L^-beta for power laws of enough modes."""
    return _root(lambda gamma: rrs_rate(gamma, lam, omega, L))


def rrs_curve(
    gamma: ArrayLike, lam: ArrayLike, omega: ArrayLike, L: float, power: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(t, loss), each (n,), where the flow of gamma = w^power passes the ascending values gamma (n,), from the first at t = 0.

    The flow is autonomous, so that t = integral d gamma / (d gamma/dt), with d gamma/dt = power^2 gamma^{2-2/power} sum_k (...).
    """
    from scipy.integrate import cumulative_simpson

    gamma, lam, omega = np.asarray(gamma, float), np.asarray(lam, float), np.asarray(omega, float)
    x = np.multiply.outer(gamma, lam)
    left = np.exp(-x) if L == math.inf else (1 - x / L) ** L
    rate = (left * (left if L == math.inf else (1 - x / L) ** (L - 1))) @ (omega * lam**2)
    rate *= power**2 * gamma ** (2 - 2 / power)
    return cumulative_simpson(1 / rate, x=gamma, initial=0.0), 0.5 * left**2 @ (omega * lam)


def compute_optimal(
    budgets: ArrayLike, lam: ArrayLike, omega: ArrayLike, widths: ArrayLike, depths: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(loss, N, L), each (budgets,): the best width and depth, of those given, at compute t N^2 L (P = infinity, gamma trained).

    A width N sees the first N modes; the others keep their loss. Where all terms of loss ~ t^{-beta/(2+beta)} + N^{-nu beta} +
    L^{-beta} count, L grows as N^nu.
    """
    from scipy.integrate import cumulative_simpson

    lam, omega, N = np.asarray(lam, float), np.asarray(omega, float), np.asarray(widths, int)
    budgets, found = np.asarray(budgets, float), []
    for L in np.asarray(depths, int):
        gamma = np.linspace(0, 1, 160) ** 2 * 1.97 * L  # |1 - gamma lambda_1 / L| < 1: never at its end
        left = 1 - np.multiply.outer(gamma, lam[: N.max()]) / L
        share = (omega * lam)[: N.max()]
        rates = np.cumsum(left ** (2 * L - 1) * share * lam[: N.max()], axis=1)[:, N - 1]
        unseen = 0.5 * ((omega * lam).sum() - share.cumsum()[N - 1])
        losses = 0.5 * np.cumsum(left ** (2 * L) * share, axis=1)[:, N - 1] + unseen
        for n, rate, loss in zip(N, rates.T, losses.T, strict=True):
            last = len(rate) if (rate > FLAT).all() else int(np.argmax(rate <= FLAT))
            t = cumulative_simpson(1 / rate[:last], x=gamma[:last], initial=0.0)
            found.append(np.interp(budgets / (n**2 * L), t, loss[:last]))
    best = np.argmin(found, axis=0)
    return np.min(found, axis=0), N[best % len(N)], np.asarray(depths)[best // len(N)]


def compute_exponent(nu: float, beta: float) -> float:
    """loss ~ compute^-e of `compute_optimal`: 1/e = (2 + beta)/beta + 2/(nu beta) + 1/beta, one term each for t, N^2 and L."""
    return 1 / ((2 + beta) / beta + 2 / (nu * beta) + 1 / beta)


def rrs_time_exponent(beta: float, power: int = 1) -> float:
    """loss ~ t^-e at L = infinity, e = beta / (beta + 2/power): beta/(2 + beta) for gamma, 5 beta/(5 beta + 2) for w^5.

    From loss ~ gamma^-beta and d gamma/dt ~ (d gamma/dw)^2 gamma^{-beta-1}.
    """
    return beta / (beta + 2 / power)


def fs_time_exponent(nu: float, beta: float) -> float:
    """loss ~ t^-e of FS at L = infinity, e = nu beta / (nu beta + 2 nu + 1)."""
    return nu * beta / (nu * beta + 2 * nu + 1)
