"""Training: every block of every experiment, on every device, into sinks that lose nothing.

Time is cut into calls of about a quarter of a second from the host; between them progress is shown, a request to stop is heard
and a checkpoint is kept. Where time is cut changes no bit.
"""

import dataclasses
import functools
import queue
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import jax
import numpy as np

from .. import checks
from ..trajectory import Trajectory
from .blocks import Block, Cell, blocks_of, cells_of, steps_recorded
from .devices import default_block, memory, workers
from .experiment import Experiment
from .programs import NO_STEPS, Lanes, Placer, fitting_block, footprint, shapes
from .progress import Progress
from .schedule import next_call

SECONDS_PER_CALL = 0.25
SHARE_OF_MEMORY = 0.8
ENGINES = ("blocks", "spmd")


class Sink(Protocol):
    """Where the results of one experiment go."""

    label: str  # its own, among all
    block: int | None  # seeds in a block, if an earlier session fixed it

    def begin(self, experiment: Experiment, layout: Trajectory, cells: Sequence[Cell]) -> Collection[int]:
        """Make room for `layout`; returns the numbers of the cells that are there already."""

    def commit(self, cell: Cell, values: Mapping[str, np.ndarray], diverged_step: np.ndarray, **facts: Any) -> None:
        """Keep a finished cell: values (seeds, T, ...) and diverged steps (seeds,)."""


