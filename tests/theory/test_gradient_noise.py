import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icldyn.theory import gradient_noise
from tests.oracles import random_covariance


def every(*degrees):
    """Nodes (num, len(degrees)) and weights of Gauss-Hermite quadrature, exact up to these degrees in standard normals."""
    rules = [np.polynomial.hermite_e.hermegauss(degree // 2 + 1) for degree in degrees]
    nodes = np.array(list(itertools.product(*(rule[0] for rule in rules))))
    weights = np.prod(np.array(list(itertools.product(*(rule[1] / rule[1].sum() for rule in rules)))), axis=1)
    return nodes, weights


def covariance(gradients, weights):
    mean = weights @ gradients
    return np.einsum("m,mi,mj->ij", weights, gradients, gradients) - np.outer(mean, mean)


@pytest.mark.parametrize(("N", "rho"), [(1, 0.4), (2, 0.0), (2, 0.4)])
def test_answer_noise_is_the_covariance_over_every_number_of_a_prompt(N, rho):
    rng, D = np.random.default_rng(N), 2
    S, Sw, A = random_covariance(rng, D), random_covariance(rng, D), rng.normal(size=(D, D))
    noisy = N if rho else 0
    # the gradient is quadratic in w, x_q and the noise, and of degree 4 in the inputs; its square has twice these degrees
    z, weights = every(*[4] * (2 * D), *[8] * (N * D), *[4] * noisy)
    w, x_q, x, e = np.split(z, np.cumsum([D, D, N * D]), axis=1)
    w, x_q = w @ np.linalg.cholesky(Sw).T, x_q @ np.linalg.cholesky(S).T
    x = x.reshape(-1, N, D) @ np.linalg.cholesky(S).T
    y = np.einsum("mna,ma->mn", x, w) + (np.sqrt(rho) * e if rho else 0)
    h = np.einsum("mn,mna->ma", y, x) / N
    error = np.einsum("ma,ma->m", w, x_q) - np.einsum("ma,ak,mk->m", h, A, x_q)
    gradients = -(error[:, None, None] * h[:, :, None] * x_q[:, None]).reshape(len(z), -1)
    exact = gradient_noise.answer_noise(*map(jnp.asarray, (A, S)), N, jnp.asarray(Sw), rho)
    wanted = covariance(gradients, weights)
    np.testing.assert_allclose(
        exact.reshape(D * D, D * D), wanted, atol=1e-12 * np.abs(wanted).max()
    )  # quadrature is exact


def modes_gradients(p, q, s, N, z):
    """Gradients (num, 2D) of 1/2 |W x_q - p2 W C q1 x_q|^2 with p2 = diag(p), q1 = diag(q), W = diag(l)."""
    D = s.size
    ell, x_q, x = np.split(z, [D, 2 * D], axis=1)
    x_q, x = x_q * np.sqrt(s), x.reshape(-1, N, D) * np.sqrt(s)
    C = np.einsum("mna,mnb->mab", x, x) / N
    u = np.einsum("mab,mb->ma", C, q * x_q)
    error = ell * x_q - p * ell * u
    gp = -error * ell * u
    gq = -np.einsum("ma,mab->mb", error * p * ell, C) * x_q
    return np.concatenate([gp, gq], axis=1)


@pytest.mark.parametrize("N", [1, 2, 3])
def test_modes_noise_is_the_covariance_over_every_number_of_a_prompt(N):
    s, (p, q) = np.array([1.0, 0.6]), np.random.default_rng(N).normal(size=(2, 2))
    z, weights = every(*[4] * 4, *[8] * (2 * N))
    wanted = covariance(modes_gradients(p, q, s, N, z), weights)
    exact = jax.jit(gradient_noise.modes_noise)(*map(jnp.asarray, (p, q, s)), float(N))
    np.testing.assert_allclose(exact, wanted, atol=1e-11 * np.abs(wanted).max())  # quadrature is exact


def test_modes_noise_of_four_modes_agrees_with_sampled_prompts():
    s, N, num = np.array([1.0, 0.7, 0.5, 0.35]), 20, 200_000
    rng = np.random.default_rng(0)
    p, q = rng.uniform(0.5, 1, size=(2, 4))
    gradients = np.concatenate(
        [modes_gradients(p, q, s, N, rng.normal(size=(num // 20, 8 + 4 * N))) for _ in range(20)]
    )
    exact = jax.jit(gradient_noise.modes_noise)(*map(jnp.asarray, (p, q, s)), float(N))
    wanted = np.cov(gradients.T)
    scale = np.sqrt(np.diag(wanted))
    # squares of gradients have a kurtosis of about 100: 2% each at 200k prompts, and 64 of them
    np.testing.assert_allclose(exact / np.outer(scale, scale), wanted / np.outer(scale, scale), atol=0.08)


def test_the_scale_between_p_and_q_feels_no_noise():
    """sum_a p_a dl/dp_a = sum_a q_a dl/dq_a for every prompt, for l depends on the products of p's and q's alone."""
    s, (p, q) = jnp.array([1.0, 0.5]), jnp.asarray(np.random.default_rng(4).normal(size=(2, 2)))
    exact = jax.jit(gradient_noise.modes_noise)(p, q, s, 7.0)
    along = jnp.concatenate([p, -q])
    np.testing.assert_allclose(exact @ along, 0, atol=1e-12 * float(jnp.abs(exact).max()))


def test_the_two_point_function_without_weights_is_that_of_the_labels_alone():
    """Then l = 1/2 sum_a l_a^2 x_a^2, and E l^2 = 1/4 [(sum s)^2 + 8 sum s^2], since E l_a^4 x_a^4 = 9 s_a^2."""
    s, zero = jnp.array([1.0, 0.5]), jnp.zeros(2)
    two_point = jax.jit(gradient_noise._two_point)(zero, zero, zero, zero, s, 5.0)
    assert float(two_point) == pytest.approx((1.5**2 + 8 * 1.25) / 4)
