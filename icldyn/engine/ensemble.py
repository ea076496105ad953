"""Many seeds of one experiment: vmap, one jit, blocks.

Seeds run in blocks of a fixed size, padded, and every block runs the same compiled program whatever its company, so a seed's
trajectory has the same bits alone or among thousands. Blocks are dealt to the devices (to the cores, on a CPU), and time is
cut into calls from the host, between which progress is shown; nothing is called from inside the program.
"""

import functools
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from .. import checks
from ..objectives import Objective
from ..trajectory import Trajectory
from .descend import Measures, OptimiserFactory, descend, optimiser_factory
from .placing import placed, traceable

RECORDS_PER_CALL = 8
CALLS_PER_RUN = 24  # at least: calls of a tenth of the run or less, so that progress moves and a stop is prompt


def ensemble(
    objective: Objective,
    init: Callable[[Array, Array], Any],
    *,
    seeds: int | Sequence[int],
    lr: float | Sequence[float],
    steps: int | None = None,
    t_end: float | None = None,
    init_scale: float | Sequence[float] = 1.0,
    measures: Measures | None = None,
    dims: dict[str, tuple[str, ...]] | None = None,
    optimiser: Any = optax.sgd,
    records: int = 65,
    spacing: str = "linear",
    dtype: str = "float32",
    block: int | None = None,
    progress: str | bool = False,
) -> Trajectory:
    """Train many seeds and record them.

    Args:
        objective: what a step descends; any pytree with `loss(params, key)`.
        init: (key, scale) -> params, for instance from `icldyn.models.linear_attention`.
        seeds: how many, 0 ... S-1, or which.
        lr: learning rate, traced: a sequence sweeps it along a further axis ("lr") without compiling anew.
        steps: number of optimiser steps; or give `t_end`, and every learning rate runs round(t_end / lr) steps.
        t_end: the time lr x steps to reach, instead of `steps`.
        init_scale: scale of the initial weights, traced and swept ("init_scale") like `lr`.
        measures: name -> function of the params, recorded at every record time; "loss" is recorded in any case (the batch
            loss of the next step, unless the measures hold a "loss"). A `jax.tree_util.Partial` around arrays, or a method
            such as `population(task, model).loss`, does not compile anew for new arrays.
        dims: names of the measures' own axes.
        optimiser: function of the learning rate, such as `optax.adam` or `functools.partial(optax.sgd, momentum=0.9)`.
        records: number of record times, the first at step 0 and the last at the end.
        spacing: "linear" or "log" record times.
        dtype: "float32" or "float64".
        block: seeds in one program, a multiple of 8; part of a run's identity. The default fills the caches of a CPU core
            (8 to 64, by the batch) or an accelerator (1024).
        progress: True, or a title, to show a progress bar with seed-steps per second.

    Returns:
        A `Trajectory` with dimensions ([lr], [init_scale], seed, time, ...). A seed that diverges is non-finite in its own
        row and counted in `diverged`; the others are untouched. `attrs` holds seconds of compilation and of running apart.

    Raises:
        icldyn.BadArgument: a sentence that names the argument, what it must be and what it is.
    """
    seed_ids = _seeds(seeds)
    lrs = [checks.real("lr", v, above=0) for v in np.atleast_1d(np.asarray(lr, object))]
    scales = [checks.real("init_scale", v, least=0) for v in np.atleast_1d(np.asarray(init_scale, object))]
    records = checks.integer("records", records, 2)
    checks.one_of("spacing", spacing, ("linear", "log"))
    checks.one_of("dtype", dtype, ("float32", "float64"))
    if (steps is None) == (t_end is None):
        raise checks.BadArgument("Give either argument `steps` or argument `t_end`, not both.")
    if t_end is not None:
        t_end = checks.real("t_end", t_end, above=0)
    steps_of = [checks.integer("steps", round(t_end / v) if steps is None else steps, 1) for v in lrs]
    block = default_block(getattr(objective, "batch", 16)) if block is None else checks.integer("block", block, 8)
    if block % 8:
        raise checks.refuse("block", "be a multiple of 8", block)
    factory = optimiser_factory(optimiser)
    schedules = [_record_steps(n, records, spacing) for n in steps_of]
    chosen = dict(measures or {})

    S, L, A = len(seed_ids), len(lrs), len(scales)
    padded = np.concatenate([seed_ids, np.full(-S % block, seed_ids[-1])]).reshape(-1, block)
    jobs = list(itertools.product(range(L), range(A), range(len(padded))))
    out: dict[str, np.ndarray] = {}
    bar = _Progress(progress, sum(steps_of) * A * S)
    started = time.perf_counter()
    x64 = dtype == "float64"

    free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()

    def begin(job: tuple[int, int, int], slot: _Slot):
        i, j, b = job
        rate, scale = np.asarray(lrs[i], dtype), np.asarray(scales[j], dtype)
        keys, state = _start(slot.init, factory, rate, scale, np.asarray(padded[b], np.uint32))
        return functools.partial(_advance, slot.objective, slot.measures, factory, rate, keys), state

    def compile_for(slot: _Slot) -> None:
        with jax.enable_x64(x64), jax.default_device(slot.device):
            advance, state = begin(jobs[0], slot)
            none = np.zeros(RECORDS_PER_CALL, np.int32), np.zeros(RECORDS_PER_CALL, bool)
            _, seen = advance(state, np.int32(0), *none)  # takes no step
        for name, value in seen.items():
            out[name] = np.full((L, A, S, records, *value.shape[2:]), np.nan, value.dtype)

    def run(job: tuple[int, int, int]) -> None:
        i, j, b = job
        rows = slice(b * block, min((b + 1) * block, S))
        slot = free.get()
        try:
            with jax.enable_x64(x64), jax.default_device(slot.device):
                advance, state = begin(job, slot)
                step = written = 0
                for gaps, keep in _calls(schedules[i]):
                    if bar.stopped.is_set():
                        return
                    state, seen = advance(state, np.int32(step), gaps, keep)
                    upto = written + int(keep.sum())
                    for name, value in seen.items():
                        out[name][i, j, rows, written:upto] = np.asarray(value)[: rows.stop - rows.start, keep]
                    step, written = step + int(gaps.sum()), upto
                    bar.advance(int(gaps.sum()) * (rows.stop - rows.start))
        except BaseException:
            bar.stopped.set()  # the other blocks stop at their next call
            raise
        finally:
            free.put(slot)

    with jax.enable_x64(x64):
        slots = [_Slot(d, objective, init, chosen, dtype) for d in _workers()]
    with ThreadPoolExecutor(len(slots)) as pool, bar:
        for slot in {s.device: s for s in slots}.values():
            pool.submit(compile_for, slot).result()
        for slot in slots:
            free.put(slot)
        compiled = time.perf_counter()
        try:
            for _ in pool.map(run, jobs):
                pass
        except BaseException:
            bar.stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    finished = time.perf_counter()

    swept = [axis for axis, asked in (("lr", lr), ("init_scale", init_scale)) if np.ndim(np.asarray(asked, object)) > 0]
    drop = tuple(k for k, axis in enumerate(("lr", "init_scale")) if axis not in swept)
    lead = (*swept, "seed", "time")
    same_steps = len(set(steps_of)) == 1 and "lr" not in swept
    step_grid = np.stack(schedules)
    time_grid = step_grid * np.asarray(lrs)[:, None]
    coords: dict[str, tuple[tuple[str, ...], np.ndarray]] = {"seed": (("seed",), seed_ids)}
    coords["step"] = (("time",), step_grid[0]) if same_steps else (("lr", "time"), step_grid)
    coords["t"] = (("time",), time_grid[0]) if same_steps else (("lr", "time"), time_grid)
    for axis, held in (("lr", lrs), ("init_scale", scales)):
        if axis in swept:
            coords[axis] = ((axis,), np.asarray(held))
    own = dims or {}
    return Trajectory(
        values={name: value.squeeze(drop) for name, value in out.items()},
        dims={
            name: lead + own.get(name, tuple(f"{name}_{k}" for k in range(value.ndim - 4)))
            for name, value in out.items()
        },
        coords=coords,
        attrs={
            "lr": lrs if "lr" in swept else lrs[0],
            "steps": steps_of if "lr" in swept else steps_of[0],
            "block": block,
            "dtype": dtype,
            "compile_seconds": round(compiled - started, 3),
            "run_seconds": round(finished - compiled, 3),
            "seed_steps_per_second": round(sum(steps_of) * A * S / (finished - compiled), 1),
        },
    )


