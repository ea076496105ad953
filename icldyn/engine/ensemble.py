"""Many seeds of one experiment: vmap, one jit, blocks.

Seeds run in blocks of a fixed size, padded, and every block runs the same compiled program whatever its company, so a seed's
trajectory has the same bits alone or among thousands. Blocks are dealt to the devices (to the cores, on a CPU), and time is
cut into calls from the host, between which progress is shown; nothing is called from inside the program.
"""

import functools
import itertools
import os
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from .. import checks
from ..objectives import Objective
from ..trajectory import Trajectory, named_dims
from .descend import Measures, OptimiserFactory, descend, optimiser_factory
from .placing import placed, traceable
from .progress import Progress
from .schedule import RECORDS_PER_CALL, calls, record_steps


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
    dims: Mapping[str, tuple[str, ...]] | None = None,
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
    plan = _Plan(seed_ids, lrs, scales, steps_of, [record_steps(n, records, spacing) for n in steps_of], block, dtype)
    bar = Progress(progress, plan.seed_steps)
    began = time.perf_counter()
    with jax.enable_x64(plan.x64):
        slots = [_Slot(d, objective, init, dict(measures or {}), dtype) for d in _workers()]
    with ThreadPoolExecutor(len(slots)) as pool:
        for slot in {s.device: s for s in slots}.values():
            out = pool.submit(_compiled, plan, slot, factory).result()
        compiled = time.perf_counter()
        free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for slot in slots:
            free.put(slot)
        try:
            with bar:  # its clock starts here: the rate that it shows is without compilation
                for _ in pool.map(lambda job: _run(plan, job, free, factory, out, bar), plan.jobs):
                    pass
        except BaseException:
            bar.stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    seconds = time.perf_counter() - compiled
    swept = [axis for axis, asked in (("lr", lr), ("init_scale", init_scale)) if np.ndim(np.asarray(asked, object)) > 0]
    speed = {
        "compile_seconds": round(compiled - began, 3),
        "run_seconds": round(seconds, 3),
        "seed_steps_per_second": round(plan.seed_steps / seconds, 1),
    }
    return _trajectory(plan, swept, out, dims, speed)


@dataclass(frozen=True)
class _Plan:
    """What is run: every block of seeds at every learning rate and initial scale is a job."""

    seeds: np.ndarray  # (S,)
    lrs: list[float]
    scales: list[float]
    steps: list[int]  # one for each learning rate
    recorded: list[np.ndarray]  # the step numbers recorded, likewise
    block: int
    dtype: str

    @property
    def x64(self) -> bool:
        return self.dtype == "float64"

    @functools.cached_property
    def padded(self) -> np.ndarray:
        """Seeds in full blocks, (blocks, block)."""
        filled = np.concatenate([self.seeds, np.full(-len(self.seeds) % self.block, self.seeds[-1])])
        return filled.reshape(-1, self.block).astype(np.uint32)

    @property
    def jobs(self) -> list[tuple[int, int, int]]:
        """(learning rate, initial scale, block) by number."""
        return list(itertools.product(range(len(self.lrs)), range(len(self.scales)), range(len(self.padded))))

    @property
    def seed_steps(self) -> int:
        return sum(self.steps) * len(self.scales) * len(self.seeds)


def _begin(plan: _Plan, job: tuple[int, int, int], slot: "_Slot", factory: OptimiserFactory):
    """The program of a job, ready to advance, and its initial state."""
    i, j, b = job
    rate, scale = np.asarray(plan.lrs[i], plan.dtype), np.asarray(plan.scales[j], plan.dtype)
    keys, state = _start(slot.init, factory, rate, scale, plan.padded[b])
    return functools.partial(_advance, slot.objective, slot.measures, factory, rate, keys), state


def _compiled(plan: _Plan, slot: "_Slot", factory: OptimiserFactory) -> dict[str, np.ndarray]:
    """Compile for a device, without a step, and return arrays that await the results, NaN: (L, A, S, T, ...)."""
    with jax.enable_x64(plan.x64), jax.default_device(slot.device):
        advance, state = _begin(plan, plan.jobs[0], slot, factory)
        _, seen = advance(state, np.int32(0), np.zeros(RECORDS_PER_CALL, np.int32), np.zeros(RECORDS_PER_CALL, bool))
    lead = (len(plan.lrs), len(plan.scales), len(plan.seeds), len(plan.recorded[0]))
    return {name: np.full((*lead, *value.shape[2:]), np.nan, value.dtype) for name, value in seen.items()}


def _run(
    plan: _Plan, job: tuple[int, int, int], free: queue.SimpleQueue, factory, out: dict[str, np.ndarray], bar: Progress
):
    """Run a job on the next free device or core, and write what it records into `out`."""
    i, j, b = job
    rows = slice(b * plan.block, min((b + 1) * plan.block, len(plan.seeds)))
    slot = free.get()
    try:
        with jax.enable_x64(plan.x64), jax.default_device(slot.device):
            advance, state = _begin(plan, job, slot, factory)
            step = written = 0
            for gaps, keep in calls(plan.recorded[i]):
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


def _trajectory(
    plan: _Plan,
    swept: list[str],
    out: dict[str, np.ndarray],
    own: Mapping[str, tuple[str, ...]] | None,
    speed: dict[str, float],
) -> Trajectory:
    """The results with their dimensions; axes that were not swept are dropped."""
    drop = tuple(k for k, axis in enumerate(("lr", "init_scale")) if axis not in swept)
    lead = (*swept, "seed", "time")
    clock = ("lr", "time") if "lr" in swept else ("time",)
    steps = np.stack(plan.recorded)
    t = steps * np.asarray(plan.lrs)[:, None]
    coords = {"seed": (("seed",), plan.seeds)}
    coords |= {"step": (clock, steps if "lr" in swept else steps[0]), "t": (clock, t if "lr" in swept else t[0])}
    coords |= {
        axis: ((axis,), np.asarray(held))
        for axis, held in (("lr", plan.lrs), ("init_scale", plan.scales))
        if axis in swept
    }
    facts = {"lr": plan.lrs, "steps": plan.steps}
    return Trajectory(
        values={name: value.squeeze(drop) for name, value in out.items()},
        dims=named_dims(out, lead, own, 4),
        coords=coords,
        attrs={name: held if "lr" in swept else held[0] for name, held in facts.items()}
        | {"block": plan.block, "dtype": plan.dtype}
        | speed,
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


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers() -> list[jax.Device]:
    """One entry for every accelerator, or one for every core of the CPU."""
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        return devices
    return [d for _, d in zip(range(max(cores(), len(devices))), itertools.cycle(devices), strict=False)]


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
