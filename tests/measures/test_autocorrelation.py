import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.measures import autocorrelation as ac

T = np.arange(0, 40.005, 0.01)
DROP = 1 / (1 + np.exp(T - 20))  # one logistic drop


def test_autocorrelation_is_the_mean_of_products_at_every_lag_up_to_half_the_window():
    L = np.random.default_rng(0).normal(size=31)
    wanted = [np.mean(L[: L.size - k] * L[k:]) for k in range(16)]
    np.testing.assert_allclose(ac.autocorrelation(L), wanted, rtol=1e-12, atol=1e-14)


def test_the_curvature_of_a_logistic_drop_is_minus_one_in_240():
    window = ac.window_curvature(T, DROP)
    assert window.gradient == pytest.approx(-1 / 240, rel=1e-5)  # second-order differences at dt = 0.01
    lags = ac.second_difference(ac.autocorrelation(DROP), 0.01)
    assert float(lags[0]) == pytest.approx(-0.00420, abs=1e-5)  # nonlinear.md 2.4: near lag 0


def test_the_identity_of_a_window_needs_its_boundary_term():
    inner = slice(1500, 2001)  # ends in the middle of the drop
    total, boundary, gradient = ac.window_curvature(T[inner], DROP[inner])
    assert abs(boundary) > 0.1 * abs(gradient)
    assert total == pytest.approx(float(boundary + gradient), rel=1e-3)  # one-sided differences at the two ends
    dL = -DROP * (1 - DROP)
    exact = -np.trapezoid(dL[inner] * (1 - 2 * DROP[inner]) * DROP[inner], T[inner]) / (T[inner][-1] - T[inner][0])
    assert total == pytest.approx(exact, rel=1e-3)


def test_the_curvature_of_a_stationary_signal_is_minus_its_mean_squared_slope():
    t = np.arange(0, 400, 0.05)
    L = np.cos(t) + 0.5 * np.cos(2.3 * t + 1)
    A = ac.autocorrelation(L)
    np.testing.assert_allclose(A[:200], 0.5 * np.cos(t[:200]) + 0.125 * np.cos(2.3 * t[:200]), atol=5e-3)  # the ends
    wanted = -(0.5 + 0.125 * 2.3**2)
    assert np.mean(ac.local_curvature(t, L)) == pytest.approx(wanted, rel=1e-2)
    assert ac.second_difference(A, 0.05)[0] == pytest.approx(wanted, rel=2e-2)


def test_the_estimator_by_lags_is_off_by_factors_on_a_short_window():
    inner = slice(1700, 2100)
    ratio = (
        ac.lag_curvature(ac.autocorrelation(DROP[inner]), 0.01) / ac.window_curvature(T[inner], DROP[inner]).gradient
    )
    assert not 0.5 < ratio < 2


def test_smoothing_keeps_a_line_up_to_its_ends_and_takes_noise_out_of_a_slope():
    t = np.array([0.0, 1, 2, 4, 8, 9, 12, 20, 21])
    np.testing.assert_allclose(ac.slope(t, 3 - 2 * t, smoothing=2.0), -2, rtol=1e-10)
    steps = np.arange(0, 1000, 5.0)
    smooth = 1 / (1 + np.exp((steps - 500) / 60))
    noisy = smooth + 1e-3 * np.random.default_rng(1).normal(size=steps.size)
    exact = -smooth * (1 - smooth) / 60
    apart = [np.abs(ac.slope(steps, noisy, smoothing=width) - exact).max() for width in (None, 20.0)]
    assert apart[1] < apart[0] / 4 and apart[1] < 0.1 * np.abs(exact).max()
    assert steps[np.argmin(ac.local_curvature(steps, noisy, 20.0))] == pytest.approx(500, abs=25)


def test_a_smoothing_narrower_than_the_grid_is_none():
    t = np.arange(0, 10.0)
    L = np.random.default_rng(2).normal(size=10)
    np.testing.assert_allclose(ac.slope(t, L, smoothing=0.01), np.gradient(L, t), rtol=1e-12)
    with pytest.raises(ic.BadArgument, match="Argument `smoothing` must be positive and finite, but is 0"):
        ac.slope(t, L, smoothing=0)


def test_curves_of_many_seeds_and_norms_of_weights_map():
    curves = jnp.asarray(np.random.default_rng(3).normal(size=(3, 40)))
    t = jnp.arange(40.0)
    found = jax.jit(jax.vmap(lambda L: ac.local_curvature(t, L, 3.0)))(curves)
    np.testing.assert_allclose(found[1], ac.local_curvature(t, curves[1], 3.0), rtol=1e-10)
    assert jax.vmap(ac.autocorrelation)(curves).shape == (3, 20)
