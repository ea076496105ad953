import jax
import numpy as np
import pytest

import icldyn as ic
from icldyn.tasks.cooccurrence import cooccurrence, labels, types


def kinds(T):
    """The type of every sentence, read from its words: 0 ... 3."""
    return np.array([(0 if 1 in s else 1) if 0 in s else (2 if 1 in s else 3) for s in T.tolist()])


def test_every_sentence_has_the_common_word_once_and_types_have_their_probabilities():
    law = cooccurrence(60_000, L=5, d=12)
    T = np.asarray(jax.jit(law.tokens)(jax.random.key(0)))
    assert T.shape == (60_000, 5) and T.min() >= 0 and T.max() < 12
    assert ((T == 2).sum(1) == 1).all() and ((T == 0).sum(1) <= 1).all() and ((T == 1).sum(1) <= 1).all()
    shares = np.bincount(kinds(T), minlength=4) / 60_000
    np.testing.assert_allclose(shares, [1 / 2, 1 / 6, 1 / 6, 1 / 6], atol=0.01)  # 5 standard errors
    irrelevant = np.bincount(T[T >= 3], minlength=12)[3:]
    np.testing.assert_allclose(irrelevant / irrelevant.mean(), 1, atol=0.05)  # 16,000 each: 6 standard errors


def test_counts_labels_and_types_are_those_of_the_words():
    law = cooccurrence(30, L=4, d=9)
    key, same = jax.random.key(1), jax.random.key(1)
    T, N = np.asarray(jax.jit(law.tokens)(key)), np.asarray(jax.jit(law.counts, static_argnums=1)(same, np.float64))
    assert [sorted(s) for s in T.tolist()] == [np.repeat(np.arange(9), row.astype(int)).tolist() for row in N]
    assert np.array_equal(labels(N), np.where(kinds(T) == 0, 1, -1))
    assert np.array_equal(np.asarray(types(N)).argmax(0), kinds(T)) and (np.asarray(types(N)).sum(0) == 1).all()


def test_balanced_types_come_in_equal_parts_and_distinct_words_once():
    law = cooccurrence(60, L=5, d=163, balanced=True, distinct=True)
    T = np.asarray(jax.jit(law.tokens)(jax.random.key(0)))
    assert np.bincount(kinds(T)).tolist() == [30, 10, 10, 10]
    words, times = np.unique(T[T >= 3], return_counts=True)
    assert (times == 1).all() and words.tolist() == list(range(3, 163))
    drawn = np.asarray(jax.jit(cooccurrence(7, L=4, d=40, distinct=True).tokens)(jax.random.key(0)))
    assert np.unique(drawn[drawn >= 3], return_counts=True)[1].max() == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"n": 0}, "`n` must be at least 1, but is 0"),
        ({"n": 10, "balanced": True}, "`n` must be a multiple of 6, for balanced types, but is 10"),
        ({"L": 2}, "`L` must be at least 3, but is 2"),
        ({"d": 3}, "`d` must be at least 4, but is 3"),
        ({"distinct": True}, "`d` must be at least 51, but is 20"),
    ],
)
def test_data_sets_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(ic.BadArgument, match=sentence):
        cooccurrence(**{"n": 12, "L": 5, "d": 20} | settings)
