"""An experiment: stochastic gradient descent on an objective, for many seeds; what is trained, and what is recorded of it."""

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from .. import checks
from ..objectives import Objective
from ..trajectory import NOT_RUN, Trajectory, named_dims
from .descend import Measures, OptimiserFactory, optimiser_factory
from .placing import placed, traceable
from .schedule import record_steps

MOST_SEEDS = 10**8
LARGEST = 1e30  # of a learning rate or scale, in float32
VALUE = re.compile(r"(?!zarr\.json$)[A-Za-z0-9][A-Za-z0-9_.=,-]{0,99}")  # the name of a measure
COORDINATES = ("lr", "init_scale", "seed", "time", "t", "step", "diverged_step")
ADDRESS = r" at 0x[0-9a-f]+"  # in the text of a function: another one in every process


@dataclass(frozen=True, eq=False)
class Experiment:
    """Training many seeds and recording them. `icldyn.ensemble` runs one; `RunFolder.train` runs many and loses nothing.

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
        block: seeds in one program, a multiple of 8; part of a run's identity (another block may round the last digit
            otherwise). The default fills the caches of a CPU core (8 to 64, by the batch) or an accelerator (1024), and is
            lowered where the measured footprint of a seed asks for it.

    Raises:
        icldyn.BadArgument: a sentence that names the argument, what it must be and what it is.
    """

    objective: Objective
    init: Callable[[Array, Array], Any]
    _: KW_ONLY
    seeds: int | Sequence[int]
    lr: float | Sequence[float]
    steps: int | None = None
    t_end: float | None = None
    init_scale: float | Sequence[float] = 1.0
    measures: Measures | None = None
    dims: Mapping[str, tuple[str, ...]] | None = None
    optimiser: Any = optax.sgd
    records: int = 65
    spacing: str = "linear"
    dtype: str = "float32"
    block: int | None = None

    def __post_init__(self):
        checks.gather(
            lambda: _check_callable("objective", "have a `loss(params, key)`", self.objective, "loss"),
            lambda: _check_callable("init", "be a function (key, scale) -> params", self.init),
            lambda: self.seed_ids,
            lambda: self.lrs,
            lambda: self.scales,
            lambda: self.num_steps,
            lambda: _check_measures(self.measures),
            lambda: _check_dims(self.dims),
            lambda: self.factory,
            lambda: checks.integer("records", self.records, 2, 2**20),
            lambda: checks.one_of("spacing", self.spacing, ("linear", "log")),
            lambda: checks.one_of("dtype", self.dtype, ("float32", "float64")),
            lambda: checks.block(self.block),
        )

    @functools.cached_property
    def seed_ids(self) -> np.ndarray:
        """(S,) seed numbers."""
        return seed_numbers(self.seeds)

    @functools.cached_property
    def lrs(self) -> list[float]:
        """Learning rates, at least one."""
        lrs = [checks.real("lr", v, above=0) for v in _listed("lr", self.lr)]
        for lr in lrs:
            if not 1 / LARGEST <= lr <= LARGEST:
                raise checks.refuse("lr", f"be a float32 number, between {1 / LARGEST:g} and {LARGEST:g}", lr)
        return lrs

    @functools.cached_property
    def scales(self) -> list[float]:
        """Scales of the initial weights, at least one."""
        return [checks.real("init_scale", v, least=0, most=LARGEST) for v in _listed("init_scale", self.init_scale)]

    @functools.cached_property
    def num_steps(self) -> list[int]:
        """Optimiser steps, for each learning rate."""
        if (self.steps is None) == (self.t_end is None):
            raise checks.BadArgument("Give either argument `steps` or argument `t_end`, not both.")
        if self.t_end is None:
            if checks.integer("steps", self.steps, 1) >= 2**31 - 1:
                raise checks.refuse("steps", "be below 2**31 - 1", self.steps)
            return [int(self.steps) for _ in self.lrs]
        t_end, wanted = checks.real("t_end", self.t_end, above=0), []
        for lr in self.lrs:
            if not 0.5 < t_end / lr < 2**31 - 2:
                raise checks.refuse("t_end", f"be 1 to 2**31 - 2 steps of `lr`, {lr:g}", t_end)
            wanted.append(round(t_end / lr))
        return wanted

    @functools.cached_property
    def recorded(self) -> list[np.ndarray]:
        """The step numbers recorded (T,), for each learning rate."""
        return [record_steps(n, self.records, self.spacing) for n in self.num_steps]

    @functools.cached_property
    def factory(self) -> OptimiserFactory:
        """The optimiser as a hashable function of the learning rate."""
        return optimiser_factory(self.optimiser)

    @property
    def x64(self) -> bool:
        """Whether it runs in float64."""
        return self.dtype == "float64"

    @property
    def traits(self) -> dict[str, bool]:
        """What the objective says of its program: the fields of `Program` of these names."""
        return {
            name: bool(getattr(self.objective, name, False)) for name in ("shared", "lanes_last", "narrow", "in_turn")
        }

    @property
    def seed_steps(self) -> int:
        """Steps of all seeds together."""
        return sum(self.num_steps) * len(self.scales) * len(self.seed_ids)

    @functools.cached_property
    def trees(self) -> dict[str, Any]:
        """What its programs take as arguments: "start" (the init) and "advance" (objective and measures)."""
        measures = {name: traceable(f) for name, f in (self.measures or {}).items()}
        return {"start": traceable(self.init), "advance": (self.objective, measures)}

    @functools.cached_property
    def structure(self) -> tuple:
        """What experiments must share to run in one program."""
        leaves, treedef = jax.tree.flatten(self.trees)
        shapes = tuple((np.shape(a), np.result_type(a) if np.ndim(a) else type(a).__name__) for a in leaves)
        return treedef, shapes, self.factory, self.dtype

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides its numbers, the same in every process."""
        settings = (self.lrs, self.scales, [r.tolist() for r in self.recorded], self.dtype, self.factory)
        return _digest(self.trees, re.sub(ADDRESS, "", repr(settings)).encode() + self.seed_ids.tobytes())

    @functools.cached_property
    def kernel(self) -> str:
        """SHA-256 of what `advance` works with: experiments with the same share a program and all its arguments."""
        return _digest(self.trees["advance"], re.sub(ADDRESS, "", repr((self.factory, self.dtype))).encode())

    def layout(self, seen: Mapping[str, jax.ShapeDtypeStruct]) -> Trajectory:
        """The trajectory to come, nothing in it yet: `seen` are the shapes of one seed's measures."""
        swept = [a for a, asked in (("lr", self.lr), ("init_scale", self.init_scale)) if _swept(asked)]
        sizes = {"lr": len(self.lrs), "init_scale": len(self.scales), "seed": len(self.seed_ids)}
        lead = (*swept, "seed")
        clock = ("lr", "time") if "lr" in swept else ("time",)
        steps = np.stack(self.recorded)
        t = steps * np.asarray(self.lrs)[:, None]
        coords = {"seed": (("seed",), self.seed_ids)}
        coords |= {"step": (clock, steps if "lr" in swept else steps[0]), "t": (clock, t if "lr" in swept else t[0])}
        coords |= {a: ((a,), np.asarray(getattr(self, f"{a.removeprefix('init_')}s"))) for a in swept}
        shape = tuple(sizes[a] for a in lead)
        coords["diverged_step"] = (lead, np.broadcast_to(np.int32(NOT_RUN), shape))
        nothing = {
            name: np.broadcast_to(np.asarray(np.nan, value.dtype), (*shape, self.records, *value.shape))
            for name, value in seen.items()
        }
        facts = {"lr": self.lrs, "steps": self.num_steps}
        attrs = {name: held if "lr" in swept else held[0] for name, held in facts.items()}
        attrs |= {"block": self.block, "dtype": self.dtype}
        return Trajectory(nothing, named_dims(nothing, (*lead, "time"), self.dims, len(lead) + 1), coords, attrs)

    def index(self, point: tuple[int, int]) -> tuple[int, ...]:
        """Where a (learning rate, scale) by number lies along the swept axes of the layout."""
        return tuple(k for k, asked in zip(point, (self.lr, self.init_scale), strict=True) if _swept(asked))


