"""Two curves of one run over each other, and how far apart they are beside what round-off may do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .overlay import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 4000  # on a curve; of more, the largest of neighbours is drawn


def gap_figure(recorded: np.ndarray, replayed: np.ndarray, gap: np.ndarray, band: np.ndarray, title: str) -> Figure:
    """Recorded (solid) and replayed (dashed) loss (T,) above, their relative gap within its band below, against the step."""
    import matplotlib.pyplot as plt

    bins = np.array_split(np.arange(len(gap)), min(len(gap), MOST_POINTS))
    first = np.array([b[0] for b in bins])
    worst = [np.array([a[b].max() for b in bins]) for a in (gap, band)]
    seen = [a[np.isfinite(a) & (a > 0)] for a in worst]
    low = max(seen[1].min(initial=1.0) / 1e4, 1e-18)
    high = 10 * max(a.max(initial=low) for a in seen)
    worst_gap, widest = (np.clip(a, low, high) for a in worst)
    with style():
        figure, (above, below) = plt.subplots(2, 1, figsize=(5.6, 5.2), sharex=True)
        above.plot(first, recorded[first], color="C0", linewidth=2.4, label="recorded")
        above.plot(
            first,
            np.where(np.isfinite(replayed), replayed, np.nan)[first],
            color="black",
            linestyle="--",
            linewidth=1.1,
            label="replayed",
        )
        above.set_ylim(0, 1.08 * max(recorded.max(), 1e-300))  # a replay that diverges leaves the picture
        above.set_ylabel("mean squared error")
        above.set_title(f"a  {title}")
        above.legend()
        below.fill_between(first, low, widest, color="C0", alpha=0.25, linewidth=0, label="band of round-off")
        below.plot(first, worst_gap, color="C1", linewidth=0.9, label="gap")
        below.set_yscale("log")
        below.set_ylim(low, high)
        below.set_xlabel("step")
        below.set_ylabel("relative gap of the loss")
        below.set_title("b  gap, beside round-off")
        below.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncol=2)
    plt.close(figure)
    return figure
