import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import icldyn as ic
from icldyn.engine.placing import placed
from icldyn.objectives import Objective
from icldyn.objectives.wishart import chi_from_normal, chi_quantile_series
from icldyn.tasks.linear_regression import FAMILIES
from tests.oracles import random_covariance, z_score

CASES = list(itertools.product(FAMILIES, (0.0, 0.3), (None, 4)))


def make(family, rho=0.0, pool=None, N=9, attends=True, D=3):
    rng = np.random.default_rng(0)
    Sigma_w = random_covariance(rng, D) if family == "scalar" else None
    task = ic.linear_regression(N, Sigma=random_covariance(rng, D), family=family, Sigma_w=Sigma_w, rho=rho, pool=pool)
    model = ic.linear_attention(D, task.O, query_attends_itself=attends)
    return task, model, ic.gaussian(model)(jax.random.key(3), jnp.float64(0.5))


def many(objective, params, seed, num):
    """Independent losses and gradients, num of them, at fixed params."""
    keys = jax.random.split(jax.random.key(seed), num)
    losses, grads = jax.jit(lambda ks: jax.lax.map(lambda k: jax.value_and_grad(objective.loss)(params, k), ks))(keys)
    flat = np.concatenate([np.asarray(g).reshape(num, -1) for g in jax.tree.leaves(grads)], axis=1)
    return np.asarray(losses), flat


@pytest.mark.parametrize(("family", "rho", "pool"), CASES)
def test_both_sampling_objectives_have_the_population_loss_and_gradient_as_mean(family, rho, pool):
    task, model, params = make(family, rho, pool)
    exact = ic.population(task, model)
    gradient = np.concatenate([np.asarray(g).ravel() for g in jax.tree.leaves(jax.grad(exact.loss)(params))])
    for seed, objective in enumerate((ic.statistics(task, model, 1000), ic.sampled(task, model, 1000))):
        losses, grads = many(objective, params, seed, 200)  # 200k prompts
        assert abs(z_score(losses, float(exact.loss(params)))) < 4
        live = grads.std(0) > 0
        scores = (grads.mean(0) - gradient)[live] / (grads.std(0)[live] / np.sqrt(200))
        assert np.abs(scores).max() < 4.7  # of at most 36 entries: one in 10,000 runs
        np.testing.assert_allclose(gradient[~live], 0, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "rho", "pool", "generator"),
    [
        ("shared_eigenbasis", 0.0, None, "stock"),
        ("shared_eigenbasis", 0.0, None, "both_words"),
        ("iid", 0.3, None, "both_words"),
        ("scalar", 0.3, 4, "both_words"),
    ],
)
def test_statistics_have_the_law_of_sampled_prompts_not_only_their_mean(family, rho, pool, generator):
    task, model, params = make(family, rho, pool, N=7)
    objective = placed(ic.statistics(task, model, 1, generator), "float32")  # the faster generator is one of float32
    one, one_grads = many(objective, jax.tree.map(lambda w: w.astype(jnp.float32), params), 0, 20_000)
    other, other_grads = many(ic.sampled(task, model, 1), params, 1, 20_000)
    assert stats.ks_2samp(one, other).pvalue > 1e-3
    for k in np.flatnonzero(one_grads.std(0) > 0)[::7]:  # single gradient entries, query terms included
        assert stats.ks_2samp(one_grads[:, k], other_grads[:, k]).pvalue > 1e-3


def test_masking_the_query_changes_every_objective_alike():
    for attends in (True, False):
        task, model, params = make("shared_eigenbasis", attends=attends)
        exact = float(ic.population(task, model).loss(params))
        assert abs(z_score(many(ic.statistics(task, model, 1000), params, 5, 200)[0], exact)) < 4
    assert exact != pytest.approx(float(ic.population(*make("shared_eigenbasis")[:2]).loss(params)), rel=1e-3)


@pytest.mark.parametrize("freedom", [2, 3, 5, 25, 2048])
def test_chi_quantiles_are_within_their_stated_error(freedom):
    series = chi_quantile_series([freedom])[0]
    u = np.linspace(-6, 6, 5001)
    low, high = special.ndtr(np.minimum(u, 0)), special.ndtr(-np.maximum(u, 0))
    wanted = np.where(u < 0, stats.chi.ppf(low, freedom), stats.chi.isf(high, freedom))
    assert np.abs(np.polynomial.chebyshev.chebval(u / 6, series) - wanted).max() < 1.1e-6


def test_the_program_draws_the_chi_law():
    u = jax.random.normal(jax.random.key(0), (2, 100_000))
    drawn = np.asarray(chi_from_normal(jnp.asarray(chi_quantile_series([4, 20])), u))
    assert stats.kstest(drawn[0], stats.chi(4).cdf).pvalue > 1e-3
    assert stats.kstest(drawn[1], stats.chi(20).cdf).pvalue > 1e-3


def test_a_new_context_length_or_spectrum_runs_the_same_program():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def loss(objective, params, key):
        return objective.loss(params, key)

    model = ic.linear_attention(3)
    params = ic.gaussian(model)(jax.random.key(0), jnp.float64(0.5))
    for N, s in ((32, [1.0, 0.5, 0.2]), (2048, [1.0, 0.5, 0.2]), (40, [2.0, 1.0, 0.3])):
        loss(ic.statistics(ic.linear_regression(N, s), model, 16), params, jax.random.key(1))


def test_the_loss_at_weights_zero_is_half_the_mean_square_of_the_label():
    task, model, params = make("iid")
    zero = jax.tree.map(jnp.zeros_like, params)
    assert float(ic.population(task, model).loss(zero)) == pytest.approx(3 * np.trace(task.Sigma) / 2)


def test_objectives_follow_the_protocol():
    task, model, _ = make("iid")
    for objective in (ic.sampled(task, model, 4), ic.statistics(task, model, 4), ic.population(task, model)):
        assert isinstance(objective, Objective)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda t, m: ic.statistics(t, m, 0), "`batch` must be at least 1, but is 0"),
        (lambda t, m: ic.sampled(t, ic.linear_attention(4), 8), "`model` must have the task's D = 3 and O = 3"),
        (lambda t, m: ic.statistics(ic.linear_regression(3, [1.0, 0.5, 0.2]), m, 8), "`N` must be above D = 3"),
        (
            lambda t, m: ic.statistics(ic.linear_regression(6, [1.0, 0.5, 0.2], rho=0.1), m, 8),
            "`N` must be above D + O = 6 with label noise to draw context statistics without prompts, but is 6; use `sampled`",
        ),
    ],
)
def test_a_bad_argument_is_named_in_one_sentence(call, sentence):
    task, model, _ = make("shared_eigenbasis")
    with pytest.raises(ic.BadArgument) as caught:
        call(task, model)
    assert sentence in str(caught.value)
