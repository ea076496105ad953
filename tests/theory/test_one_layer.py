import jax
import numpy as np
import pytest

from icldyn.theory import one_layer
from icldyn.theory.population import scalar_population_loss

D = 4


def problem(seed=0):
    rng = np.random.default_rng(seed)
    S, Sw = (a @ a.T / D + 0.1 * np.eye(D) for a in rng.normal(size=(2, D, D)))
    return rng.normal(size=(D, D)), S, Sw


@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_the_loss_is_that_of_the_whole_tensor_with_zero_blocks(rho):
    A, S, Sw = problem()
    M = np.zeros((D + 1, D + 1, D))
    M[D, :D] = A
    wanted = scalar_population_loss(*map(jax.numpy.asarray, (M, S, Sw)), rho, 9.0)
    assert float(one_layer.loss(A, S, 9.0, Sw, rho)) == pytest.approx(float(wanted), rel=1e-12)  # round-off


@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_descent_is_minus_the_gradient_and_vanishes_at_the_optimum(rho):
    A, S, Sw = map(jax.numpy.asarray, problem(1))
    np.testing.assert_allclose(
        one_layer.descent(A, S, 9.0, Sw, rho), -jax.grad(one_layer.loss)(A, S, 9.0, Sw, rho), rtol=1e-11, atol=1e-13
    )  # round-off of two sums
    best = one_layer.optimum(S, 9.0, Sw, rho)
    assert np.abs(one_layer.descent(best, S, 9.0, Sw, rho)).max() < 1e-12


def test_the_second_moment_of_h_for_white_tasks_is_S_Gamma():
    _, S, _ = problem(2)
    np.testing.assert_allclose(one_layer.second_moment(S, 7.0, None, 0.3), S @ one_layer.gamma(S, 7.0, 0.3), rtol=1e-12)


@pytest.mark.parametrize(
    ("s", "N", "M", "rho", "twice"),
    [
        ((0.2,) * 5, 20, 20, 0.0, 0.23077),
        ((0.2,) * 5, 31, 31, 0.0, 0.16216),
        ((0.2,) * 5, 20, 40, 0.0, 0.14201),
        ((0.4, 0.3, 0.2, 0.1), 20, 20, 0.0, 0.19464),
        ((0.4, 0.3, 0.2, 0.1), 31, 31, 0.0, 0.135995),
        ((0.4, 0.3, 0.2, 0.1), 20, 40, 0.0, 0.11813),
        ((0.4, 0.3, 0.2, 0.1), 20, 20, 0.3, 0.2290),
    ],
)
def test_the_optimum_tested_at_length_M_has_the_tabulated_loss(s, N, M, rho, twice):
    """Zhang, Frei and Bartlett's losses, without the 1/2."""
    S = np.diag(s)
    A = one_layer.optimum(S, N, rho=rho)
    assert 2 * one_layer.loss(A, S, M, rho=rho) == pytest.approx(twice, abs=6e-6 if rho == 0 else 6e-5)  # last digit
    if N == M:
        assert 2 * one_layer.least_loss(S, N, rho) == pytest.approx(twice, abs=6e-6 if rho == 0 else 6e-5)
