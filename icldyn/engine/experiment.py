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
        if checks.integer("records", self.records, 2) and (self.steps is None) == (self.t_end is None):
            raise checks.BadArgument("Give either argument `steps` or argument `t_end`, not both.")
        checks.one_of("spacing", self.spacing, ("linear", "log"))
        checks.one_of("dtype", self.dtype, ("float32", "float64"))
        if self.t_end is not None:
            checks.real("t_end", self.t_end, above=0)
        if self.block is not None and checks.integer("block", self.block, 8) % 8:
            raise checks.refuse("block", "be a multiple of 8", self.block)
        _ = self.seed_ids, self.scales, self.num_steps, self.factory  # refuse what they refuse

    @functools.cached_property
    def seed_ids(self) -> np.ndarray:
        """(S,) seed numbers."""
        return seed_numbers(self.seeds)

    @functools.cached_property
    def lrs(self) -> list[float]:
        """Learning rates, at least one."""
        return [checks.real("lr", v, above=0) for v in _listed("lr", self.lr)]

    @functools.cached_property
    def scales(self) -> list[float]:
        """Scales of the initial weights, at least one."""
        return [checks.real("init_scale", v, least=0) for v in _listed("init_scale", self.init_scale)]

    @functools.cached_property
    def num_steps(self) -> list[int]:
        """Optimiser steps, for each learning rate."""
        wanted = [self.steps if self.t_end is None else round(self.t_end / v) for v in self.lrs]
        for steps in wanted:
            if checks.integer("steps", steps, 1) >= 2**31 - 1:
                raise checks.refuse("steps", "be below 2**31 - 1", steps)
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


def seed_numbers(seeds: int | Sequence[int]) -> np.ndarray:
    """(S,) seed numbers, of a count or a sequence."""
    if np.ndim(seeds) == 0:
        if checks.integer("seeds", seeds, 1) > 2**32:
            raise checks.refuse("seeds", "be at most 2**32", seeds)
        return np.arange(seeds, dtype=np.int64)
    ids = np.asarray([checks.integer("seeds", s, 0) for s in seeds])  # type: ignore[union-attr]
    if ids.size == 0:
        raise checks.BadArgument("Argument `seeds` must name at least one seed, but is empty.")
    if ids.max() >= 2**32:
        raise checks.refuse("seeds", "be below 2**32", int(ids.max()))
    return ids


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
