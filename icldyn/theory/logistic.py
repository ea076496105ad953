"""The closed form of Mainali and Teixeira (2025): every mode a logistic curve of its own.

The paper's reduction keeps the N of E[C C] but drops the coupling of the modes, so it is exact as N -> infinity and an
approximation at finite N (`null_blocks.modes_flow` is exact there). Time t = learning rate x steps, with the batch *mean* of
the loss 1/2 |y - yhat|^2; the paper's step sums over its P tasks, which reads P eta for our eta.
All per-mode arrays are (D,), with eigenvalues s descending.
"""

import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike


def inverse_strength(s: Array, N: ArrayLike) -> Array:
    """s^inf_a = ((N+1) s_a + tr S) / N: the eigenvalues of Gamma."""
    return ((N + 1) * s + s.sum()) / N


def final_strength(s: Array, N: ArrayLike) -> Array:
    """a^inf_a = 1 / s^inf_a: the preconditioner of the fixed point, yhat = W C Gamma^-1 x_q."""
    return 1 / inverse_strength(s, N)


def time_scale(s: Array) -> Array:
    """tau_a = 1 / s_a^2, in units of t."""
    return 1 / s**2


def strength(t: Array, a0: Array, s: Array, N: ArrayLike) -> Array:
    """a_a(t) = a^inf a0 / (a0 + (a^inf - a0) exp(-2 t / tau)), (T, D), from a balanced start a0 = p^2 = q^2 > 0.

    Evaluated as a^inf / (1 + exp(log(a^inf/a0 - 1) - 2t/tau)) so that no start is too small. Holds for 0 < a0 < a^inf.
    """
    a_inf = final_strength(s, N)
    log_odds = jnp.log(a_inf - a0) - jnp.log(a0)
    return a_inf[None] / (1 + jnp.exp(log_odds[None] - 2 * t[:, None] / time_scale(s)[None]))


def escape_time(s: Array, N: ArrayLike, a0: ArrayLike) -> Array:
    """(tau_a / 2) log(1 / (s^inf_a a0)): when a mode of small initial strength a0 leaves the plateau, (D,)."""
    return time_scale(s) / 2 * escape_logarithm(s, N, a0)


def escape_logarithm(s: Array, N: ArrayLike, a0: ArrayLike) -> Array:
    """log(1 / (s^inf_a a0)), (D,): escape time divided by it is proportional to 1 / s^2."""
    return -jnp.log(inverse_strength(s, N) * a0)


def flow(p: Array, q: Array, s: Array, N: ArrayLike) -> tuple[Array, Array]:
    """tau_a dp_a/dt = q_a (1 - p_a q_a s^inf_a),  tau_a dq_a/dt = p_a (1 - p_a q_a s^inf_a): unbalanced starts too."""
    drive = s**2 * (1 - p * q * inverse_strength(s, N))
    return q * drive, p * drive


def conserved(p: Array, q: Array) -> Array:
    """p_a^2 - q_a^2, constant in time mode by mode under `flow`: a hyperbola in the (p, q) plane."""
    return p**2 - q**2


def loss(a: Array, s: Array, N: ArrayLike) -> Array:
    """L = 1/2 sum_a s_a (s_a a_a^2 / a^inf_a - 2 s_a a_a + 1), over the last axis of a (..., D)."""
    quadratic = jnp.einsum("...a,a->...", a**2, s**2 * inverse_strength(s, N))
    return (quadratic - 2 * jnp.einsum("...a,a->...", a, s**2) + s.sum()) / 2
