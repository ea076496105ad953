"""What the panels of every figure share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


def row(columns: int, width: float = 3.7, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """A figure of one row of panels, each of a width and a height in inches."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width * columns, height), squeeze=False)
    return figure, list(axes[0])


def rows(draws: Mapping[str, tuple[Callable[..., None], int]], *about: Any, **size: float) -> dict[str, Figure]:
    """Figures by name, a row of panels each: `draw(axes, *about)` on so many, of a size as for `row`."""
    figures = {}
    for name, (draw, columns) in draws.items():
        figures[name], axes = row(columns, **size)
        draw(axes, *about)
    return figures


def band(ax: Axes, x: Any, curves: Iterable[np.ndarray], color: Any, label: str | None = None) -> None:
    """A curve in a band: `curves` are the low end, the middle and the high end, (T,) each."""
    low, middle, high = curves
    ax.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0)
    ax.plot(x, middle, color=color, label=label)


def plain_ticks(axis: Axis, values: Iterable[float]) -> None:
    """Ticks of a logarithmic axis at these values alone, as plain numbers."""
    values = list(values)
    axis.set_ticks(values, [f"{v:.0f}" if v >= 1000 else f"{v:.3g}" for v in values])
    axis.set_ticks([], minor=True)
