"""What a number of every seed is on the whole, with the uncertainty that finitely many seeds leave."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike


def interval(values: ArrayLike, statistic: Callable[..., np.ndarray] = np.mean) -> tuple[float, float, float]:
    """A statistic over seeds, and the ends of its 95 % interval by bootstrap (percentiles of 9,999 draws, always the same).

    Args:
        values: (seeds,); those that are not finite are left out.
        statistic: np.mean or np.median, or any that takes `axis`.

    Returns:
        (value, low, high); NaN if no value is finite, as of seeds that never do a thing.
    """
    from scipy import stats

    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return np.nan, np.nan, np.nan
    value = float(statistic(finite))
    if np.ptp(finite) == 0:
        return value, value, value
    settings = {"method": "percentile", "rng": np.random.default_rng(0), "n_resamples": 9999, "vectorized": True}
    ends = stats.bootstrap((finite,), statistic, **settings).confidence_interval
    return value, float(ends.low), float(ends.high)
