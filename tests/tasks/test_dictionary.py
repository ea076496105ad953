import jax
import numpy as np
import pytest

from icldyn import BadArgument
from icldyn.tasks.dictionary import dictionary

P, N, B = np.array([0.5, 0.3, 0.15, 0.05]), 6, 100_000
TASK = dictionary(N, P)


def z_scores(samples, wanted):
    return (samples.mean(0) - wanted) / (samples.std(0) / len(samples) ** 0.5)


def check_law(n, query):
    """Counts n (B, K) of tokens and one-hot queries (B, K) have the law of the definition."""
    assert (n.sum(1) == N).all() and (query.sum(1) == 1).all() and set(np.unique(query)) == {0, 1}
    assert np.abs(z_scores(n, N * P)).max() < 4.5  # standard errors; some 30 numbers in all
    assert np.abs(z_scores(query, P)).max() < 4.5
    second = N * (N - 1) * np.outer(P, P) + N * np.diag(P)
    assert np.abs(z_scores(n[:, :, None] * n[:, None], second)).max() < 4.5
    assert np.abs(z_scores(n[:, :, None] * query[:, None], N * np.outer(P, P))).max() < 4.5  # independent


def test_counts_are_multinomial_and_independent_of_the_query():
    n, query = jax.jit(lambda key: TASK.counts(key, B))(jax.random.key(0))
    check_law(np.asarray(n).T, np.asarray(query).T)


def test_absent_tokens_are_as_frequent_as_they_must_be():
    n, _ = TASK.counts(jax.random.key(1), B)
    assert np.abs(z_scores(np.asarray(n).T == 0, (1 - P) ** N)).max() < 4.5  # standard errors


def test_sampled_prompts_have_one_label_for_each_token_and_the_same_counts():
    x, y, x_q, y_q = (np.asarray(a) for a in TASK.sample(jax.random.key(0), B))
    assert x.shape == (B, N, 4) and y.shape == (B, N, 1) and x_q.shape == (B, 4) and y_q.shape == (B, 1)
    check_law(x.sum(1), x_q)
    same = (x[:, 0] == x_q).all(1)
    assert (y[same, 0] == y_q[same]).all() and (y[~same, 0] != y_q[~same]).all()
    assert abs(z_scores(y_q[:, 0] ** 2, 1.0)) < 4.5 and abs(z_scores(y[~same, 0, 0] * y_q[~same, 0], 0.0)) < 4.5


@pytest.mark.parametrize(
    ("N", "p", "sentence"),
    [
        (0, P, "`N` must be at least 1, but is 0"),
        (3, [1.0], "`p` must hold at least two numbers"),
        (3, [0.5, 0.4], "`p` must hold at least two numbers of at least 1e-6 that add up to 1"),
        (3, [1.5, -0.5], "`p` must hold"),
        (3, [[0.5, 0.5]], "`p` must have 1 axes"),
    ],
)
def test_bad_arguments_are_named(N, p, sentence):
    with pytest.raises(BadArgument) as error:
        dictionary(N, p)
    assert sentence in str(error.value)