def initial_params(
    init: Callable[[Array, Array], Any], *, seeds: int | Sequence[int], init_scale: float = 1.0, dtype: str = "float32"
) -> Any:
    """The weights that `ensemble` starts these seeds from, stacked over seeds: where `flow` must start to meet them."""
    seed_ids, checked = _seeds(seeds), checks.one_of("dtype", dtype, ("float32", "float64"))
    scale = np.asarray(checks.real("init_scale", init_scale, least=0), checked)
    with jax.enable_x64(dtype == "float64"):
        start = placed(traceable(init), dtype)
        _, (params, _) = _start(start, optax.sgd, scale, scale, np.asarray(seed_ids, np.uint32))
        return jax.device_get(params)


@functools.partial(jax.jit, static_argnums=1)
def _start(init, optimiser: OptimiserFactory, lr: Array, scale: Array, seeds: Array):
    """Keys of the data and the initial state of a block of seeds."""

    def one(seed):
        key_init, key_data = jax.random.split(jax.random.key(seed, impl="threefry2x32"))
        params = jax.tree.map(lambda w: jnp.asarray(w, lr.dtype), init(key_init, scale))
        with jax.numpy_dtype_promotion("standard"):
            return key_data, (params, optimiser(lr).init(params))

    return jax.vmap(one)(seeds)


