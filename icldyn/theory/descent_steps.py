"""Losses of L steps of gradient descent on the pairs of a context, plain, preconditioned, and GD++: 1/2 E (y_q - yhat_q)^2.

A context has C = (1/N) sum_n x_n x_n^T and labels y = w^T x without noise; x and the query have covariance Sigma, and
w ~ N(0, Sigma_w). Layer l steps with rate eta_l from w = 0; in GD++ (von Oswald et al., 2212.07677; their gamma is ours / N) it
replaces every input by (I - gamma_l C_l) x. All is a function of C: with lambda its eigenvalues, Sigma = s I and Sigma_w = I,

    L = (s/2) E sum_i r_L(lambda_i)^2,   r <- r (1 - eta_l k^2 lambda),   k <- k (1 - gamma_l k^2 lambda),   r_0 = k_0 = 1.

So a loss needs the mean density of the eigenvalues and no more, given as a rule (nodes, weights) with
E sum_i f(lambda_i) = weights . f(nodes): `wishart_rule` is exact for normal inputs, `sampled_rule` holds for the contexts given.
With w ~ N(0, Sigma^-1), as in Ahn et al. (2306.00297), x = Sigma^(1/2) z turns steps preconditioned by Sigma^-1 into plain
steps on white z. Source: derived for this project.
"""

import numpy as np
from numpy.typing import ArrayLike

from .. import checks

Rule = tuple[np.ndarray, np.ndarray]


def mean_square_eigenvalue(s: ArrayLike, m4: ArrayLike, D: int, N: int) -> ArrayLike:
    """q = E tr(C^2) / D = (m4 + (D-1) s^2)/N + (N-1) s^2/N, for i.i.d. coordinates with E x^2 = s, E x^4 = m4, mean 0."""
    return (m4 + (D - 1) * s**2) / N + (N - 1) * s**2 / N


def one_step_loss(eta: ArrayLike, s: ArrayLike, m4: ArrayLike, D: int, N: int) -> ArrayLike:
    """L(eta) = (D s/2) (1 - 2 eta s + eta^2 q), exact for any law of i.i.d. coordinates, w ~ N(0, I)."""
    return D * s / 2 * (1 - 2 * eta * s + eta**2 * mean_square_eigenvalue(s, m4, D, N))


def one_step_optimum(s: float, m4: float, D: int, N: int) -> tuple[float, float]:
    """eta* = s/q and L* = (D s/2) (1 - s^2/q)."""
    eta = s / mean_square_eigenvalue(s, m4, D, N)
    return eta, float(one_step_loss(eta, s, m4, D, N))


def preconditioned_optimum(D: int, N: int) -> tuple[float, float]:
    """Rate c = N/(N+D+1) and loss D (D+1)/(2 (N+D+1)) of the best single step A = c Sigma^-1: normal x, w ~ N(0, Sigma^-1)."""
    return N / (N + D + 1), D * (D + 1) / (2 * (N + D + 1))


def residuals(eta: ArrayLike, gamma: ArrayLike, nodes: ArrayLike) -> np.ndarray:
    """r_L at eigenvalues `nodes`, for rates `eta` (L,) and `gamma` (L,), the last of which has no effect."""
    r = k = np.ones_like(nodes)
    for e, g in zip(eta, gamma, strict=True):
        c = k**2 * nodes
        r, k = r * (1 - e * c), k * (1 - g * c)
    return r


def steps_loss(eta: ArrayLike, gamma: ArrayLike, rule: Rule, s: float = 1.0) -> float:
    """(s/2) E sum_i r_L(lambda_i)^2."""
    nodes, weights = rule
    return float(s / 2 * weights @ residuals(eta, gamma, nodes) ** 2)


