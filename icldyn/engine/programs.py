"""The two compiled programs of a block, `start` and `advance`, over its lanes of seeds, and their arguments."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_batching import sequential_vmap

from . import descend
from .blocks import Block
from .descend import OptimiserFactory, finite
from .experiment import Experiment
from .placing import placed
from .schedule import RECORDS_PER_CALL


@dataclass(frozen=True)
class Program:
    """What is compiled: a tree of arguments, whose leaves all lanes share or, where `per_lane`, have one each.

    With `shared` all lanes see one stream of data, that of seed 0. With `lanes_last` weights have their lanes in the last axis
    while they are trained, where the vector lanes are, and the objective's `slopes` are the gradients of all of them. With
    `narrow` a CPU's vectors are left to the compiler; with `in_turn` it takes the gradients of one lane after another, each of
    which has the caches of a core to itself.
    """

    treedef: Any
    per_lane: tuple[bool, ...]
    optimiser: OptimiserFactory
    shared: bool = False
    lanes_last: bool = False
    narrow: bool = False
    in_turn: bool = False

    @property
    def axes(self) -> tuple[int | None, ...]:
        """Where the lanes are in every leaf, for `vmap`."""
        return tuple(0 if own else None for own in self.per_lane)


def starting(program: Program, leaves, lr: Array, scale: Array, seeds: Array):
    """Data of the keys (G, 2) and the initial state of G lanes; `lr`, `scale`, `seeds` (G,)."""

    def one(leaves, lr, scale, seed):
        init = jax.tree.unflatten(program.treedef, leaves)
        key_init, key_data = jax.random.split(jax.random.key(seed, impl="threefry2x32"))
        params = jax.tree.map(lambda w: jnp.asarray(w, lr.dtype), init(key_init, scale))
        diverged = jnp.where(finite(params), -1, 0).astype(jnp.int32)
        if program.shared:
            key_data = jax.random.split(jax.random.key(0, impl="threefry2x32"))[1]
        with jax.numpy_dtype_promotion("standard"):
            return jax.random.key_data(key_data), (params, program.optimiser(lr).init(params), diverged)

    return jax.vmap(one, (program.axes, 0, 0, 0))(leaves, lr, scale, seeds)


def advancing(program: Program, leaves, lr: Array, keys: Array, state, step: Array, gaps: Array, keep: Array):
    """Steps and records of G lanes: loops over time outside, lanes inside, in the first axis or in the last."""
    axis = -1 if program.lanes_last else 0
    keys, own_key = (keys[0], None) if program.shared else (keys, 0)  # a batch that no lane owns is drawn once for all

    def of_key(key):
        return jax.random.wrap_key_data(key, impl="threefry2x32")

    def lanes(function):
        def one(leaves, lr, key, i, state):
            return function(*jax.tree.unflatten(program.treedef, leaves), of_key(key), i, state)

        if program.in_turn and jax.default_backend() == "cpu":
            one = sequential_vmap(_unless_empty(one))
        mapped = jax.vmap(one, (program.axes, 0, own_key, None, axis), axis)
        return lambda i, state: mapped(leaves, lr, keys, i, state)

    def gradients(i, state):
        if program.lanes_last and not any(program.per_lane):
            objective, _ = jax.tree.unflatten(program.treedef, leaves)
            return descend.slopes(objective, state[0], of_key(keys) if program.shared else None, i)
        return lanes(lambda objective, _, key, i, state: descend.slope(objective, state[0], key, i))(i, state)

    def one_step(lr, grads, state):
        params, opt_state, diverged = state
        return *descend.descend(program.optimiser, lr, grads, params, opt_state), diverged

    def put_back(diverged, old, new):
        return jax.tree.map(lambda a, b: jnp.where(diverged < 0, b, a), old, new)

    def settle(i, old, new):
        lost = (old[2] < 0) & ~jax.vmap(finite, axis)(new[0])
        diverged = jnp.where(lost, i + 1, old[2])
        return (*jax.vmap(put_back, (0, axis, axis), axis)(diverged, old[:2], new[:2]), diverged), jnp.any(lost)

    seeds = descend.SideBySide(
        step=lambda i, state: jax.vmap(one_step, (0, axis, axis), axis)(lr, gradients(i, state), state),
        look=lanes(lambda objective, measures, key, i, state: descend.read(objective, measures, key, i, state)),
        calm=lambda state: jnp.all(jax.vmap(finite, axis)(state[0]) & (state[2] < 0)),
        settle=settle,
    )
    state = jax.tree.map(lambda a: jnp.moveaxis(a, 0, axis), state)
    state, seen = descend.in_time(seeds, state, step, gaps, keep, unroll=2 if program.lanes_last else 1)
    state = jax.tree.map(lambda a: jnp.moveaxis(a, axis, 0), state)
    return state, jax.tree.map(lambda a: jnp.moveaxis(a, axis if program.lanes_last else 1, 0), seen)


def _unless_empty(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of the leaves, rate, ... of a lane; of one after the last seed, whose rate is 0, nothing but zeros."""

    def nothing(*args):
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(function, *args))

    return lambda leaves, lr, *args: jax.lax.cond(lr > 0, function, nothing, leaves, lr, *args)