class Keeper(Protocol):
    """Where unfinished blocks are kept, arrays by name."""

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """What was kept of a block, or None."""

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a block in place of what was kept of it."""

    def drop(self, name: str) -> None:
        """Forget a block that is committed."""


@dataclasses.dataclass
class Options:
    """How to train, which changes no number: see `icldyn run --help`."""

    engine: str = "blocks"
    share: tuple[int, int] = (1, 1)  # this process trains the blocks i, i + n, ... of n processes
    across_values: bool = False  # small experiments of the same shapes share programs: see `blocks_of`
    checkpoint_seconds: float = 30.0
    progress: str | bool = False
    keeper: Keeper | None = None
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)


def train(work: Sequence[tuple[Experiment, Sink]], options: Options) -> dict[str, float]:
    """Train what is not yet in the sinks. Returns seconds of compilation and of running apart, and seed-steps per second.

    Raises:
        icldyn.checks.Stopped: if `options.stop` was set before the end; what was done is in the sinks and the keeper.
    """
    began = time.perf_counter()
    checks.one_of("engine", options.engine, ENGINES)
    make = functools.partial(Training, work, options)
    if options.engine == "spmd":
        from .joining import together

        make = functools.partial(together, make)
    with ThreadPoolExecutor(1) as pool:  # a thread has its own settings of jax; those of the caller stay out
        training = pool.submit(make).result()
    if options.engine == "spmd":
        from .spmd import train_in_waves

        train_in_waves(training)  # with nothing to do as well: other processes may see more, and wait for this one
    elif training.todo:
        train_by_blocks(training)
    if options.stop.is_set() and training.unfinished:
        raise checks.Stopped
    ended = time.perf_counter()
    started = training.started or ended
    return {
        "compile_seconds": round(started - began, 3),
        "run_seconds": round(ended - started, 3),
        "seed_steps_per_second": round(training.bar.done / max(ended - started, 1e-9), 1),
    }


class Training:
    """What blocks of either engine share: the plan, what is done, checkpoints, results."""

    def __init__(self, work: Sequence[tuple[Experiment, Sink]], options: Options):
        self.options = options
        self.sinks = [sink for _, sink in work]
        self.experiments = [_with_block(e, sink, options) for e, sink in work]
        self.done: list[set[int]] = []
        self.seen: dict[
            tuple, dict[str, jax.ShapeDtypeStruct]
        ] = {}  # by structure: the measures of a seed at one record
        for number, (experiment, sink) in enumerate(zip(self.experiments, self.sinks, strict=True)):
            if experiment.structure not in self.seen:
                self.seen[experiment.structure] = shapes(experiment)
            layout = experiment.layout(self.seen[experiment.structure])
            self.done.append(set(sink.begin(experiment, layout, cells_of(number, experiment))))
        index, count = options.share
        self.blocks = blocks_of(self.experiments, options.across_values)[index - 1 :: count]
        self.todo = [b for b in self.blocks if any(c.number not in self.done[c.experiment] for c in b)]
        self.unfinished = len(self.todo)
        self.placer = Placer(self.experiments)
        total = sum(int(self.recorded(b)[-1]) * c.size for b in self.todo for c in b)
        self.bar = Progress(options.progress, total)
        self.width: dict[Any, int] = {}  # lanes that fit, where the whole block did not
        self.failed = threading.Event()
        self.started: float | None = None  # when compilation was over

    def recorded(self, block: Block) -> np.ndarray:
        """(T,) step numbers."""
        return steps_recorded(block, self.experiments)

    def first(self, block: Block) -> Experiment:
        """The experiment of its first cell: dtype, lanes and structure are those of all."""
        return self.experiments[block[0].experiment]

    def name(self, block: Block) -> str:
        """A name for its checkpoint."""
        return f"{self.sinks[block[0].experiment].label}-{block[0].number}"

    @property
    def stopping(self) -> bool:
        """Whether blocks are to stop at their next call."""
        return self.failed.is_set() or self.options.stop.is_set()

    @contextmanager
    def settings(self, block: Block, device: jax.Device | None = None):
        """Settings of jax for a block, in the thread that runs it."""
        with jax.enable_x64(self.first(block).x64), jax.default_device(device):
            yield

    def empty_records(self, block: Block) -> dict[str, np.ndarray]:
        """Arrays for all records of a block: (G, T, ...)."""
        lead = (self.first(block).block, len(self.recorded(block)))
        seen = self.seen[self.first(block).structure]
        return {name: np.full((*lead, *a.shape), np.nan, a.dtype) for name, a in seen.items()}

    def restore(self, block: Block, state: Any) -> tuple[Any, dict[str, np.ndarray], int, int]:
        """(state, records, step, records done): from its checkpoint, or from the start."""
        records = self.empty_records(block)
        kept = self.options.keeper and self.options.keeper.load(self.name(block))
        if not kept:
            return state, records, 0, 0
        leaves, treedef = jax.tree.flatten(state)
        old = [kept.get(f"state{k}") for k in range(len(leaves))]
        wanted = [*((a.shape, a.dtype) for a in leaves), *((a.shape, a.dtype) for a in records.values())]
        found = [*old, *(kept.get(f"record.{name}") for name in records)]
        if [a is not None and (a.shape, a.dtype) for a in found] != wanted:
            self.options.say(f"The checkpoint {self.name(block)} is of another experiment; its block starts again.")
            return state, records, 0, 0
        records = {name: kept[f"record.{name}"].copy() for name in records}
        return jax.tree.unflatten(treedef, old), records, int(kept["step"]), int(kept["written"])

    def save(self, block: Block, state: Any, records: dict[str, np.ndarray], step: int, written: int) -> None:
        """Keep an unfinished block."""
        if self.options.keeper is None:
            return
        arrays = {f"state{k}": np.asarray(a) for k, a in enumerate(jax.tree.leaves(state))}
        arrays |= {f"record.{name}": a for name, a in records.items()}
        self.options.keeper.save(self.name(block), arrays | {"step": np.int64(step), "written": np.int64(written)})

    def finish(self, block: Block, state: Any, records: dict[str, np.ndarray], seconds: float) -> None:
        """Hand a finished block to the sinks, cell by cell."""
        diverged = _diverged_step(np.asarray(state[2]), records, self.recorded(block))
        width = self.width.get(self.kind(block), self.first(block).block)
        lane = 0
        for cell in block:
            rows, lane = slice(lane, lane + cell.size), lane + cell.size
            if cell.number not in self.done[cell.experiment]:
                values = {name: a[rows] for name, a in records.items()}
                facts = {"seconds": round(seconds, 3), "lanes": width}
                self.sinks[cell.experiment].commit(cell, values, diverged[rows], **facts)
        if self.options.keeper is not None:
            self.options.keeper.drop(self.name(block))
        self.unfinished -= 1

    def kind(self, block: Block) -> tuple:
        """Blocks of one kind run one compiled program."""
        return (self.first(block).structure, self.first(block).block, len(block) > 1)

    def halve(self, block: Block, error: Exception) -> None:
        """After running out of memory: run blocks of this kind in pieces of half as many lanes, or give up."""
        kind, G = self.kind(block), self.first(block).block
        width = self.width.get(kind, G)
        if not out_of_memory(error):
            raise error
        if width % 16:
            raise checks.BadArgument(
                f"Argument `batch` or the model must be small enough for {width} seeds to fit in memory, but they do not: "
                f"{str(error).splitlines()[0][:200]}"
            ) from None
        self.width[kind] = width // 2
        self.options.say(f"Out of memory: going on with {width // 2} instead of {width} seeds at a time.")


def train_by_blocks(training: Training) -> None:
    """Deal the blocks to the local devices (to the cores, on a CPU), each running the same single-device program."""
    slots = workers()[: len(training.todo)]
    free: queue.SimpleQueue[jax.Device] = queue.SimpleQueue()
    for device in slots:
        free.put(device)

    def compile_for(block: Block, device: jax.Device) -> None:
        with training.settings(block, device):
            lanes = training.placer.lanes(block, device)
            while True:
                try:
                    width = training.width.get(training.kind(block))
                    return jax.block_until_ready(lanes.advance(*lanes.begin(), *NO_STEPS, width))
                except jax.errors.JaxRuntimeError as error:
                    training.halve(block, error)

    def on_a_free_device(block: Block) -> None:
        device = free.get()
        try:
            if not training.stopping:
                with training.settings(block, device):
                    _train_block(training, block, training.placer.lanes(block, device))
        except BaseException:
            training.failed.set()  # the other blocks stop at their next call
            raise
        finally:
            free.put(device)

    kinds = {tuple(c.experiment for c in block): block for block in reversed(training.todo)}
    with ThreadPoolExecutor(len(slots)) as pool:
        for device in dict.fromkeys(slots):
            for block in kinds.values():
                if not training.stopping:
                    pool.submit(compile_for, block, device).result()
        training.started = time.perf_counter()
        with training.bar:  # its clock starts here: the rate that it shows is without compilation
            running = [pool.submit(on_a_free_device, block) for block in training.todo]
            try:
                for one in running:
                    one.result()
            except BaseException:
                training.failed.set()
                pool.shutdown(cancel_futures=True)
                raise


def _train_block(training: Training, block: Block, lanes: Lanes) -> None:
    """One block from its checkpoint, or from the start, to the sinks."""
    recorded, size = training.recorded(block), sum(c.size for c in block)
    keys, state = lanes.begin()
    state, records, step, written = training.restore(block, state)
    training.bar.skip(step * size)
    most = max(1, int(recorded[-1]) // 256)
    began = saved = time.monotonic()
    while written < len(recorded):
        if training.stopping:
            return training.save(block, state, records, step, written) if step else None
        gaps, keep = next_call(recorded, step, written, most)
        called = time.monotonic()
        try:
            width = training.width.get(training.kind(block))
            new_state, seen = jax.block_until_ready(lanes.advance(keys, state, step, gaps, keep, width))
        except jax.errors.JaxRuntimeError as error:
            training.halve(block, error)
            continue
        taken, upto = int(gaps.sum()), written + int(keep.sum())
        for name, value in seen.items():
            records[name][:, written:upto] = np.asarray(value)[:, keep]
        state, step, written = new_state, step + taken, upto
        training.bar.advance(taken * size)
        now = time.monotonic()
        most = steps_per_call(most, taken, now - called)
        if now - saved >= training.options.checkpoint_seconds and written < len(recorded):
            training.save(block, state, records, step, written)
            saved = time.monotonic()
    training.finish(block, state, records, time.monotonic() - began)


def steps_per_call(most: int, taken: int, seconds: float) -> int:
    """The most steps of the next call, after one of `taken` steps that were to be `most` took so long."""
    return max(1, min(8 * most, int(taken * SECONDS_PER_CALL / max(seconds, 1e-6)))) if taken else most


def out_of_memory(error: Exception) -> bool:
    """Whether it says that a device has too little memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def _diverged_step(diverged: np.ndarray, records: Mapping[str, np.ndarray], recorded: np.ndarray) -> np.ndarray:
    """(G,) the step at which a seed's weights stopped being finite, or that of its first record that is not; else -1."""
    lost = np.zeros((len(diverged), len(recorded)), bool)
    for value in records.values():
        lost |= ~np.isfinite(value).all(axis=tuple(range(2, value.ndim)))
    seen = np.where(lost.any(1), recorded[lost.argmax(1)], np.iinfo(np.int32).max)
    first = np.minimum(np.where(diverged < 0, np.iinfo(np.int32).max, diverged), seen)
    return np.where(first == np.iinfo(np.int32).max, -1, first).astype(np.int32)