@functools.partial(jax.jit, static_argnums=2)
def _advance(
    objective, measures, optimiser: OptimiserFactory, lr: Array, keys, state, step: Array, gaps: Array, keep: Array
):
    """`descend` for a block of seeds."""

    def one(key, state):
        return descend(objective, measures, optimiser, lr, key, state, step, gaps, keep)

    return jax.vmap(one)(keys, state)


class _Slot:
    """A device (or a core of the CPU) with its own copy of what all seeds share, in the run's dtype."""

    def __init__(self, device: jax.Device, objective: Objective, init, measures: Measures, dtype: str):
        self.device = device
        self.objective = placed(objective, dtype, device)
        self.init = placed(traceable(init), dtype, device)
        self.measures = placed({name: traceable(f) for name, f in measures.items()}, dtype, device)


def _workers() -> list[jax.Device]:
    """One entry for every accelerator, or one for every core of the CPU."""
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        return devices
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [d for _, d in zip(range(max(cores, len(devices))), itertools.cycle(devices), strict=False)]


def default_block(batch: int) -> int:
    """Seeds in one program. An accelerator wants many; on a CPU core 8 to 64, at about 1024 prompts in flight.

    Measured in benchmarks/README.md. 64 seeds of batch 32 are faster still, but take 128 seeds to occupy two cores.
    """
    if jax.default_backend() != "cpu":
        return 1024
    fitting = 1024 // batch
    return max(8, min(64, 1 << max(fitting, 1).bit_length() - 1))


def _seeds(seeds: int | Sequence[int]) -> np.ndarray:
    if np.ndim(seeds) == 0:
        return np.arange(checks.integer("seeds", seeds, 1))
    ids = np.asarray([checks.integer("seeds", s, 0) for s in seeds])  # type: ignore[union-attr]
    if ids.size == 0:
        raise checks.BadArgument("Argument `seeds` must name at least one seed, but is empty.")
    if ids.max() >= 2**32:
        raise checks.refuse("seeds", "be below 2**32", int(ids.max()))
    return ids


def _record_steps(steps: int, records: int, spacing: str) -> np.ndarray:
    """(records,) step numbers from 0 to `steps`; where fewer steps than records exist, some stand twice."""
    if spacing == "log":
        grid = np.concatenate([[0.0], np.geomspace(1, steps, records - 1)]) if steps > 1 else np.linspace(0, 1, records)
    else:
        grid = np.linspace(0, steps, records)
    return np.rint(grid).astype(np.int64)


def _calls(record_steps: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut a schedule into calls of RECORDS_PER_CALL gaps, long gaps split; `keep` says which ends are record times."""
    longest = max(1, -(-int(record_steps[-1]) // (RECORDS_PER_CALL * CALLS_PER_RUN)))
    gaps: list[int] = []
    keep: list[bool] = []
    for gap in np.diff(record_steps, prepend=0):
        parts = max(1, -(-int(gap) // longest))
        cuts = [int(gap) * k // parts for k in range(parts + 1)]
        gaps += [b - a for a, b in itertools.pairwise(cuts)]
        keep += [False] * (parts - 1) + [True]
    pad = -len(gaps) % RECORDS_PER_CALL
    all_gaps = np.array(gaps + [0] * pad, np.int32).reshape(-1, RECORDS_PER_CALL)
    all_keep = np.array(keep + [False] * pad).reshape(-1, RECORDS_PER_CALL)
    return zip(all_gaps, all_keep, strict=True)


class _Progress:
    """A rich progress bar fed by the host between calls; plain lines when standard error is not a terminal."""

    def __init__(self, title: str | bool, total: int):
        self.total, self.done, self.stopped = total, 0, threading.Event()
        self.title = title if isinstance(title, str) else "training"
        self.shown = bool(title)
        self.lock = threading.Lock()

    def __enter__(self) -> "_Progress":
        self.began = self.told = time.perf_counter()
        if self.shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            console = Console(stderr=True)
            self.plain = None if console.is_terminal else console
            self.rich = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f}%  {task.fields[rate]}"),
                TimeRemainingColumn(),
                console=console,
                disable=not console.is_terminal,
            )
            self.rich.start()
            self.task = self.rich.add_task(self.title, total=self.total, rate="")
        return self

    def advance(self, seed_steps: int) -> None:
        with self.lock:
            self.done += seed_steps
            if self.shown:
                now = time.perf_counter()
                rate = f"{self.done / max(now - self.began, 1e-9):,.0f} seed-steps/s"
                self.rich.update(self.task, completed=self.done, rate=rate)
                if self.plain is not None and (now - self.told > 15 or self.done == self.total):
                    self.told = now
                    self.plain.print(f"{self.title}: {self.done / self.total:4.0%}, {rate}", highlight=False)

    def __exit__(self, *_: Any) -> None:
        if self.shown:
            self.rich.stop()
