"""Experiment and theory on one axis: seeds as a median with a band of quantiles, theory dashed on top."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from ..trajectory import Trajectory
from . import panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THEORY_DASHES = ("--", ":", "-.")


def style() -> AbstractContextManager[None]:
    """`with icldyn.style():` draws in the house style, and only there."""
    import matplotlib.pyplot as plt

    return plt.style.context("icldyn.plot.icldyn")


def image_of(figure: Figure, kind: str = "png") -> bytes:
    """The figure as a file, in the house style: colours by number and the resolution are looked up only when it is written."""
    image = io.BytesIO()
    with style():
        figure.savefig(image, format=kind)
    return image.getvalue()


def overlay(
    seeds: Trajectory,
    theories: Mapping[str, Trajectory] | None,
    name: str,
    ax: Axes | None = None,
    *,
    band: tuple[float, float] = (0.05, 0.95),
    labels: Sequence[str] | None = None,
    colors: Sequence[Any] | None = None,
    legend: Mapping[str, Any] | None = None,
) -> Axes:
    """Draw value `name` of the seeds (median, band of quantiles) and of every theory that has it, against t.

    A value with one axis of its own (modes) gives one colour for each entry. Returns the axes.

    Args:
        seeds: a trajectory over seeds, of one learning rate and scale (`isel` picks one).
        theories: label -> trajectory; drawn in black, dashed, dotted, dash-dotted.
        name: which value.
        ax: where to draw; a new figure by default.
        band: quantile levels of the band.
        labels: one for each entry of the value; "seeds" or "mode 1", "mode 2", ... by default.
        colors: one for each entry.
        legend: passed on to `ax.legend`.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots()
    curves = seeds.quantile(name, (band[0], 0.5, band[1])).reshape(3, seeds.t.size, -1)
    entries = curves.shape[2]
    if labels is None:
        labels = [f"mode {k + 1}" for k in range(entries)] if entries > 1 else ["seeds, median"]
    colors = list(colors) if colors is not None else [f"C{k}" for k in range(entries)]
    for k in range(entries):
        panels.band(ax, seeds.t, curves[..., k], colors[k], labels[k])
    for (label, theory), dashes in zip((theories or {}).items(), cycle(THEORY_DASHES), strict=False):
        exact = np.asarray(theory[name]).reshape(theory.t.size, -1)
        for k in range(exact.shape[1]):
            ax.plot(
                theory.t, exact[:, k], color="black", linestyle=dashes, linewidth=1.1, label=label if k == 0 else None
            )
    ax.set_xlabel(r"time $t$ = learning rate $\times$ steps")
    title = f"{seeds.coverage}, {band[0]:.0%}–{band[1]:.0%} band"
    ax.legend(**{"title": title, "title_fontsize": 7.5, **(legend or {})})
    return ax
