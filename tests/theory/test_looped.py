import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

import icldyn as ic
from icldyn.theory import looped


def density_mean(f, alpha):
    """The mean of f under the Marchenko-Pastur law by adaptive quadrature of its density, and the atom."""
    low, high = (1 - alpha**-0.5) ** 2, (1 + alpha**-0.5) ** 2

    def integrand(x):  # lambda = x^2 takes away the pole of alpha = 1
        return f(x * x) * alpha / np.pi * np.sqrt(max((high - x * x) * (x * x - low), 0)) / x

    value, _ = integrate.quad(integrand, low**0.5, high**0.5, epsabs=1e-12, epsrel=1e-12, limit=500)
    return value + max(0.0, 1 - alpha) * f(0.0)


@pytest.mark.parametrize(("alpha", "L"), [*itertools.product([0.5, 1.0, 3.0], [1, 3, math.inf])])
def test_iso_loss_is_the_integral_over_the_marchenko_pastur_density(alpha, L):
    gamma, noise, spectrum = 0.9, 0.3, looped.marchenko_pastur(64 if L == math.inf else L, alpha)

    def square_error(lam):
        r = math.exp(-gamma * lam) if L == math.inf else (1 - gamma * lam / L) ** L
        return r**2 + noise * ((1 - r) ** 2 / lam if lam else 0)

    wanted = density_mean(square_error, alpha) / 2
    np.testing.assert_allclose(looped.iso_loss(gamma, L, spectrum, noise), wanted, rtol=1e-10)  # of the oracle


# Twice the loss at the optimum; the table of the project's notes, which rounds to four digits or fewer.
TABLE = {0.5: (0.6667, 0.5926, 0.5414, 0.5024), 1: (0.5, 0.375, 0.2734, 0.13995), 2: (0.3333, 0.1852, 0.08276, 0.00486)}
TABLE[4] = (0.2, 0.072, 0.01466, 1e-5)


@pytest.mark.parametrize("alpha", TABLE)
def test_the_table_of_fixed_depth_optima_comes_out(alpha):
    for L, wanted in zip((1, 2, 4, 16), TABLE[alpha], strict=True):
        spectrum = looped.marchenko_pastur(L, alpha)
        gamma = looped.iso_optimum(L, spectrum)
        assert gamma == pytest.approx(L * alpha / (1 + alpha), rel=1e-6)  # a flat minimum at depth 16
        assert 2 * looped.iso_loss(gamma, L, spectrum) == pytest.approx(wanted, abs=6e-5)


def test_square_contexts_leave_a_central_binomial_share():
    for L in (1, 5, 40):
        loss = 2 * looped.iso_loss(L / 2, L, looped.marchenko_pastur(L, 1.0))
        assert loss == pytest.approx(special.comb(2 * L, L) / 4**L, rel=1e-10)


def test_the_rate_is_minus_the_gradient_of_the_loss():
    spectrum = looped.wishart(3, 5, 4)
    for L, gamma in ((1, 0.4), (3, 1.7), (math.inf, 2.0)):
        slope = jax.grad(looped.iso_loss)(gamma, L, spectrum, 0.2)
        np.testing.assert_allclose(looped.iso_rate(gamma, L, spectrum, 0.2), -slope, rtol=1e-10)


def test_trace_moments_are_those_of_sampled_wishart_matrices():
    D, P = 3, 4
    x = np.random.default_rng(0).normal(size=(400_000, P, D))
    values = np.linalg.eigvalsh(np.einsum("npi,npj->nij", x, x))
    for powers in ((1,), (3,), (1, 2), (2, 2), (1, 1, 2)):
        samples = np.prod([np.sum(values**k, axis=1) for k in powers], axis=0)
        error = samples.std() / len(samples) ** 0.5
        assert abs(samples.mean() - looped.trace_moment(powers, D, P)) < 4 * error


def test_trace_moments_of_one_column_are_those_of_chi_square():
    for k in (2, 7, 12):
        assert looped.trace_moment((k,), 1, 5) == math.prod(5 + 2 * j for j in range(k))


def test_the_finite_spectrum_reproduces_its_moments_and_tends_to_marchenko_pastur():
    D, P, n = 6, 9, 5
    nodes, weights = looped.wishart(n, D, P)
    wanted = [looped.trace_moment((k,), D, P) / (D * P**k) for k in range(1, 2 * n + 1)]
    np.testing.assert_allclose([weights @ nodes**k for k in range(2 * n)], wanted, rtol=1e-10)
    large, limit = looped.wishart(3, 3000, 6000), looped.marchenko_pastur(3, 2.0)
    np.testing.assert_allclose(large[0], limit[0][::-1], rtol=1e-3)  # corrections of order 1/D
    np.testing.assert_allclose(large[1], limit[1][::-1], rtol=2e-3)


