"""Blocks: the seeds that run as one program, and how an experiment is cut into them.

A cell is a few seeds of one point (learning rate, scale) of one experiment: it is stored, and kept or lost, as a whole. A block
is one cell, or several small cells of alike experiments, side by side in the G lanes of one program. Blocks depend on the
experiments alone, not on devices, processes, or what is done already, so that every seed meets the same program in every run.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .experiment import Experiment


@dataclass(frozen=True)
class Cell:
    """Seeds `first` ... `last - 1` of one point of an experiment; both by number."""

    experiment: int
    number: int
    point: tuple[int, int]
    first: int
    last: int

    @property
    def rows(self) -> slice:
        """Its seeds as a slice."""
        return slice(self.first, self.last)

    @property
    def size(self) -> int:
        """How many seeds."""
        return self.last - self.first


Block = tuple[Cell, ...]


def cells_of(number: int, experiment: Experiment) -> list[Cell]:
    """The cells of one experiment, at most `block` seeds each."""
    assert experiment.block is not None
    S, G = len(experiment.seed_ids), experiment.block
    points = itertools.product(range(len(experiment.lrs)), range(len(experiment.scales)))
    pieces = itertools.product(points, range(0, S, G))
    return [Cell(number, k, point, first, min(first + G, S)) for k, (point, first) in enumerate(pieces)]


def blocks_of(experiments: Sequence[Experiment], across_values: bool = False) -> list[Block]:
    """All blocks of all experiments.

    Experiments of half a block or less share blocks where rate, scale and initial weights alone differ; these are per lane in
    any case, so no bit changes. With `across_values` they share them where any value differs, and shapes alone agree: the
    program then has these values lane by lane, and may round the last digit otherwise than one with a value for all.
    """
    full: list[Block] = []
    shared: dict[tuple, list[Block]] = {}
    for number, experiment in enumerate(experiments):
        for cell in cells_of(number, experiment):
            if 2 * len(experiment.seed_ids) > experiment.block:
                full.append((cell,))
                continue
            alike = experiment.structure if across_values else (experiment.structure, experiment.kernel)
            kind = (alike, experiment.block, experiment.recorded[cell.point[0]].tobytes())
            open_blocks = shared.setdefault(kind, [])
            if not open_blocks or sum(c.size for c in open_blocks[-1]) + cell.size > experiment.block:
                open_blocks.append(())
            open_blocks[-1] += (cell,)
    return full + list(itertools.chain.from_iterable(shared.values()))


def steps_recorded(block: Block, experiments: Sequence[Experiment]) -> np.ndarray:
    """(T,) step numbers that a block records."""
    return experiments[block[0].experiment].recorded[block[0].point[0]]
