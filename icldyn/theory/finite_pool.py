"""Linear attention fitted by ridge regression on n contexts with tasks from a pool of k (Lu, Letey et al., arXiv 2405.11751).

    yhat = tr(Gamma v x_q^T),  v = ((d/l) sum_i y_i x_i ; (1/l) sum_i y_i^2)      (d+1,), so Gamma is (d, d+1)
    Gamma = argmin (1/n) sum (y_q - yhat)^2 + (lam/d) ||Gamma||_F^2

over contexts of l pairs, y = w.x + e, x ~ N(0, I/d), |w|^2 = d, e ~ N(0, rho), the query's label noisy too. Ratios:
alpha = l/d, kappa = k/d, tau = n/d^2. Errors are E (y_q - yhat)^2 without the 1/2, of two test laws: "ICL" tasks are new and
uniform on the sphere (mean mu = 0, second moment R = I), "IDG" tasks come from the pool (mu and R of its k tasks).

`ridgeless_errors` is the paper's result for d -> infinity, lam -> 0. `ridge_errors` (any lam) and `pool_errors` (any lam, at
finite d, given the pool) are derived here from the deterministic equivalent of ridge regression: Gamma behaves as with
Gaussian features of covariance E[v v^T] (x) I/d. The first agrees with the paper's at lam = 0 to round-off; the second keeps the
O(1/d) terms in l, d + 1 and the pool, and leaves out those of the fourth cumulants of the features.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike
from scipy.optimize import brentq

LARGEST = 1e12  # an upper end for every root


def context_moments(mu: Array, R: Array, l: ArrayLike, rho: ArrayLike) -> tuple[Array, Array]:
    """E[v w^T] = (R; (1+rho) mu^T), (d+1, d), and E[v v^T], (d+1, d+1), over contexts of l pairs, exactly:

    E[v v^T] = [[(1+1/l) R + (1+rho)(d/l) I,  (1+rho)(1+2/l) mu], [., (1+rho)^2 (1+2/l)]]
    """
    xp = np if isinstance(R, np.ndarray) else jnp  # both routes, the seeds' and the theory's, read the same moments
    d, label = mu.shape[0], 1 + rho  # E y^2 = 1 + rho
    A = xp.concatenate([R, label * mu[None]])
    corner = (1 + 1 / l) * R + label * d / l * xp.eye(d, dtype=R.dtype)
    column = label * (1 + 2 / l) * mu[:, None]
    last = xp.full((1, 1), label**2 * (1 + 2 / l), R.dtype)
    return A, xp.block([[corner, column], [column.T, last]])


def context_statistics(w: Array, chi: Array, xi: Array, g: Array, l: ArrayLike, rho: ArrayLike) -> Array:
    """v (n, d+1) of one context for each task w (n, d), exactly in law, from chi ~ chi_l, xi ~ N(0, 1) and g ~ N(0, I).

    Given w the labels are N(0, 1+rho), so |y|^2 = (1+rho) chi^2. Along u = w/|w| the inputs regress on them as sqrt(d) u.x =
    y/(1+rho) + sqrt(rho/(1+rho)) N(0, 1); across u they are independent of them. Hence, whatever l,

        sqrt(d) sum_i y_i x_i = (|y|^2/(1+rho) + sqrt(rho/(1+rho)) |y| xi) u + |y| (I - u u^T) g.
    """
    d = w.shape[1]
    u, norm = w / d**0.5, jnp.sqrt(1 + rho) * chi  # norm = |y|
    along = norm**2 / (1 + rho) + jnp.sqrt(rho / (1 + rho)) * norm * xi
    across = g - u * jnp.sum(g * u, axis=1, keepdims=True)
    h = d**0.5 / l * (along[:, None] * u + norm[:, None] * across)
    return jnp.concatenate([h, norm[:, None] ** 2 / l], axis=1)


def error(Gamma: Array, A: Array, E: Array, rho: ArrayLike) -> Array:
    """E (y_q - yhat)^2 = 1 + rho - (2/d) tr(Gamma A) + (1/d) tr(Gamma E Gamma^T), with (A, E) from `context_moments`."""
    d = Gamma.shape[0]
    return 1 + rho - 2 / d * jnp.sum(Gamma.T * A) + jnp.sum((Gamma @ E) * Gamma) / d


def resolvent(z: float, kappa: float) -> float:
    """M_kappa(z) = lim (1/d) tr (R + z)^-1 (Marchenko-Pastur), the root of 1/M = z + 1/(1 + M/kappa)."""
    b = z + 1 - 1 / kappa
    return 2 / (b + np.sqrt(b**2 + 4 * z / kappa))


def ridgeless_errors(alpha: float, kappa: float, tau: float, rho: float) -> tuple[float, float]:
    """(e_ICL, e_IDG) for lam -> 0, d -> infinity, tau != 1: the paper's formulas, in its letters."""
    x = (1 + rho) / alpha
    if tau < 1:
        mu = x * resolvent(x, kappa / tau)
        eps = (1 - tau) * x / (tau * mu)
        c = 1 / (1 - kappa / (1 + kappa * eps / (1 - tau)) ** 2)
        icl = tau * (1 + x) / (1 - tau) * (1 - tau * (1 - mu) ** 2 - (x - rho) / x * mu) - 2 * tau * (1 - mu) + rho + 1
        shifted = rho + x - 2 * x * (1 - tau) * (x / eps + 1)
        return icl, tau * ((x + eps) ** 2 / eps + shifted / (1 - tau - c * (1 - tau) ** 2))
    m = resolvent(x, kappa)
    k = 1 / (1 - kappa * (m / (kappa + m)) ** 2)
    icl = (k - 1 / (tau - 1)) * (1 + x) * (x * m) ** 2 + (3 - 2 * tau) / (tau - 1) * m * x**2
    icl += ((1 + rho) / (tau - 1) * m + 1) * x + rho * m / (tau - 1) + rho
    return icl, tau * (rho + x * (1 - x * m)) / (tau - 1)


