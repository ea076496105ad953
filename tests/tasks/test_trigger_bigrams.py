import jax
import numpy as np
import pytest
from scipy import stats

import icldyn as ic
from icldyn.tasks.trigger_bigrams import in_context, trigger_bigrams

P = np.random.default_rng(0).dirichlet(np.ones(6), size=6)


@pytest.fixture(scope="module")
def sequences():
    tokens, q = trigger_bigrams(P, 40, Q=2).with_triggers(jax.random.key(0), 4000)
    return np.asarray(tokens), np.asarray(q)


def test_a_trigger_always_has_the_same_successor_and_triggers_differ(sequences):
    tokens, q = sequences
    assert (q[:, 0] != q[:, 1]).all() and len({tuple(sorted(pair)) for pair in q}) == 15  # all pairs of 6
    for x, pair in zip(tokens, q, strict=True):
        for trigger in pair:
            assert len(set(x[1:][x[:-1] == trigger])) <= 1


def test_other_tokens_are_followed_by_the_bigram(sequences):
    tokens, q = sequences
    free = ~(tokens[:, :-1, None] == q[:, None]).any(2)
    for i in range(6):
        after = tokens[:, 1:][free & (tokens[:, :-1] == i)]
        assert stats.chisquare(np.bincount(after, minlength=6), len(after) * P[i]).pvalue > 1e-3


def test_the_context_tells_what_follows_a_trigger_that_was_seen(sequences):
    tokens, q = sequences
    found = np.asarray(in_context(tokens[:50], q[:50]))
    for b in range(50):
        wanted = [x in q[b] and x in tokens[b, :t] for t, x in enumerate(tokens[b, :-1])]
        np.testing.assert_array_equal(found[b], wanted)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"P": P + 0.1}, "`P` must be a square matrix of rows"),
        ({"P": P[:4]}, "`P` must be a square matrix of rows"),
        ({"Q": 7}, "`Q` must be at most 6, but is 7"),
    ],
)
def test_what_is_no_bigram_law_is_refused(settings, sentence):
    with pytest.raises(ic.BadArgument, match=sentence):
        trigger_bigrams(**({"P": P, "T": 4, "Q": 1} | settings))