def tuned_steps(L: int, rule: Rule, *, transform: bool, shared: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The best (eta, gamma), (L,) each: gamma = 0 without `transform`; one of each for all layers if `shared`.

    Least squares from several starts; the lowest end is kept.
    """
    from scipy.optimize import least_squares

    L = checks.integer("L", L, 1)
    nodes, weights = rule
    scale = weights.sum() / (weights @ nodes)  # 1 / mean eigenvalue
    k = 1 if shared else L

    def unpack(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gamma = v[k:] if transform else np.zeros(k)
        gamma = gamma if shared or not transform else np.append(gamma, 0.0)
        return np.broadcast_to(v[:k], L) * scale, np.broadcast_to(gamma, L) * scale

    free = 0 if not transform else (k if shared else L - 1)
    ends = []
    for eta, gamma in ((0.8, 0.1), (0.5, 0.2), (0.3, 0.05)):
        start = np.concatenate([eta * (1 + 0.3 * np.arange(k) / k), np.full(free, gamma)])
        ends.append(least_squares(lambda v: np.sqrt(weights) * residuals(*unpack(v), nodes), start, method="lm"))
    return unpack(min(ends, key=lambda end: end.cost).x)


def wishart_rule(D: int, N: int, num: int = 240) -> Rule:
    """Exact mean density of the eigenvalues of C for x ~ N(0, I), N >= D: nodes (num,), weights that sum to D.

    The eigenvalues x of N C have the law prod w(x_i) prod |x_i - x_j|, w = x^((N-D-1)/2) e^(-x/2), so that (de Bruijn)
    E prod (1 + e f(x_i)) = Pf A(e) / Pf A(0), A_jk = int int sgn(y - x) p_j(x) p_k(y) w(x) w(y), for any polynomials p_j of
    degrees below D; odd D adds a row int p_j w. The derivative at e = 0 is E sum f = 1/2 tr(A^-1 dA), linear in f.
    Integrals by Gauss and Legendre in x^(1/2). A is ill-conditioned for large D: the first moments
    are within 1e-7 at D = 6, the most that is taken.
    """
    from scipy.special import gammaln

    D = checks.integer("D", D, 1, 6)
    N = checks.integer("N", N, D)
    reach = np.sqrt(N + D + 12 * np.sqrt(2 * N * D) + 40)  # beyond the largest eigenvalue by far: e^(-x/2) is round-off
    z, step = np.polynomial.legendre.leggauss(num)
    u = reach * (z + 1) / 2
    x = u**2
    a = (N - D - 1) / 2
    log_w = (2 * a + 1) * np.log(u) - x / 2 - gammaln(a + 1) - (a + 1) * np.log(2)  # of w dx = 2 u w du
    root = np.exp(log_w / 2) * np.sqrt(step * reach)  # its square is w dx at the nodes
    ortho = np.linalg.qr(np.polynomial.chebyshev.chebvander(2 * u**2 / reach**2 - 1, D - 1) * root[:, None])[0].T
    p = ortho * root / (step * reach / 2)  # (D, num): orthonormal polynomials times w, per du
    mass = p @ step * reach / 2
    legendre = np.polynomial.legendre.legvander(z, num - 1)
    series = (p * step) @ legendre * (np.arange(num) + 0.5)  # (D, num)
    below = np.polynomial.legendre.legval(z, np.polynomial.legendre.legint(series, lbnd=-1, axis=1).T) * reach / 2
    above = mass[:, None] - 2 * below  # int sgn(y - x) p_k(y) w(y) dy
    n = D + D % 2
    A, density = np.zeros((n, n)), np.zeros((n, n, num))
    density[:D, :D] = p[:, None] * above[None] - p[None] * above[:, None]
    A[:D, :D] = (p * step) @ above.T * reach / 2
    if D % 2:
        A[:D, D], A[D, :D] = mass, -mass
        density[:D, D], density[D, :D] = p, -p
    weights = np.einsum("kj,jkm->m", np.linalg.inv(A), density) / 2 * step * reach / 2
    return x / N, np.maximum(weights, 0)  # round-off of the tails


def sampled_rule(x: ArrayLike) -> Rule:
    """The eigenvalues of C of these contexts x (P, N, D), each of weight 1/P. Losses have a relative error of order P^(-1/2)."""
    x = checks.array("x", x, ndim=3)
    C = np.einsum("pni,pnj->pij", x, x) / x.shape[1]
    nodes = np.linalg.eigvalsh(C).ravel()
    return nodes, np.full(nodes.size, 1 / len(x))


def general_steps_loss(eta: ArrayLike, C: ArrayLike, Sigma: ArrayLike, Sigma_w: ArrayLike) -> np.ndarray:
    """1/2 tr(Sigma_w R^T Sigma R) of plain steps, R = prod_l (I - eta_l C), in every context C (P, D, D): (P,)."""
    values, V = np.linalg.eigh(np.asarray(C))
    r = residuals(np.atleast_1d(eta), np.zeros(np.size(eta)), values)
    rotated = (np.einsum("pai,ab,pbj->pij", V, M, V, optimize=True) for M in (Sigma_w, Sigma))
    return np.einsum("pi,pj,pij->p", r, r, np.multiply(*rotated), optimize=True) / 2


def tuned_rate(L: int, C: ArrayLike, Sigma: ArrayLike, Sigma_w: ArrayLike) -> float:
    """The best single rate of L plain steps on the contexts C (P, D, D)."""
    from scipy.optimize import minimize_scalar

    top = 2 / np.trace(Sigma) * 4
    grid = np.geomspace(top / 1e3, top, 40)
    losses = [general_steps_loss(np.full(L, e), C, Sigma, Sigma_w).mean() for e in grid]
    best = int(np.argmin(losses))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, 39)])
    found = minimize_scalar(
        lambda e: general_steps_loss(np.full(L, e), C, Sigma, Sigma_w).mean(), bounds=around, method="bounded"
    )
    return float(found.x)