def ridge_errors(alpha: float, kappa: float, tau: float, rho: float, lam: float) -> tuple[float, float]:
    """(e_ICL, e_IDG) for any lam >= 0 (lam > 0 at tau = 1), d -> infinity. [derived]

    With E = R + x, x = (1+rho)/alpha, Q = (R + z)^-1, z = x + xi, tr the trace over d, and the effective ridge xi >= 0 from

        lam = xi (1 - tr(E Q)/tau),

    the mean of Gamma is R Q and e_IDG is its own IDG error over 1 - tr(E Q E Q)/tau; e_ICL is its own ICL error plus
    e_IDG (1 + x) tr(E Q Q)/tau. All traces are polynomials in z, M = tr Q and M' = -tr Q^2.
    """
    x = (1 + rho) / alpha
    xi = effective_ridge(lambda xi: (1 - xi * resolvent(x + xi, kappa)) / tau, lam)
    z = x + xi
    M = resolvent(z, kappa)
    dM = -1 / (1 / M**2 - kappa / (kappa + M) ** 2)
    RQ, RRQ = 1 - z * M, 1 - z + z**2 * M
    RRQQ, RRRQQ = 1 - 2 * z * M - z**2 * dM, 1 - 2 * z + 3 * z**2 * M + z**3 * dM
    idg = (1 + rho - 2 * RRQ + RRRQQ + x * RRQQ) / (1 - (1 - 2 * xi * M - xi**2 * dM) / tau)
    return 1 + rho - 2 * RQ + (1 + x) * (RRQQ + idg * (M + xi * dM) / tau), idg


def effective_ridge(degrees, lam: float) -> float:
    """The largest root xi of xi (1 - degrees(xi)) = lam, where degrees(xi) falls from its value at 0 to 0 at infinity."""
    least = 0.0 if degrees(0.0) <= 1 else brentq(lambda xi: 1 - degrees(xi), 0.0, LARGEST, xtol=1e-15, rtol=1e-14)
    if lam == 0:
        return least
    return brentq(lambda xi: xi * (1 - degrees(xi)) - lam, least, LARGEST, xtol=1e-15, rtol=1e-14)


def pool_errors(mu: np.ndarray, R: np.ndarray, l: int, n: int, rho: float, lam: ArrayLike) -> np.ndarray:
    """(e_ICL, e_IDG) at finite d for a given pool (mean mu (d,), second moment R (d, d)) and n contexts, (2, len(lam)).

    As `ridge_errors` with the exact moments (A, E) of the pool and (A', E') of new tasks, Q = (E + xi)^-1 and the mean A^T Q
    of Gamma; lam > 0. In the eigenbasis of E, where Q is diagonal. [derived]
    """
    d = mu.size
    A, E = context_moments(mu, R, l, rho)
    new_A, new_E = context_moments(np.zeros(d), np.eye(d), l, rho)
    s, V = np.linalg.eigh(E)
    A, new_A, new = V.T @ A, V.T @ new_A, V.T @ new_E @ V  # (d+1, d), (d+1, d), (d+1, d+1)
    out = []
    for ridge in np.atleast_1d(lam):
        q = 1 / (s + effective_ridge(lambda xi: d / n * (s / (s + xi)).sum(), ridge))
        G = A.T * q  # (d, d+1)
        own = 1 + rho - 2 / d * np.sum(G.T * A) + np.sum(s * G**2) / d
        idg = own / (1 - d / n * np.sum((s * q) ** 2))
        icl = 1 + rho - 2 / d * np.sum(G.T * new_A) + np.sum((G @ new) * G) / d
        out.append([icl + idg * d / n * np.sum(s * q**2 * np.diag(new)), idg])
    return np.transpose(out)


def sphere(rng: np.random.Generator, k: int, d: int) -> np.ndarray:
    """k tasks, uniform on the sphere of radius sqrt d, (k, d)."""
    w = rng.normal(size=(k, d))
    return w * (np.sqrt(d) / np.linalg.norm(w, axis=1, keepdims=True))


def memoriser_errors(rng: np.random.Generator, pool: np.ndarray, l: int, rho: float, prompts: int) -> np.ndarray:
    """(e_ICL, e_IDG) of the posterior mean over the pool's tasks (dMMSE), (2,), from sampled prompts.

    yhat = w_post.x_q, w_post = sum_j w_j softmax_j(-sum_i (y_i - w_j.x_i)^2 / (2 rho)); the query is averaged exactly,
    e = rho + E |w - w_post|^2 / d.
    """
    k, d = pool.shape
    out = []
    for tasks in (sphere(rng, prompts, d), pool[rng.integers(k, size=prompts)]):
        x = rng.normal(size=(prompts, l, d)) / np.sqrt(d)
        y = np.einsum("bnd,bd->bn", x, tasks) + np.sqrt(rho) * rng.normal(size=(prompts, l))
        misfit = ((y[:, :, None] - x @ pool.T) ** 2).sum(1)  # (prompts, k)
        odds = np.exp((misfit.min(1, keepdims=True) - misfit) / (2 * rho))
        posterior = odds @ pool / odds.sum(1, keepdims=True)
        out.append(rho + ((tasks - posterior) ** 2).sum(1).mean() / d)
    return np.array(out)
