import numpy as np
import pytest

from icldyn.measures import over_seeds


@pytest.mark.parametrize(("statistic", "truth"), [(np.mean, 1.0), (np.median, np.log(2))])
def test_the_interval_covers_the_truth_as_often_as_it_says(statistic, truth):
    rng = np.random.default_rng(0)
    found = np.array([over_seeds.interval(rng.exponential(size=40), statistic) for _ in range(200)])
    covered = ((found[:, 1] <= truth) & (truth <= found[:, 2])).mean()
    assert 0.88 <= covered <= 0.99  # 0.95, whose standard error is 0.015, and a little less as 40 seeds are few


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(1).normal(size=400)
    value, low, high = over_seeds.interval(values)
    assert value == values.mean()
    half = 1.96 * values.std() / 20
    np.testing.assert_allclose([value - low, high - value], half, rtol=0.05)  # of 9,999 draws


@pytest.mark.parametrize(
    ("values", "wanted"), [([2, 2, np.nan], [2, 2, 2]), ([np.inf], [np.nan] * 3), ([], [np.nan] * 3)]
)
def test_seeds_without_a_number_are_left_out(values, wanted):
    np.testing.assert_array_equal(over_seeds.interval(values), wanted)