def compiler_options(narrow: bool = False) -> dict[str, int]:
    """On a CPU vectors of 512 bits, where it has them, unless `narrow`: LLVM takes half of that for fear of a lower clock."""
    return {} if narrow or jax.default_backend() != "cpu" else {"xla_cpu_prefer_vector_width": 512}


def advance(narrow: bool = False) -> Callable[..., Any]:
    """`advancing`, compiled with such vectors; made on the first call, when the device is known."""
    return _compiled(narrow)


@functools.cache
def _compiled(narrow: bool) -> Callable[..., Any]:
    return jax.jit(advancing, static_argnums=0, compiler_options=compiler_options(narrow))


start = functools.partial(jax.jit, static_argnums=0)(starting)
NO_STEPS = (np.int32(0), np.zeros(RECORDS_PER_CALL, np.int32), np.zeros(RECORDS_PER_CALL, bool))


@dataclass(frozen=True)
class Lanes:
    """The arguments of a block on a device: G lanes. Those after its last seed repeat it, at the rate 0 if lanes take turns."""

    programs: Mapping[str, Program]  # "start" and "advance"
    leaves: Mapping[str, tuple]
    lr: np.ndarray  # (G,)
    scale: np.ndarray  # (G,)
    seeds: np.ndarray  # (G,)

    def begin(self) -> tuple[Array, Any]:
        """Key data and initial state."""
        return start(self.programs["start"], self.leaves["start"], self.lr, self.scale, self.seeds)

    def advance(self, keys, state, step: int, gaps: np.ndarray, keep: np.ndarray, width: int | None = None):
        """One call of `advance`, in pieces of `width` lanes."""
        program, leaves, G = self.programs["advance"], self.leaves["advance"], len(self.seeds)
        run = advance(program.narrow)
        if width in (None, G):
            return run(program, leaves, self.lr, keys, state, np.int32(step), gaps, keep)
        pieces = []
        for first in range(0, G, width):
            cut = slice(first, first + width)
            own = tuple(a[cut] if mine else a for a, mine in zip(leaves, program.per_lane, strict=True))
            part = jax.tree.map(lambda a, cut=cut: a[cut], state)
            done = run(program, own, self.lr[cut], keys[cut], part, np.int32(step), gaps, keep)
            pieces.append(jax.device_get(done))  # to the host, so that the device holds one piece at a time
        return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)


