"""How much later tokens gain from the context, and when training learns it; from losses l_t of positions (..., T), in nats.

    score l_{k2} - l_{k1}, negative where context helps (Olsson et al. 2022); here means over the last T/8 positions and over
    T/16 ... 3T/16, as single positions are noisy;    late = mean of the last quarter of the positions.

The score falls with mere counting of tokens, too: compare it with a unigram predictor or one layer, never with 0.
"""

from collections.abc import Sequence

import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .. import checks


def icl_score(losses: Array) -> Array:
    """mean l over the last T/8 positions, less that over positions T/16 ... 3T/16, (...)."""
    T = _long_enough(losses)
    return losses[..., -(T // 8) :].mean(-1) - losses[..., T // 16 : 3 * T // 16].mean(-1)


def icl_score_between(losses: Array, k1: int, k2: int) -> Array:
    """l_{k2} - l_{k1} of positions counted from 0, (...)."""
    T = losses.shape[-1]
    return losses[..., checks.integer("k2", k2, 0, T - 1)] - losses[..., checks.integer("k1", k1, 0, T - 1)]


def late_loss(losses: Array) -> Array:
    """Mean l of the last quarter of the positions, (...)."""
    T = _long_enough(losses)
    return losses[..., -(T // 4) :].mean(-1)


def share_reached(late: ArrayLike, unigram: ArrayLike, bayes: ArrayLike) -> np.ndarray:
    """(unigram - late) / (unigram - Bayes): 0 where tokens are counted, 1 where transitions are known as well as can be."""
    return (unigram - np.asarray(late)) / (np.asarray(unigram) - bayes)


def emergence(
    late: ArrayLike, unigram: float, levels: Sequence[float] = (0.1, 0.5, 0.9), least: float = 0.1
) -> np.ndarray:
    """Which record first reaches every level of (unigram - late) / (unigram - late at the end): (levels, ...) of late (..., T).

    -1 where there is no transition: the end is not `least` below unigram, or not finite.
    """
    late = np.asarray(late, float)
    end = late[..., -1:]
    emerged = end < unigram - least
    share = (unigram - late) / np.where(emerged, unigram - end, 1)
    return np.stack([np.where(emerged[..., 0], (share >= level).argmax(-1), -1) for level in levels])


def _long_enough(losses: Array) -> int:
    T = losses.shape[-1]
    if T < 16:
        raise checks.BadArgument(f"Argument `losses` must hold at least 16 positions, but holds {T}.")
    return T
