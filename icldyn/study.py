"""What a paper becomes: config with scales, experiments, theories, claims, figures. Standard library only.

A module in `icldyn/studies/` with a `STUDY` is found by its name; there is no registry to edit.
"""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import checks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .engine.experiment import Experiment
    from .trajectory import Trajectory

    Trajectories = Mapping[str, Trajectory]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence that a number decides: it holds if low <= measured <= high."""

    sentence: str
    measured: float
    low: float = float("-inf")
    high: float = float("inf")
    gap: bool = False  # whether it is a distance between seeds and theory, for the table of studies

    @property
    def holds(self) -> bool:
        """Whether the measured number lies within the limits (a NaN does not)."""
        return bool(self.low <= self.measured <= self.high)

    @property
    def limit(self) -> str:
        """The limits as text."""
        if self.low == float("-inf"):
            return "reported" if self.high == float("inf") else f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high == float("inf") else f"{self.low:g} to {self.high:g}"


@dataclasses.dataclass(frozen=True)
class Study:
    """One paper. All of it is reached through the command line, tests and README from this object alone."""

    title: str
    paper: str
    scales: Mapping[str, Any]  # scale -> Config: "smoke" (seconds), "laptop" (the default), "paper"
    check: Callable[[Any], None]  # raises BadArgument; imports no jax
    experiments: Callable[[Any], dict[str, Experiment]]  # what is trained, by name
    theories: Callable[[Any, Trajectories], dict[str, Trajectory]]
    claims: Callable[[Any, Trajectories, Trajectories], list[Claim]]
    figures: Callable[[Any, Trajectories, Trajectories], dict[str, Figure]]
    panel: Callable[
        [Axes, Any, Trajectories, Trajectories], None
    ]  # the study in one small figure, for the grid of a sweep

    def drawn(self, config: Any, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
        """Its figures, in the house style."""
        from .plot.overlay import style

        with style():
            return self.figures(config, seeds, theory)


def study_names() -> list[str]:
    """Names of all studies."""
    from . import studies as package

    return sorted(m.name for m in pkgutil.iter_modules(package.__path__))


def study(name: str) -> Study:
    """The study of this name.

    Raises:
        icldyn.BadArgument: if there is none; a near miss is named.
    """
    checks.one_of("study", name, study_names())
    return import_module(f"icldyn.studies.{name}").STUDY
