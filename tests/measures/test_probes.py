import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

import icldyn as ic
from icldyn.measures import probes

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)) @ np.diag([3.0, 1, 0.5, 0.1]) + 2
TRAIN = (np.arange(60) % 3 > 0).astype(float)
W = RNG.normal(size=(4, 2))


def test_a_linear_label_is_read_out_whole_on_both_sets():
    scores = probes.linear(jnp.asarray(X), jnp.asarray(X @ W + 5), jnp.asarray(TRAIN), penalty=1e-12)
    np.testing.assert_allclose(scores, np.ones((2, 2)), atol=1e-9)


def test_ridge_regression_is_that_of_least_squares_with_rows_for_the_penalty():
    y = X @ W + RNG.normal(size=(60, 2))
    fit, test, strength = TRAIN > 0, TRAIN == 0, 0.3
    x, target = X - X[fit].mean(0), y - y[fit].mean(0)
    more = np.sqrt(strength * (x[fit] ** 2).mean() * fit.sum()) * np.eye(4)
    w = np.linalg.lstsq(np.concatenate([x[fit], more]), np.concatenate([target[fit], np.zeros((4, 2))]))[0]
    residual = ((target - x @ w)[test] ** 2).sum(0)
    wanted = 1 - residual / ((y[test] - y[test].mean(0)) ** 2).sum(0)
    found = probes.linear(jnp.asarray(X), jnp.asarray(y), jnp.asarray(TRAIN), strength)
    np.testing.assert_allclose(found.test, wanted, rtol=1e-10)


def test_noise_is_not_read_out():
    scores = probes.linear(jnp.asarray(X), jnp.asarray(RNG.normal(size=(60, 1))), jnp.asarray(TRAIN))
    assert scores.test[0] < 0.2 and scores.train[0] < 0.5


def test_softmax_regression_reaches_the_minimum_of_its_loss():
    label = (X @ W[:, 0] > np.median(X @ W[:, 0])).astype(int) + (X[:, 1] > 2.5)
    label = np.where(RNG.uniform(size=60) < 0.2, 0, label)
    fit = TRAIN > 0
    x = X - X[fit].mean(0)
    x = x / np.sqrt((x[fit] ** 2).mean())

    def loss(flat):
        w, b = flat[:12].reshape(4, 3), flat[12:]
        return -log_softmax(x[fit] @ w + b, axis=1)[np.arange(fit.sum()), label[fit]].mean() + 0.01 * (w**2).sum()

    best = minimize(loss, np.zeros(15), tol=1e-12).x
    right = (x @ best[:12].reshape(4, 3) + best[12:]).argmax(1) == label
    found = probes.logistic(jnp.asarray(X), jnp.asarray(label), jnp.asarray(TRAIN), 3, penalty=0.02)
    np.testing.assert_allclose(found, [right[fit].mean(), right[~fit].mean()], rtol=1e-12)
    assert found.test > 0.5


def test_frequencies_are_read_out_of_a_plane_and_parity_is_not():
    n = np.arange(31)
    circle = jnp.asarray(np.stack([np.cos(2 * np.pi * n / 31), np.sin(2 * np.pi * n / 31)], axis=1))
    train = jnp.asarray((n % 4 > 0).astype(float))
    halves, parity = jnp.asarray((n > 15).astype(int)), jnp.asarray(n % 2)
    for probe in (probes.linear_classes, probes.logistic):
        assert probe(circle, halves, train, 2).test > 0.8
        assert probe(circle, parity, train, 2).train < 0.7


def test_probes_vectorise_over_layers():
    y = jnp.asarray(X @ W)
    several = jnp.asarray(RNG.normal(size=(3, 60, 4)))
    found = jax.vmap(probes.linear, (0, None, None))(several, y, jnp.asarray(TRAIN))
    np.testing.assert_allclose(found.test[2], probes.linear(several[2], y, jnp.asarray(TRAIN)).test, rtol=1e-10)


def test_a_probe_for_one_class_is_refused():
    with pytest.raises(ic.BadArgument, match="`classes` must be at least 2, but is 1"):
        probes.logistic(jnp.asarray(X), jnp.zeros(60, int), jnp.asarray(TRAIN), 1)
