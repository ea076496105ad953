"""When a run is recorded, and how it is cut into calls from the host."""

import itertools
from collections.abc import Iterator

import numpy as np

RECORDS_PER_CALL = 8
CALLS_PER_RUN = 24  # at least: calls of a tenth of the run or less, so that progress moves and a stop is prompt


def record_steps(steps: int, records: int, spacing: str) -> np.ndarray:
    """(records,) step numbers from 0 to `steps`; where fewer steps than records exist, some stand twice."""
    if spacing == "log":
        grid = np.concatenate([[0.0], np.geomspace(1, steps, records - 1)]) if steps > 1 else np.linspace(0, 1, records)
    else:
        grid = np.linspace(0, steps, records)
    return np.rint(grid).astype(np.int64)


def calls(recorded: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut a schedule into calls of RECORDS_PER_CALL gaps, long gaps split; `keep` says which ends are record times."""
    longest = max(1, -(-int(recorded[-1]) // (RECORDS_PER_CALL * CALLS_PER_RUN)))
    gaps: list[int] = []
    keep: list[bool] = []
    for gap in np.diff(recorded, prepend=0):
        parts = max(1, -(-int(gap) // longest))
        cuts = [int(gap) * k // parts for k in range(parts + 1)]
        gaps += [b - a for a, b in itertools.pairwise(cuts)]
        keep += [False] * (parts - 1) + [True]
    pad = -len(gaps) % RECORDS_PER_CALL
    all_gaps = np.array(gaps + [0] * pad, np.int32).reshape(-1, RECORDS_PER_CALL)
    all_keep = np.array(keep + [False] * pad).reshape(-1, RECORDS_PER_CALL)
    return zip(all_gaps, all_keep, strict=True)