def _check_callable(name: str, must: str, value: Any, method: str = "__call__") -> None:
    if not callable(getattr(value, method, None)):
        raise checks.refuse(name, must, value)


def _check_measures(measures: Any) -> None:
    for name, measure in _mapping("measures", measures).items():
        if not isinstance(name, str) or not VALUE.fullmatch(name) or name in COORDINATES:
            must = f"be named by letters, digits, '_', '.', '=', ',' and '-', and none of {', '.join(COORDINATES)}"
            raise checks.refuse("measures", must, name)
        _check_callable(f"measures[{name!r}]", "be a function of the params", measure)


def _check_dims(dims: Any) -> None:
    for name, axes in _mapping("dims", dims).items():
        if not isinstance(axes, tuple | list) or not all(isinstance(a, str) and a not in COORDINATES for a in axes):
            must = f"hold names of axes for every measure, and none of {', '.join(COORDINATES)}"
            raise checks.refuse("dims", must, {name: axes})


def _mapping(name: str, given: Any) -> Mapping[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise checks.refuse(name, "be a mapping from names", given)
    return given or {}


def seed_numbers(seeds: int | Sequence[int]) -> np.ndarray:
    """(S,) seed numbers, of a count or a sequence."""
    several = np.ndim(seeds) > 0 if isinstance(seeds, np.ndarray) else isinstance(seeds, Sequence)
    if not several or isinstance(seeds, str | bytes):
        return np.arange(checks.integer("seeds", seeds, 1, MOST_SEEDS), dtype=np.int64)
    ids = [checks.integer("seeds", s, 0, 2**32 - 1) for s in seeds]
    if not ids:
        raise checks.BadArgument("Argument `seeds` must name at least one seed, but is empty.")
    return np.asarray(ids)


def _digest(tree: Any, more: bytes) -> str:
    with jax.enable_x64(True):
        leaves, treedef = jax.tree.flatten(placed(tree, "float64"))
    digest = hashlib.sha256(more)
    for text in (str(treedef), *(leaf if isinstance(leaf, jax.Array) else repr(leaf) for leaf in leaves)):
        held = re.sub(ADDRESS, "", text).encode() if isinstance(text, str) else np.asarray(text).tobytes()
        digest.update(held)
    return digest.hexdigest()


def _swept(asked: Any) -> bool:
    return np.ndim(np.asarray(asked, object)) > 0


def _listed(name: str, asked: Any) -> list[Any]:
    values = list(np.atleast_1d(np.asarray(asked, object)))
    if not values:
        raise checks.BadArgument(f"Argument `{name}` must hold at least one value, but is empty.")
    return values
