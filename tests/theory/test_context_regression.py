import numpy as np
import pytest

import icldyn as ic
from icldyn.theory import context_regression as regression


def drawn(n=100_000, N=10, d=3, sigma2=0.2):
    rng = np.random.default_rng(0)
    x, beta = rng.normal(size=(n, N + 1, d)), rng.normal(size=(n, d)) / d**0.5
    y = np.einsum("nld,nd->nl", x, beta) + sigma2**0.5 * rng.normal(size=(n, N + 1))
    return x[:, :-1], y[:, :-1], x[:, -1], y[:, -1]


def test_all_losses_are_those_of_drawn_prompts():
    x, y, x_q, y_q = drawn()
    n, N, d = x.shape
    h = np.einsum("nl,nld->nd", y, x) / N
    centred = np.einsum("nl,nld->nd", y, x - x.mean(1, keepdims=True)) / N
    W = np.einsum("nld,nle->nde", x, x) + 0.2 * d * np.eye(d)
    ridge = np.linalg.solve(W, N * h[..., None])[..., 0]
    for beta, wanted in (
        (0.6 * h, regression.descent_loss(0.6, N, d, 0.2)),
        (0.7 * centred, regression.debiased_loss(0.7, N, d, 0.2)),
        (ridge, regression.ridge_loss(N, d, 0.2)),
    ):
        losses = 0.5 * ((beta * x_q).sum(1) - y_q) ** 2
        assert abs(losses.mean() - wanted) < 4 * losses.std() / n**0.5


@pytest.mark.parametrize("name", ["descent", "debiased"])
def test_the_best_step_is_best(name):
    eta, loss = getattr(regression, f"best_{name}")(10, 3, 0.2)
    at = getattr(regression, f"{name}_loss")
    assert loss == pytest.approx(at(eta, 10, 3, 0.2))
    assert min(at(eta + e, 10, 3, 0.2) for e in (-0.01, 0.01)) > loss


def test_the_references_have_the_values_of_the_notes():
    assert 2 * regression.best_descent(40, 5, 0.1)[1] == pytest.approx(0.2398, abs=6e-5)
    assert 2 * regression.best_debiased(40, 5, 0.1)[1] == pytest.approx(0.2429, abs=6e-5)
    assert 2 * regression.ridge_loss(40, 5, 0.1) == pytest.approx(0.1145, abs=1e-4)
    for N, first, second in ((10, 0.6336, 0.6078), (20, 0.3721, 0.3703), (40, 0.2414, 0.2432), (80, 0.1760, 0.1776)):
        assert 2 * regression.descent_loss(0.897, N, 5, 0.1) == pytest.approx(first, abs=6e-5)
        assert 2 * regression.debiased_loss(0.897, N, 5, 0.1) == pytest.approx(second, abs=6e-5)


def test_the_proportional_limits_are_those_of_the_notes_and_of_large_sizes():
    assert 2 * regression.proportional_ridge_loss(0.2, 3.0) == pytest.approx(3.405, abs=6e-4)
    assert 2 * regression.descent_loss(1 / 1.8, 100, 20, 3.0) == pytest.approx(3.4475, abs=6e-5)
    large = regression.ridge_loss(150, 30, 3.0, draws=200)
    assert large == pytest.approx(regression.proportional_ridge_loss(0.2, 3.0), rel=1e-3)  # corrections of order 1/d
    best = regression.best_descent(10**6, 2 * 10**5, 3.0)[1]
    assert best == pytest.approx(regression.proportional_descent_loss(0.2, 3.0), rel=1e-5)


def test_bad_arguments_are_named():
    with pytest.raises(ic.BadArgument, match="`sigma2` must be positive"):
        regression.ridge_loss(10, 3, 0.0)
    with pytest.raises(ic.BadArgument, match="`N` must be at least 1"):
        regression.ridge_loss(0, 3, 0.1)
