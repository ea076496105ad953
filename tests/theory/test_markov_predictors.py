import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from icldyn.tasks.markov import markov
from icldyn.theory import markov_predictors as mp


def test_predictions_are_counts_taken_one_by_one():
    k, alpha, T = 3, 0.4, 9
    x = np.random.default_rng(0).integers(0, k, (4, T + 1))
    bayes, unigram = mp.bayes(jnp.asarray(x), k, alpha), mp.unigram(jnp.asarray(x), k, alpha)
    for b in range(4):
        for t in range(T):
            seen = list(x[b, : t + 1])
            n_i = [sum(pair == (seen[-1], j) for pair in zip(seen, seen[1:], strict=False)) for j in range(k)]
            np.testing.assert_allclose(bayes[b, t], (np.array(n_i) + alpha) / (sum(n_i) + k * alpha), rtol=1e-13)
            n = np.array([seen.count(j) for j in range(k)])
            np.testing.assert_allclose(unigram[b, t], (n + alpha) / (t + 1 + k * alpha), rtol=1e-13)
    losses = np.asarray(mp.losses(unigram, jnp.asarray(x)))
    assert losses.shape == (4, T) and losses[2, 5] == pytest.approx(-np.log(unigram[2, 5, x[2, 6]]))


def test_no_prediction_sees_the_token_it_predicts():
    x = jnp.asarray(np.random.default_rng(1).integers(0, 3, (1, 8)))
    other = x.at[0, 5].set((x[0, 5] + 1) % 3)
    for predictor in (mp.bayes, mp.unigram):
        a, b = predictor(x, 3, 1.0), predictor(other, 3, 1.0)
        np.testing.assert_array_equal(a[:, :5], b[:, :5])
        assert not np.allclose(a[:, 5:], b[:, 5:])


def test_bayes_is_the_posterior_mean_of_drawn_matrices():
    """Matrices from the prior, weighted by the likelihood of what was seen; x_1 says nothing here."""
    rng, k, alpha = np.random.default_rng(0), 3, 0.7
    P, x = rng.dirichlet(alpha * np.ones(k), size=(200_000, k)), [0, 1, 1, 0, 1, 2, 0]
    weight = np.prod([P[:, i, j] for i, j in zip(x, x[1:], strict=False)], axis=0)
    wanted = (weight[:, None] * P[:, x[-1]]).sum(0) / weight.sum()
    found = mp.bayes(jnp.asarray([[*x, 0]]), k, alpha)[0, -1]
    np.testing.assert_allclose(found, wanted, atol=0.01)  # 200,000 weighted draws: an effective number of about 10,000


@pytest.mark.parametrize(
    ("k", "alpha", "T", "unigram", "bayes", "scores"),
    [
        (8, 0.1, 48, 1.597, 0.878, (-0.523, -0.255)),
        (8, 0.1, 64, 1.571, 0.828, (-0.479, -0.225)),
        (3, 1.0, 64, 0.993, 0.860, (-0.117, -0.050)),
    ],
)
def test_late_losses_and_scores_of_the_references_are_those_of_the_notes(k, alpha, T, unigram, bayes, scores):
    """Standard errors of 256 sequences are 0.042 and 0.030; here of 8192, against a population of 40,000."""
    x = markov(k, T, alpha=alpha).sample(jax.random.key(0), 8192)
    found = [np.asarray(mp.losses(f(x, k, alpha), x)) for f in (mp.bayes, mp.unigram)]
    for losses, late, score in zip(found, (bayes, unigram), scores, strict=True):
        each = losses[:, -T // 4 :].mean(1)
        rounding = 5e-4 + each.std() / 40_000**0.5  # of the notes' three digits, and their own sampling error
        assert abs(each.mean() - late) < 4 * each.std() / 8192**0.5 + 2 * rounding
        gain = losses[:, -T // 8 :].mean(1) - losses[:, T // 16 : 3 * T // 16].mean(1)
        assert abs(oracles.z_score(gain, score)) < 5
    uniform = mp.losses(mp.uniform(x[:2], k), x[:2])
    np.testing.assert_allclose(uniform, np.log(k), rtol=1e-13)