def test_depth_1_has_the_exact_loss_of_finite_contexts():
    D, P = 10, 15
    spectrum, best = looped.wishart(1, D, P), 1 / (1 + (D + 1) / P)
    assert looped.iso_optimum(1, spectrum) == pytest.approx(best)
    assert 2 * looped.iso_loss(best, 1, spectrum) == pytest.approx(1 - best)


def sgd_step(rng, Gamma, D, P, K, B, eta, sigma2, noisy):
    """One step of SGD on drawn pairs and queries, R runs at once; Gamma (R, D, D)."""
    R = len(Gamma)
    step = np.zeros_like(Gamma)
    for _ in range(B):
        x, x_q, w = rng.normal(size=(R, P, D)), rng.normal(size=(R, K, D)), rng.normal(size=(R, D)) / D**0.5
        y = np.einsum("rpd,rd->rp", x, w) + sigma2**0.5 * rng.normal(size=(R, P))
        u = np.einsum("rpd,rp->rd", x, y) / P
        error = np.einsum("rkd,rd->rk", x_q, w - np.einsum("rij,rj->ri", Gamma, u))
        error += noisy * sigma2**0.5 * rng.normal(size=(R, K))
        step += np.einsum("rk,rki,rj->rij", error, x_q, u) / (K * B)
    return Gamma + eta * D * step


@pytest.mark.parametrize("noisy", [False, True])
def test_the_recursion_of_sgd_is_exact_at_four_dimensions(noisy):
    D, P, K, B, eta, sigma2, R = 4, 6, 2, 4, 0.2, 0.5, 20_000
    rng, Gamma = np.random.default_rng(0), np.zeros((20_000, D, D))
    args = (eta, P / D, K / D, B / D, sigma2, noisy)
    s, step = looped.sgd_recursion(*args, D=D)
    state = np.array([1 / s**2, -1 / s, 1])
    for _ in range(4):
        Gamma, state = sgd_step(rng, Gamma, D, P, K, B, eta, sigma2, noisy), step @ state
        apart = Gamma - np.eye(D) / s
        for samples, wanted in (
            ((apart**2).sum((1, 2)) / D, state[0]),
            (np.trace(apart, axis1=1, axis2=2) / D, state[1]),
        ):
            assert abs(samples.mean() - wanted) < 4 * samples.std() / R**0.5
    np.testing.assert_allclose(looped.sgd_loss([4], *args, D=D), 0.5 * (1 - 1 / s + s * state[0]))


def test_the_limit_of_the_recursion_has_the_contraction_and_floors_of_the_notes():
    a, floor = looped.sgd_floor(0.2, 2.0, 1.0, 1.0)
    assert (a, floor) == (pytest.approx(0.67), pytest.approx(0.1212, abs=1e-4))
    a, floor = looped.sgd_floor(0.2, 1.0, 0.5, 2.0, 0.25, True)
    assert (a, floor) == (pytest.approx(0.606, abs=5e-4), pytest.approx(0.248, abs=5e-4))
    large = looped.sgd_floor(0.2, 2.0, 1.0, 1.0, D=10**5)
    np.testing.assert_allclose(large, (0.67, 4 / 33), rtol=1e-4)  # corrections of order 1/D


LAM, OMEGA = looped.power_law(6, 1.0, 1.5)


@pytest.mark.parametrize("L", [1, 2, 7, math.inf])
def test_the_closed_form_of_fixed_structure_solves_its_ode(L):
    t = np.geomspace(0.1, 1e3, 9)
    rate = jax.jit(lambda t, gamma: looped.fs_rate(gamma, LAM, OMEGA, L))
    ode = integrate.solve_ivp(rate, (0, t[-1]), np.zeros(6), method="DOP853", t_eval=t, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ode.y.T, looped.fs_gamma(t, LAM, OMEGA, L), rtol=1e-6)


def test_infinitely_deep_fixed_structure_has_the_loss_of_the_notes():
    t = np.array([0.0, 3.0, 50.0])
    gamma = looped.fs_gamma(2 * t, LAM, OMEGA, math.inf)  # the notes descend the loss without 1/2: twice our time
    twice = [2 * looped.modes_loss(g, LAM, OMEGA, math.inf) for g in gamma]
    np.testing.assert_allclose(twice, [(OMEGA * LAM / (1 + 4 * OMEGA * LAM**3 * k)).sum() for k in t], rtol=1e-12)


