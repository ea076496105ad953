"""Ranks and subspace distances of the layers of checkpoints, against the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import panels
from .overlay import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMED = 8  # layers in the legend


def measured_figure(
    x: np.ndarray,
    label: str,
    ranks: Mapping[str, np.ndarray],
    distances: Mapping[str, Sequence[np.ndarray]],
    chance: float,
    k: int,
) -> Figure:
    """Panels of ranks, name -> (T, L), and of distances, "A, B" -> two (T, L), solid and dashed, against x (T,)."""
    import matplotlib.pyplot as plt

    with style():
        figure, axes = panels.row(len(ranks) + len(distances), 3.2, 2.9)
        some = next(iter(ranks.values()))
        colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, some.shape[1]))
        marker = "o" if len(x) < 3 else None
        for ax, (name, curves) in zip(axes, ranks.items(), strict=False):
            for layer, color in enumerate(colors):
                named = some.shape[1] <= MOST_NAMED or layer in (0, some.shape[1] - 1)
                ax.plot(x, curves[:, layer], color=color, marker=marker, label=f"layer {layer}" if named else None)
            ax.set(title=name, xlabel=label, ylabel=rf"$\mathrm{{er}}_{k}$, mean over heads")
        for ax, (name, sides) in zip(axes[len(ranks) :], distances.items(), strict=True):
            for curves, dashes in zip(sides, ("-", "--"), strict=True):
                for layer, color in enumerate(colors):
                    ax.plot(x, curves[:, layer], color=color, linestyle=dashes, marker=marker)
            ax.axhline(chance, color="0.5", linewidth=0.8, linestyle=":", label="chance")
            for side, dashes in zip(name.split(", "), ("-", "--"), strict=True):
                ax.plot([], [], color="0.3", linestyle=dashes, label=side)
            ax.set(title=f"subspace distance, {name}", xlabel=label, ylabel="$D$, mean over heads", ylim=(0, 1.05))
            ax.legend()
        axes[0].legend()
    plt.close(figure)
    return figure
