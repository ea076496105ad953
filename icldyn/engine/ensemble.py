"""Many seeds of one experiment, in memory.

Seeds run in blocks of a fixed size, padded, and every block runs the same compiled program whatever its company, so a seed's
trajectory has the same bits alone or among thousands. Blocks are dealt to the devices (to the cores, on a CPU), and time is
cut into calls from the host; nothing is called from inside the program.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from .. import checks
from ..objectives import Objective
from ..trajectory import Trajectory
from .blocks import Cell
from .experiment import Experiment, seed_numbers
from .placing import placed, traceable
from .programs import Program, start
from .train import Options, train


def ensemble(
    objective: Objective,
    init: Callable[[Array, Array], Any],
    *,
    engine: str = "blocks",
    progress: str | bool = False,
    **settings: Any,
) -> Trajectory:
    """Train many seeds and record them.

    Args:
        objective: what a step descends; any pytree with `loss(params, key)`.
        init: (key, scale) -> params, for instance from `icldyn.models.linear_attention`.
        engine: "blocks" runs the same program on every device, "spmd" one program over a mesh of them.
        progress: True, or a title, to show a progress bar with seed-steps per second.
        settings: `seeds`, `lr`, `steps` or `t_end`, and whatever else `icldyn.Experiment` takes.

    Returns:
        A `Trajectory` with dimensions ([lr], [init_scale], seed, time, ...). A seed that diverges stays at its last finite
        state and is counted in `diverged`; the others are untouched. `attrs` holds seconds of compilation and of running.

    Raises:
        icldyn.BadArgument: a sentence that names the argument, what it must be and what it is.
    """
    experiment = Experiment(objective, init, **settings)
    return ensembles({"seeds": experiment}, Options(engine=engine, progress=progress))["seeds"]


def ensembles(experiments: Mapping[str, Experiment], options: Options) -> dict[str, Trajectory]:
    """Train several experiments at once, into memory."""
    sinks = {name: _Memory(name) for name in experiments}
    speed = train([(experiment, sinks[name]) for name, experiment in experiments.items()], options)
    held = {name: sink.trajectory for name, sink in sinks.items()}
    return {name: dataclasses.replace(t, attrs={**t.attrs, **speed}) for name, t in held.items()}


class _Memory:
    """A sink on the host."""

    block = None
    trajectory: Trajectory

    def __init__(self, label: str):
        self.label = label

    def begin(self, experiment: Experiment, layout: Trajectory, cells: Sequence[Cell]) -> Collection[int]:
        """Fill the layout with NaN in place."""
        self.experiment = experiment
        lead, missing = layout.coords["diverged_step"]
        self.trajectory = dataclasses.replace(
            layout,
            values={name: value.copy() for name, value in layout.values.items()},
            coords={**layout.coords, "diverged_step": (lead, missing.copy())},
        )
        return ()

    def commit(self, cell: Cell, values: Mapping[str, np.ndarray], diverged_step: np.ndarray, **_: Any) -> None:
        """Copy into place."""
        where = (*self.experiment.index(cell.point), cell.rows)
        for name, value in values.items():
            self.trajectory.values[name][where] = value
        self.trajectory.coords["diverged_step"][1][where] = diverged_step


def initial_params(
    init: Callable[[Array, Array], Any], *, seeds: int | Sequence[int], init_scale: float = 1.0, dtype: str = "float32"
) -> Any:
    """The weights that `ensemble` starts these seeds from, stacked over seeds: where `flow` must start to meet them."""
    ids, checked = seed_numbers(seeds), checks.one_of("dtype", dtype, ("float32", "float64"))
    scale = np.full(len(ids), checks.real("init_scale", init_scale, least=0), checked)
    with jax.enable_x64(dtype == "float64"):
        leaves, treedef = jax.tree.flatten(placed(traceable(init), dtype))
        program = Program(treedef, (False,) * len(leaves), optax.sgd)
        _, (params, _, _) = start(program, tuple(leaves), scale, scale, ids.astype(np.uint32))
        return jax.device_get(params)
