"""How linear attention leaves its saddles: Zhang, Singh, Latham and Saxe 2025 (arXiv 2501.16265), zero blocks, white tasks.

With A = sum_h v_h U_h (merged) or sum_h v_h k_h q_h^T (separate, rank one) and dA/dt driven by G = S^2 - S Gamma A S, every
A that holds n eigenvalues 1/Gamma_a and zeros is a saddle. Separate heads visit them one by one, merged heads none but A = 0.

Everything here carries the 1/2 of the loss and t = lr x steps; the paper's MSE has no 1/2, so its losses are twice ours and its
events come at half our t. All per-mode arrays are (D,), eigenvalues s descending; rho is the label noise of the context.
[derived, unless said]
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from . import logistic


def inverse_strength(s: Array, N: ArrayLike, rho: ArrayLike = 0.0) -> Array:
    """Gamma_a = (1 + 1/N) s_a + (tr S + rho)/N: a mode that is learned has a = 1 / Gamma_a."""
    return logistic.inverse_strength(s, N) + rho / N


def ladder(s: ArrayLike, N: float, rho: float = 0.0) -> np.ndarray:
    """L after the n largest modes, n = 0 ... D: 2L = tr S - sum_{a <= n} s_a^2 / Gamma_a, (D+1,)."""
    s = np.asarray(s, float)
    return (s.sum() - np.concatenate([[0.0], np.cumsum(s**2 / np.asarray(inverse_strength(s, N, rho)))])) / 2


# Merged heads: exponential growth from the saddle at 0, along S^2.


def merged_white(t: Array, a0: ArrayLike, s: ArrayLike, N: ArrayLike, D: int, rho: ArrayLike = 0.0) -> Array:
    """a(t) of A = a I for S = s I and heads with v_h^2 = |U_h|^2:  da/dt = 2 sqrt(D) s^2 a (1 - Gamma a). [paper]

    It is exact: dA/dt = sum_h (v_h^2 G + <U_h, G> U_h), and U_h = (v_h / sqrt(D)) I stays so.
    """
    return _logistic(t, a0, 2 * D**0.5 * s**2, (s * (N + 1 + D) + rho) / N)


def merged_one_mode(t: Array, a0: ArrayLike, s: Array, N: ArrayLike, rho: ArrayLike = 0.0) -> Array:
    """a_a(t), (T, D), of each mode as if U_h stayed on it alone:  da/dt = 2 s_a^2 a (1 - Gamma_a a).

    For D = 1 it is exact. For D > 1 no such start stays on its mode, since dU_bb/dt = v G_bb drives all the others.
    """
    return _logistic(t[:, None], a0, 2 * (s**2)[None], inverse_strength(s, N, rho)[None])


def merged_modes(v: Array, u: Array, s: Array, N: ArrayLike, rho: ArrayLike = 0.0) -> tuple[Array, Array]:
    """dv/dt = <u, g>, du/dt = v g, g_a = s_a^2 (1 - Gamma_a v u_a): one head with U = diag(u); conserves v^2 - |u|^2.

    Any number of heads that leave the saddle at 0 follow it, as v_h = c_h v, U_h = c_h U with |c| = 1.
    """
    g = s**2 * (1 - inverse_strength(s, N, rho) * v * u)
    return jnp.sum(u * g), v * g


def growth_rate(s: ArrayLike) -> float:
    """r = ||S^2||_F: small v_h, U_h grow as exp(r t), A as exp(2 r t). (The paper's MSE: 4 ||S^2||_F for A.)"""
    return float(np.linalg.norm(np.asarray(s, float) ** 2))


def unstable_amplitude(v: ArrayLike, U: ArrayLike, S: ArrayLike) -> np.ndarray:
    """z_h = (v_h + <U_h, S^2> / r) / sqrt 2, (..., H): all that survives of small initial weights.

    d(v_h, U_h)/dt = (<U_h, S^2>, v_h S^2) has eigenvalues r, -r and 0, so that A -> 1/2 |z|^2 e^{2rt} S^2 / r, and head h ends
    with the share z_h^2 / |z|^2 of it.
    """
    S2 = np.asarray(S, float) @ np.asarray(S, float)
    return (np.asarray(v) + np.einsum("...hab,ab->...h", np.asarray(U), S2) / np.linalg.norm(S2)) / 2**0.5


def escape_spread(s: ArrayLike, H: int) -> tuple[float, float]:
    """Mean and standard deviation of log |z|^2 / (2r) for Gaussian weights with E z_h^2 = 1: the escape comes so much earlier.

    |z|^2 is chi^2 with H degrees of freedom, so they are (psi(H/2) + log 2) / 2r and psi'(H/2)^{1/2} / 2r.
    """
    from scipy.special import digamma, polygamma

    r = growth_rate(s)
    return float(digamma(H / 2) + np.log(2)) / (2 * r), float(polygamma(1, H / 2)) ** 0.5 / (2 * r)


def noise_along(s: ArrayLike, N: float, along: ArrayLike | None = None) -> float:
    """Variance of <g, T> over single prompts at A = 0, g = y_q h x_q^T with mean S^2, T = diag(along); S^2 / r by default.

    Near the merged saddle a step multiplies z by 1 + lr (r + noise), so after time t, with batches of B prompts,

        log z - log z_0 = r t - lr t (r^2 + noise / B) / 2  +-  (lr t noise / B)^{1/2}.

    E[y^2 (h^T T x)^2 | w] = (w^T S w) tr(T S T M) + 2 w^T S T M T S w, M = E[h h^T | w], then Isserlis' theorem for w.
    """
    s = np.asarray(s, float)
    T = s**2 / growth_rate(s) if along is None else np.asarray(along, float)
    a, b, V = s * T**2, s**2 * T**2, s**2 * T  # diagonals of T S T, S T T S and S T S

    def pair(p: np.ndarray, q: np.ndarray) -> float:
        """E[(w^T P w)(w^T Q w)]."""
        return p.sum() * q.sum() + 2 * (p * q).sum()

    second = (1 + 1 / N) * (pair(s, s**2 * a) + 2 * pair(V, V)) + (pair(s, s) * (s * a).sum() + 2 * pair(s, s * b)) / N
    return float(second - (s**2 * T).sum() ** 2)


def sgd_delay(lr: ArrayLike, t: ArrayLike, s: ArrayLike, N: float, batch: int) -> tuple[float, float]:
    """Mean delay and spread that SGD adds to an escape of the flow at t, to first order in lr (`noise_along`)."""
    r, noise = growth_rate(s), noise_along(s, N) / batch
    return lr * t * (r**2 + noise) / (2 * r), (lr * t * noise) ** 0.5 / r


def escape_law(
    t: ArrayLike, typical: float, s: ArrayLike, H: int, delay: float = 0.0, spread: float = 0.0
) -> np.ndarray:
    """P(T <= t) over Gaussian weights, (...,): T = typical - (log chi^2_H - E log chi^2_H) / (2r) + delay + spread x normal.

    `typical` is when the flow escapes from weights with log |z|^2 at its mean; the normal is averaged over by quadrature.
    """
    from scipy.stats import chi2

    mean, r = escape_spread(s, H)[0], growth_rate(s)
    x, weight = np.polynomial.hermite_e.hermegauss(64)
    early = typical + delay + spread * x - np.asarray(t, float)[..., None]
    return chi2.sf(np.exp(2 * r * (early + mean)), H) @ (weight / weight.sum())


# Separate heads of rank one: algebraic growth, one mode after another.


def separate_mode(a: Array, s: Array, N: ArrayLike, rho: ArrayLike = 0.0) -> Array:
    """da/dt = 3 s^2 a^{4/3} (1 - Gamma a): a head on one mode with |v| = |k| = |q| = a^{1/3}, mode by mode. [paper]"""
    return 3 * s**2 * jnp.cbrt(a) ** 4 * (1 - inverse_strength(s, N, rho) * a)


def separate_time(a: ArrayLike, a0: ArrayLike, s: Array, N: ArrayLike, rho: ArrayLike = 0.0) -> Array:
    """The time `separate_mode` takes from a0 to a, both in (0, 1/Gamma), (..., D): about 1 / (s^2 a0^{1/3}).

    With u = (Gamma a)^{1/3} it is Gamma^{1/3} s^-2 times the integral of du / (u^2 (1 - u^3)), which is elementary.
    """
    Gamma = inverse_strength(s, N, rho)
    u, u0 = jnp.cbrt(Gamma * a), jnp.cbrt(Gamma * a0)
    return jnp.cbrt(Gamma) / s**2 * (_primitive(u) - _primitive(u0))


def separate_delay(
    lr: ArrayLike, t: ArrayLike, a0: ArrayLike, s: ArrayLike, N: float, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean delay and spread, (D,), that SGD adds to the escapes at t (D,) of heads on one mode each, to first order in lr.

    A step v -> v + lr v^2 g takes lr g - lr^2 v g^2 from 1/v, g = s^2 +- (noise / batch)^{1/2}: with v = a0^{1/3} at the start
    and Gamma^{-1/3} at the end,

        delay = lr (1 + noise / (batch s^4)) log((Gamma a0)^{-1/3}),    spread = (lr t noise / batch)^{1/2} / s^2.

    The noise is that at A = 0, an upper bound once other modes are learned.
    """
    s = np.asarray(s, float)
    noise = np.array([noise_along(s, N, row) for row in np.eye(s.size)]) / batch
    growth = -np.log(np.asarray(inverse_strength(s, N)) * np.asarray(a0)) / 3
    return lr * (1 + noise / s**4) * growth, np.sqrt(lr * np.asarray(t) * noise) / s**2


def first_of(times: ArrayLike, H: int, levels: ArrayLike) -> np.ndarray:
    """Quantiles of the first escape among H heads, from the `times` at which single heads escape (inf: not seen to).

    While A = 0 heads do not see each other, so P(T_H > t) = P(T_1 > t)^H: level p of T_H is level 1 - (1 - p)^{1/H} of T_1.
    """
    return np.quantile(np.asarray(times, float), 1 - (1 - np.asarray(levels, float)) ** (1 / H), method="lower")


def _logistic(t: Array, a0: ArrayLike, rate: ArrayLike, Gamma: ArrayLike) -> Array:
    """a of da/dt = rate a (1 - Gamma a)."""
    return 1 / (Gamma * (1 + (1 / (Gamma * a0) - 1) * jnp.exp(-rate * t)))


def _primitive(u: Array) -> Array:
    """-1/u - log(1 - u)/3 + log(1 + u + u^2)/6 - arctan((2u + 1)/sqrt 3)/sqrt 3, whose derivative is 1 / (u^2 (1 - u^3))."""
    arc = jnp.arctan((2 * u + 1) / 3**0.5) / 3**0.5
    return -1 / u - jnp.log1p(-u) / 3 + jnp.log1p(u + u**2) / 6 - arc
