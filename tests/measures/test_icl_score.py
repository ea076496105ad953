import numpy as np
import pytest

import icldyn as ic
from icldyn.measures import icl_score as score


def test_scores_are_means_of_the_stated_positions():
    losses = np.random.default_rng(0).normal(size=(3, 48))
    for row, found, late in zip(losses, score.icl_score(losses), score.late_loss(losses), strict=True):
        assert found == pytest.approx(sum(row[42:]) / 6 - sum(row[3:9]) / 6)
        assert late == pytest.approx(sum(row[36:]) / 12)
    assert score.icl_score_between(losses, 50 - 40, 47)[1] == losses[1, 47] - losses[1, 10]


def test_emergence_is_the_first_record_beyond_every_level_and_none_without_a_transition():
    late = np.array([[2.0, 1.875, 1.4, 1.6, 1.05, 1.0], [2.0, 1.99, 1.98, 1.97, 1.96, 1.95], [2.0] * 5 + [np.nan]])
    found = score.emergence(late, unigram=2.0)
    np.testing.assert_array_equal(found[:, 0], [1, 2, 4])  # shares 0, .125, .6, .4, .95, 1
    assert (found[:, 1:] == -1).all()
    assert (score.emergence(late[1], 2.0, least=0.01) == [1, 3, 5]).all()


def test_the_share_is_one_at_bayes_and_zero_at_unigram():
    np.testing.assert_allclose(score.share_reached([1.6, 0.9, 1.25], 1.6, 0.9), [0, 1, 0.5])


def test_too_few_positions_are_refused():
    with pytest.raises(ic.BadArgument, match="`losses` must hold at least 16 positions, but holds 15"):
        score.icl_score(np.zeros(15))
    with pytest.raises(ic.BadArgument, match="`k2` must be at most 15, but is 16"):
        score.icl_score_between(np.zeros(16), 1, 16)