@pytest.mark.parametrize("power", [1, 5])
def test_rates_at_endless_contexts_are_minus_the_gradients(power):
    for L in (1, 4, math.inf):
        slope = jax.grad(lambda w, L=L: looped.modes_loss(w**power, LAM, OMEGA, L))(0.9)
        np.testing.assert_allclose(looped.rrs_rate(0.9, LAM, OMEGA, L, power), -slope, rtol=1e-12)
    gamma = jnp.linspace(0.1, 2.0, 6)
    slope = jax.grad(looped.modes_loss)(gamma, LAM, OMEGA, 3)
    np.testing.assert_allclose(looped.fs_rate(gamma, LAM, OMEGA, 3), -slope, rtol=1e-12)


def test_the_time_at_which_gamma_is_reached_is_that_of_the_ode():
    t, loss = looped.rrs_curve(np.linspace(0, 3, 400), LAM, OMEGA, 4)
    rate = jax.jit(lambda t, w: looped.rrs_rate(w[0], LAM, OMEGA, 4)[None])
    ode = integrate.solve_ivp(rate, (0, t[-1]), [0.0], t_eval=t[[100, -1]], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ode.y[0], np.linspace(0, 3, 400)[[100, -1]], rtol=1e-6)  # Simpson on 400 points
    np.testing.assert_allclose(loss[-1], looped.modes_loss(3.0, LAM, OMEGA, 4))


def test_loss_on_another_covariance_is_that_of_drawn_tasks():
    rng = np.random.default_rng(0)
    A, Gamma, L = rng.normal(size=(3, 4)), rng.normal(size=(3, 3)), 3
    Sigma, Omega = A @ A.T / 4, np.diag([1.0, 0.5, 2.0])
    x, w = rng.normal(size=(200_000, 4)) @ A.T / 2, rng.normal(size=(200_000, 3)) @ np.sqrt(Omega)
    answer = np.zeros_like(w)
    for _ in range(L):
        answer += (w - answer) @ Sigma @ Gamma.T / L
    errors = 0.5 * np.einsum("nd,nd->n", x, w - answer) ** 2
    assert abs(errors.mean() - looped.ood_loss(Gamma, Sigma, Omega, L)) < 4 * errors.std() / len(x) ** 0.5
    own = looped.ood_loss(L * np.linalg.inv(Sigma), Sigma, Omega, L)
    np.testing.assert_allclose(own, 0, atol=1e-15)  # the end of FS on its own covariance


@pytest.mark.parametrize("power", [1, 5])
def test_randomly_rotated_losses_fall_in_time_with_their_exponent(power):
    beta, (lam, omega) = 1.0, looped.power_law(3000, 2.0, 1.0)
    gamma = np.geomspace(1e-2, 1e5, 1500)
    t, loss = looped.rrs_curve(gamma, lam, omega, math.inf, power)
    late = gamma > 1e3  # the last mode has gamma lambda << 1 until 9e6
    slope = np.polyfit(np.log(t[late]), np.log(loss[late]), 1)[0]
    assert slope == pytest.approx(-looped.rrs_time_exponent(beta, power), rel=0.01)


def test_fixed_structure_falls_in_time_with_its_exponent():
    nu, beta = 1.5, 1.0
    lam, omega = looped.power_law(20_000, nu, beta)
    t = np.geomspace(1e6, 1e12, 13)
    loss = [(omega * lam / (1 + 2 * omega * lam**3 * k)).sum() for k in t]
    slope = np.polyfit(np.log(t), np.log(loss), 1)[0]
    assert slope == pytest.approx(-looped.fs_time_exponent(nu, beta), rel=0.01)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: looped.marchenko_pastur(3, 0.0), "`alpha` must be positive"),
        (lambda: looped.wishart(13, 5, 5), "`n` must be at most 12"),
        (lambda: looped.wishart(2, 0, 5), "`D` must be at least 1"),
        (lambda: looped.sgd_recursion(0.1, 1.3, 1, 1, D=8), "`alpha` must make alpha D a whole number at D = 8"),
        (lambda: looped.power_law(4, -1, 1), "`nu` must be positive"),
    ],
)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises(ic.BadArgument) as error:
        call()
    assert sentence in str(error.value)