class Placer:
    """Puts what experiments carry on devices, once."""

    def __init__(self, experiments: Sequence[Experiment]):
        self.experiments = experiments
        self.held: dict[tuple, tuple[list, Any]] = {}

    def lanes(self, block: Block, device: jax.Device | None) -> Lanes:
        """The arguments of a block, its shared leaves on `device` (on the host for None)."""
        first = self.experiments[block[0].experiment]
        sizes = [cell.size for cell in block]
        taken = sum(sizes)
        sizes[-1] += first.block - taken
        seeds = [self.experiments[c.experiment].seed_ids[c.rows] for c in block]
        seeds[-1] = np.concatenate([seeds[-1], np.full(sizes[-1] - seeds[-1].size, seeds[-1][-1])])
        programs, leaves = {}, {}
        for part in ("start", "advance"):
            kept = [self._flat(cell.experiment, part, device) for cell in block]
            per_lane, leaves[part] = _side_by_side([own for own, _ in kept], sizes)
            programs[part] = Program(kept[0][1], per_lane, first.factory, **first.traits)
        lr = np.repeat([self.experiments[c.experiment].lrs[c.point[0]] for c in block], sizes).astype(first.dtype)
        if first.traits["in_turn"]:
            lr[taken:] = 0
        return Lanes(
            programs,
            leaves,
            lr,
            np.repeat([self.experiments[c.experiment].scales[c.point[1]] for c in block], sizes).astype(first.dtype),
            np.concatenate(seeds).astype(np.uint32),
        )

    def _flat(self, number: int, part: str, device: jax.Device | None) -> tuple[list, Any]:
        key = (number, part, device)
        if key not in self.held:
            experiment = self.experiments[number]
            tree = placed(experiment.trees[part], experiment.dtype, device)
            self.held[key] = jax.tree.flatten(tree if device is not None else jax.device_get(tree))
        return self.held[key]


def _side_by_side(trees: list[list], sizes: list[int]) -> tuple[tuple[bool, ...], tuple]:
    """Leaves of several cells as one tuple: as they are where all cells agree, else one for each lane; and which are."""
    per_lane, joined = [], []
    for leaves in zip(*trees, strict=True):
        alike = all(a is leaves[0] for a in leaves) or all(_equal(a, leaves[0]) for a in leaves[1:])
        per_lane.append(not alike)
        joined.append(leaves[0] if alike else np.repeat(np.stack([np.asarray(a) for a in leaves]), sizes, axis=0))
    return tuple(per_lane), tuple(joined)


def _equal(a: Any, b: Any) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)


def shapes(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """The measures of one seed at one record as shapes and dtypes; nothing is computed, but weights must fit the model."""
    with jax.enable_x64(experiment.x64):
        trees = {part: placed(tree, experiment.dtype) for part, tree in experiment.trees.items()}
        number = jax.ShapeDtypeStruct((), experiment.dtype)

        def both(trees, lr, scale, seed):
            (init, tree_i), (tree, tree_a) = (jax.tree.flatten(trees[part]) for part in ("start", "advance"))
            first = Program(tree_i, (False,) * len(init), experiment.factory, **experiment.traits)
            keys, state = starting(first, tuple(init), lr[None], scale[None], seed[None])
            second = Program(tree_a, (False,) * len(tree), experiment.factory, **experiment.traits)
            _, seen = advancing(second, tuple(tree), lr[None], keys, state, *map(jnp.asarray, NO_STEPS))
            return jax.tree.map(lambda a: a[0, 0], seen)

        return jax.eval_shape(both, trees, number, number, jax.ShapeDtypeStruct((), "uint32"))


def footprint(lanes: Lanes) -> int:
    """Bytes that `advance` needs on a device, by the compiler's own count, arguments and results included.

    Compiles it, for the calls that follow too.
    """
    program = lanes.programs["advance"]
    lowered = advance(program.narrow).lower(program, lanes.leaves["advance"], lanes.lr, *lanes.begin(), *NO_STEPS)
    counted = lowered.compile().memory_analysis()
    if counted is None:
        return 0
    return counted.temp_size_in_bytes + counted.argument_size_in_bytes + counted.output_size_in_bytes


def fitting_block(block: int, bytes_needed: int, budget: float) -> int:
    """The largest power of two of at least 8 lanes within the budget, were the footprint proportional to the lanes."""
    return max(8, 1 << int(math.log2(max(budget / (bytes_needed / block), 1))))
