import numpy as np
import pytest

import icldyn as ic

ds = ic.descent_steps


def contexts(rng, P, N, D, law):
    return rng.uniform(-0.5, 0.5, size=(P, N, D)) if law == "uniform" else rng.normal(size=(P, N, D))


@pytest.mark.parametrize(("law", "s", "m4"), [("uniform", 1 / 12, 1 / 80), ("normal", 1.0, 3.0)])
def test_one_step_loss_is_that_of_sampled_prompts(law, s, m4):
    rng = np.random.default_rng(0)
    P, N, D = 100_000, 4, 3
    x, x_q = contexts(rng, P, N, D, law), contexts(rng, P, 1, D, law)[:, 0]
    w = rng.normal(size=(P, D))
    y = np.einsum("pnd,pd->pn", x, w)
    answer = np.einsum("pn,pnd,pd->p", y, x, x_q) / N
    y_q = (w * x_q).sum(1)
    for eta in (0.3 / s, 0.9 / s):
        squares = (y_q - eta * answer) ** 2 / 2
        apart = (squares.mean() - ds.one_step_loss(eta, s, m4, D, N)) / (squares.std() / P**0.5)
        assert abs(apart) < 4  # standard errors


def test_the_constants_of_the_notes_come_out():
    eta, loss = ds.one_step_optimum(1 / 12, 1 / 80, 10, 10)
    assert (round(eta, 4), round(loss, 5)) == (6.0606, 0.20623)
    assert 2 * ds.preconditioned_optimum(5, 20)[1] == pytest.approx(1.1538, abs=5e-5)  # given without the 1/2


def test_the_best_preconditioned_step_is_the_best_step_on_white_inputs():
    rate, loss = ds.preconditioned_optimum(5, 20)
    assert ds.one_step_optimum(1.0, 3.0, 5, 20) == pytest.approx((rate, loss), rel=1e-14)


@pytest.mark.parametrize(("D", "N"), [(1, 4), (2, 5), (5, 20), (6, 6)])
def test_the_density_of_wishart_eigenvalues_has_the_exact_moments(D, N):
    nodes, weights = ds.wishart_rule(D, N)
    a, b = 1 / N, D / N
    third = D * (1 + 3 * b + 3 * a + b**2 + 3 * a * b + 4 * a**2)  # E tr C^3, real Wishart
    for k, wanted in enumerate((D, D, D * (1 + (D + 1) / N), third)):
        assert weights @ nodes**k == pytest.approx(wanted, rel=1e-7)  # at N = D = 6; 1e-12 at N = 20, D = 5


def test_the_density_of_wishart_eigenvalues_is_that_of_sampled_ones_beyond_moments():
    x = np.random.default_rng(1).normal(size=(40_000, 6, 3))
    nodes, weights = ds.wishart_rule(3, 6)
    sampled, each = ds.sampled_rule(x)
    for f in (lambda v: np.exp(-3 * v), lambda v: v < 0.2, np.sqrt):
        assert weights @ f(nodes) == pytest.approx(
            each @ f(sampled), abs=0.02
        )  # 40,000 contexts; the step falls between nodes


def test_steps_loss_is_that_of_explicit_steps_with_transformed_inputs():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 7, 3))
    eta, gamma, total = (0.4, 0.7, 1.1), (0.2, 0.1, 0.9), 0.0
    for context in x:
        z, left, through, found = context, np.eye(3), np.eye(3), np.zeros((3, 3))  # labels of all three basis tasks
        labels = context
        for e, g in zip(eta, gamma, strict=True):
            step = e * z.T @ labels / 7
            found = found + through.T @ step
            labels = labels - z @ step
            moved = np.eye(3) - g * z.T @ z / 7
            z, through = z @ moved, moved @ through
        total += ((left - found) ** 2).sum() / 2 / len(x)
    assert ds.steps_loss(eta, gamma, ds.sampled_rule(x)) == pytest.approx(total, rel=1e-12)


def test_tuned_rates_have_no_better_neighbour_and_more_freedom_is_never_worse():
    rule = ds.wishart_rule(3, 9)
    losses = {}
    for transform in (False, True):
        for shared in (False, True):
            eta, gamma = ds.tuned_steps(2, rule, transform=transform, shared=shared)
            best = losses[transform, shared] = ds.steps_loss(eta, gamma, rule)
            for factor in (0.97, 1.03):
                assert ds.steps_loss(factor * eta, gamma, rule) > best
                assert not transform or ds.steps_loss(eta, factor * gamma, rule) > best
    assert losses[True, False] < losses[True, True] < losses[False, True]
    assert losses[True, False] < losses[False, False] < losses[False, True]


def test_general_steps_on_white_inputs_are_the_plain_ones_and_on_others_those_of_the_matrices():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 6, 3)) @ np.diag([1.0, 0.7, 0.4])
    C = np.einsum("pni,pnj->pij", x, x) / 6
    eta = np.array([0.5, 1.2])
    white = ds.general_steps_loss(eta, C, np.eye(3), np.eye(3)).mean()
    assert white == pytest.approx(ds.steps_loss(eta, np.zeros(2), ds.sampled_rule(x)), rel=1e-12)
    Sigma, Sigma_w = np.diag([1.0, 0.49, 0.16]), np.diag([1.0, 2.0, 6.0])
    R = (np.eye(3) - 1.2 * C) @ (np.eye(3) - 0.5 * C)
    wanted = np.einsum("ab,pbc,cd,pde,ea->p", Sigma_w, R.swapaxes(1, 2), Sigma, R, np.eye(3)) / 2
    np.testing.assert_allclose(ds.general_steps_loss(eta, C, Sigma, Sigma_w), wanted, rtol=1e-12)


def test_the_tuned_rate_of_one_general_step_is_the_closed_form():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(4000, 8, 2)) @ np.diag([1.0, 0.5])
    C = np.einsum("pni,pnj->pij", x, x) / 8
    Sigma, Sigma_w = np.diag([1.0, 0.25]), np.diag([1.0, 4.0])
    linear = np.einsum("ab,bc,pca->p", Sigma_w, Sigma, C).mean()  # tr(Sigma_w Sigma C), all diagonal but C
    square = np.einsum("ab,pbc,cd,pda->p", Sigma_w, C, Sigma, C).mean()
    assert ds.tuned_rate(1, C, Sigma, Sigma_w) == pytest.approx(linear / square, rel=1e-4)  # of the bounded search
