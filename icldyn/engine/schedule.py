"""When a run is recorded, and how it is cut into calls from the host."""

import numpy as np

RECORDS_PER_CALL = 8


def record_steps(steps: int, records: int, spacing: str) -> np.ndarray:
    """(records,) step numbers from 0 to `steps`; where fewer steps than records exist, some stand twice."""
    if spacing == "log":
        grid = np.concatenate([[0.0], np.geomspace(1, steps, records - 1)]) if steps > 1 else np.linspace(0, 1, records)
    else:
        grid = np.linspace(0, steps, records)
    return np.rint(grid).astype(np.int64)


def next_call(recorded: np.ndarray, step: int, written: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The next call from `step`, of `most` steps or fewer: up to RECORDS_PER_CALL gaps, and which of them end in a record.

    `written` records are done. Gaps and flags have a fixed length, zeros behind.
    """
    gaps, keep = np.zeros(RECORDS_PER_CALL, np.int32), np.zeros(RECORDS_PER_CALL, bool)
    for k, goal in enumerate(recorded[written : written + RECORDS_PER_CALL]):
        gaps[k] = min(goal - step, most)
        keep[k] = step + gaps[k] == goal
        step, most = step + int(gaps[k]), most - int(gaps[k])
        if not keep[k]:
            break
    return gaps, keep