def _crowd(experiment: Experiment) -> int:
    """Prompts that a seed has in flight: those of its batch, few where they share them, many where they take turns."""
    if experiment.traits["in_turn"]:
        return 1024
    side_by_side = experiment.traits["shared"] or experiment.traits["lanes_last"]
    return 16 if side_by_side else getattr(experiment.objective, "batch", 16)


def _with_block(experiment: Experiment, sink: Sink, options: Options) -> Experiment:
    """The experiment with its number of seeds in a block decided: as before, as asked, or by speed and memory."""
    if sink.block is not None:
        return dataclasses.replace(experiment, block=sink.block)
    if experiment.block is not None:
        return experiment
    wanted = default_block(_crowd(experiment))
    device = jax.local_devices()[0]
    room = memory(device)
    if room is None:
        return dataclasses.replace(experiment, block=wanted)
    budget = SHARE_OF_MEMORY * room / workers().count(device)
    block = wanted
    while True:
        planned = dataclasses.replace(experiment, block=block)
        with jax.enable_x64(experiment.x64), jax.default_device(device):
            needed = footprint(Placer([planned]).lanes((cells_of(0, planned)[0],), device))
        if needed <= budget or block == 8:
            break
        block = min(block // 2, fitting_block(block, needed, budget))
    if block < wanted:
        options.say(f"{wanted} seeds at a time would not fit in {room / 1e9:.1f} GB: {block} seeds in a block.")
    return planned
