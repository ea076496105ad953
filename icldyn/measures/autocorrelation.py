"""The autocorrelation of a loss (or of a norm of weights) over time, and its curvature, local and in a window.

    A(tau) = <L(t) L(t + tau)>,    A''(0) = -<L'(t)^2>  for a stationary signal (integration by parts)
    (1/W) int L L'' = (1/W) [L L']_a^b - (1/W) int L'^2  in a window [a, b] of width W: the boundary term is what a trend adds

Use the loss of one fixed evaluation set: noise of SGD adds a delta at tau = 0. All functions are of one curve; for a mean over
seeds, map them, or give them the mean curve.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike

from .. import checks


def autocorrelation(L: ArrayLike) -> Array:
    """A(tau) = mean over t of L(t) L(t + tau) of a curve (T,) on an even grid, at the lags 0 ... (T-1)//2, half of the window."""
    L = jnp.asarray(L)
    T, lags = L.size, (L.size - 1) // 2 + 1
    power = jnp.abs(jnp.fft.rfft(L, 2 * T)) ** 2  # padded, so that no lag wraps around
    return jnp.fft.irfft(power, 2 * T)[:lags] / (T - jnp.arange(lags, dtype=L.dtype))


def second_difference(A: ArrayLike, dt: ArrayLike) -> Array:
    """(A(tau - dt) - 2 A(tau) + A(tau + dt)) / dt^2 at the lags dt, 2 dt, ...: two entries shorter than A."""
    A = jnp.asarray(A)
    return (A[:-2] - 2 * A[1:-1] + A[2:]) / dt**2


def lag_curvature(A: ArrayLike, dt: ArrayLike) -> Array:
    """2 (A(dt) - A(0)) / dt^2. On short windows it is off by factors: A(0) and A(dt) are averages over different samples."""
    A = jnp.asarray(A)
    return 2 * (A[1] - A[0]) / dt**2


def slope(t: ArrayLike, L: ArrayLike, smoothing: float | None = None) -> Array:
    """L'(t), (T,), on any ascending grid t (T,), two records at least.

    The slope of the line through L fitted with weights exp(-(t' - t)^2 / (2 smoothing^2)), which is exact for a line up to the
    ends; central differences if `smoothing` is None. Smoothing is in the units of t: with t in steps, in steps; say it beside
    every figure.

    Raises:
        icldyn.BadArgument: if the smoothing is not positive.
    """
    t, L = jnp.asarray(t), jnp.asarray(L)
    if smoothing is None:
        return jnp.gradient(L, t)
    checks.real("smoothing", smoothing, above=0)
    apart = (t[None] - t[:, None]) / smoothing  # from t (rows) to t' (columns)
    w = jnp.exp(-(apart**2) / 2)
    w = w / jnp.sum(w, axis=1, keepdims=True)
    centred = apart - jnp.sum(w * apart, axis=1, keepdims=True)
    spread = jnp.sum(w * centred**2, axis=1)
    fitted = jnp.sum(w * centred * (L[None] - L[:, None]), axis=1) / spread / smoothing
    alone = spread < 1e-8  # no other record within reach: nothing to smooth
    return jnp.where(alone, jnp.gradient(L, t), fitted)


def local_curvature(t: ArrayLike, L: ArrayLike, smoothing: float | None = None) -> Array:
    """-L'(t)^2, (T,): the curvature of A at lag 0 around every t, with `slope` and its smoothing."""
    return -(slope(t, L, smoothing) ** 2)


class WindowCurvature(NamedTuple):
    """The terms of (1/W) int L L'' = boundary + gradient, with gradient = -(1/W) int L'^2."""

    total: Array
    boundary: Array
    gradient: Array


def window_curvature(t: ArrayLike, L: ArrayLike) -> WindowCurvature:
    """Each term of the identity of a finite window, by itself, from a curve (T,) on t (T,): differences, trapezoids."""
    t, L = jnp.asarray(t), jnp.asarray(L)
    W, dL = t[-1] - t[0], jnp.gradient(L, t)
    total = jnp.trapezoid(L * jnp.gradient(dL, t), t) / W
    return WindowCurvature(total, (L[-1] * dL[-1] - L[0] * dL[0]) / W, -jnp.trapezoid(dL**2, t) / W)
