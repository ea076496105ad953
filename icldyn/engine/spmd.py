"""One program over a mesh of all devices, those of every process where `jax.distributed` was initialised.

A wave is as many blocks as there are devices, in lock-step, each device with the lanes of one block; a short wave is filled up
with its last block again. Seeds need nothing of each other, so the compiled program holds no collective. Between its calls the
processes agree on the number of steps of the next, on checkpoints and on stopping; each process starts, keeps and hands over
the blocks of its own devices alone. On a CPU a device is about one core: `XLA_FLAGS=--xla_force_host_platform_device_count=8`.

Bits are those of `engine="blocks"` over 1, 2, 4 and 8 devices of a CPU: measured for `sampled` and `statistics` in float32 and
float64, SGD, momentum, Adam and `across_values`; over 2, for a softmax attention. On accelerators this was not measured. Over
many of them the last digit may differ: XLA tidies a program once more for a mesh, and then simplifies divisions otherwise. On
a CPU that pass is left out here; with it, linear attention under SGD and momentum kept its bits, but weights under Adam,
softmax attention and `across_values` moved by about 1e-7 in float32 after 60 to 100 steps.
"""

import functools
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax import P
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from .. import checks
from .blocks import Block
from .joining import gathered
from .joining import initialise as initialise
from .programs import NO_STEPS, Program, advancing, compiler_options
from .schedule import next_call
from .train import Training, out_of_memory, steps_per_call


def train_in_waves(training: Training) -> None:
    """Train the blocks a wave at a time, each over all devices of all processes."""
    with ThreadPoolExecutor(1) as pool:  # a thread has its own settings of jax; those of the caller stay out
        running = pool.submit(_Waves(training).run)
        try:
            running.result()
        except BaseException:
            training.failed.set()
            raise


@functools.cache
def advance_all(mesh: Mesh, narrow: bool) -> Callable[..., Any]:
    """`advancing` on every device of the mesh, each for lanes of its own; step, gaps and keep are those of all."""
    lanes = P("seed")

    def advance(program: Program, *arguments):
        own = tuple(lanes if mine else P() for mine in program.per_lane)
        specs = (own, lanes, lanes, lanes, P(), P(), P())
        over = functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=lanes, check_vma=False)
        return over(functools.partial(advancing, program))(*arguments)

    options = {"xla_disable_hlo_passes": "spmd-cleanup"} if mesh.devices[0].platform == "cpu" else {}
    return jax.jit(advance, static_argnums=0, compiler_options=compiler_options(narrow) | options)


class _Waves:
    """The same waves and the same calls in every process."""

    def __init__(self, training: Training):
        self.training = training
        self.mesh = Mesh(np.array(jax.devices()), ("seed",), axis_types=(AxisType.Auto,))
        self.error: BaseException | None = None

    def run(self) -> None:
        """Compile, then train all waves; raises what failed here, or `Stopped` where another process failed or stopped."""
        training = self.training
        waves = self.plan()
        kinds = {tuple(c.experiment for c in blocks[0]): (blocks, *at) for blocks, *at in reversed(waves)}
        for blocks, *at in kinds.values():
            if not self.turn()[0]:
                self.compile(_Wave(training, self.mesh, blocks), *at)
        training.started = time.perf_counter()
        training.bar.shown &= bool(waves) and jax.process_index() == 0  # each process counts the blocks of all
        with training.bar:
            for blocks, *at in waves:
                if self.turn()[0]:
                    break
                self.train(_Wave(training, self.mesh, blocks), *at)
        left = gathered(np.int32(training.unfinished + training.failed.is_set()))
        if self.error is not None:
            raise self.error
        if left.any():
            raise checks.Stopped("Another process failed, or was to stop.")

    def plan(self) -> list[tuple[list[Block], int, int]]:
        """Blocks of each wave, and the step and number of records from which it goes on, as process 0 finds them."""
        training, n = self.training, self.mesh.size
        told = repr(([(e.fingerprint, e.block) for e in training.experiments], len(training.blocks)))
        digests = gathered(np.frombuffer(hashlib.sha256(told.encode()).digest(), np.int32))
        if (digests != digests[0]).any():
            raise checks.BadArgument("Argument `block` and all others must be the same for every process, but differ.")
        found = np.zeros((len(training.blocks), 3), np.int32)  # whether it is to be done, its step, its records
        if jax.process_index() == 0:
            self.alone(self.look, found)
        alike: dict[tuple, list[Block]] = {}
        for block, found_of in zip(training.blocks, multihost_utils.broadcast_one_to_all(found).tolist(), strict=True):
            kind = (*found_of, tuple(c.experiment for c in block), training.recorded(block).tobytes())
            alike.setdefault(kind, []).append(block)
        waves = [
            (blocks[k : k + n], step, written)
            for (wanted, step, written, *_), blocks in alike.items()
            for k in range(0, len(blocks) * wanted, n)
        ]
        training.unfinished = sum(len(_Wave(training, self.mesh, blocks).own) for blocks, *_ in waves)
        return waves

    def look(self, found: np.ndarray) -> None:
        """Fill in what is to be done, and how far its checkpoints are."""
        training, home = self.training, self.mesh.local_devices[0]
        todo = set(training.todo)
        for k, block in enumerate(training.blocks):
            found[k, 0] = block in todo
            if block in todo and training.options.keeper and training.options.keeper.load(training.name(block)):
                with training.settings(block):
                    _, state = jax.eval_shape(training.placer.lanes(block, home).begin)
                    found[k, 1:] = training.restore(block, state)[2:]

    def compile(self, wave: "_Wave", step: int, written: int) -> None:
        """A call of no steps."""
        with self.training.settings(wave.blocks[0]):
            self.alone(wave.begin, step, written)
            self.alone(wave.call, *NO_STEPS, 0)

    def train(self, wave: "_Wave", step: int, written: int) -> None:
        """A wave, in calls that take no process much more than a quarter of a second."""
        training, recorded = self.training, self.training.recorded(wave.blocks[0])
        size, most = sum(c.size for block in wave.blocks for c in block), max(1, int(recorded[-1]) // 256)
        training.bar.skip(step * size)
        with training.settings(wave.blocks[0]):
            self.alone(wave.begin, step, written)
            began = saved = time.monotonic()
            while written < len(recorded):
                due = time.monotonic() - saved >= training.options.checkpoint_seconds
                stop, most, due = self.turn(most, due)
                if step and (stop or due):
                    self.alone(wave.save, step, written)
                    saved = time.monotonic()
                if stop:
                    return
                gaps, keep = next_call(recorded, step, written, most)
                called, taken = time.monotonic(), int(gaps.sum())
                self.alone(wave.call, step, gaps, keep, written)
                step, written = step + taken, written + int(keep.sum())
                training.bar.advance(taken * size)
                most = steps_per_call(most, taken, time.monotonic() - called)
            self.alone(wave.finish, time.monotonic() - began)

    def turn(self, most: int = 0, due: bool = False) -> tuple[bool, int, bool]:
        """What the processes agree on: to stop, or to keep a checkpoint, if one would, and the fewest steps."""
        said = gathered(np.array([self.training.stopping, most, due], np.int32))
        return bool(said[:, 0].any()), int(said[:, 1].min()), bool(said[:, 2].any())

    def alone(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Work in which this process may fail: raised only after the next turn, when the others have heard of it."""
        if self.error is None:
            try:
                work(*arguments)
            except BaseException as error:
                self.error = error
                self.training.failed.set()


class _Wave:
    """Blocks in lock-step, and what this process holds of them."""

    def __init__(self, training: Training, mesh: Mesh, blocks: list[Block]):
        self.training, self.mesh, self.blocks = training, mesh, blocks
        mine = jax.process_index()
        places = [(k, device) for k, device in enumerate(mesh.devices) if device.process_index == mine]
        self.held = {device: blocks[min(k, len(blocks) - 1)] for k, device in places}
        self.own = {device: blocks[k] for k, device in places if k < len(blocks)}

    def begin(self, step: int, written: int) -> None:
        """Place the arguments of every lane, from the start or from the checkpoints."""
        home, pieces, self.records = self.mesh.local_devices[0], [], {}
        for device, block in self.held.items():
            lanes = self.training.placer.lanes(block, home)
            keys, state = lanes.begin()
            state, self.records[device], *reached = self.training.restore(block, state)
            if reached != [step, written]:
                raise checks.BadArgument("Argument `out` must be one folder for all processes, but checkpoints differ.")
            pieces.append(jax.device_put((lanes.leaves["advance"], lanes.lr, keys, state), device))
        self.program, self.block = lanes.programs["advance"], len(lanes.seeds)
        leaves, *rest = zip(*pieces, strict=True)
        shared = zip(self.program.per_lane, *leaves, strict=True)
        self.leaves = tuple(self.whole(*parts, split=own) for own, *parts in shared)
        self.lr, self.keys, self.state = (jax.tree.map(self.whole, *parts) for parts in rest)

    def whole(self, *parts: jax.Array, split: bool = True) -> jax.Array:
        """The array over all devices whose parts on the local ones these are: side by side, or the same on each."""
        shape = (parts[0].shape[0] * self.mesh.size, *parts[0].shape[1:]) if split else parts[0].shape
        sharding = NamedSharding(self.mesh, P("seed") if split else P())
        return jax.make_array_from_single_device_arrays(shape, sharding, list(parts))

    def part(self, device: jax.Device, tree: Any) -> Any:
        """What a local device holds of arrays over all devices."""
        return jax.tree.map(lambda a: next(s.data for s in a.addressable_shards if s.device == device), tree)

    def call(self, step: int, gaps: np.ndarray, keep: np.ndarray, written: int) -> None:
        """One call of the program, and its records."""
        fixed = (self.program, self.leaves, self.lr, self.keys)
        try:
            self.state, seen = jax.block_until_ready(
                advance_all(self.mesh, self.program.narrow)(*fixed, self.state, np.int32(step), gaps, keep)
            )
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            raise checks.BadArgument(
                f"Argument `block` must be smaller for its seeds to fit on a device, but is {self.block}: take fewer, or "
                "`--engine blocks`, which then runs a block in pieces."
            ) from None
        for device in self.own:
            for name, value in self.part(device, seen).items():
                self.records[device][name][:, written : written + keep.sum()] = np.asarray(value)[:, keep]

    def save(self, step: int, written: int) -> None:
        """Keep the own blocks."""
        for device, block in self.own.items():
            self.training.save(block, self.part(device, self.state), self.records[device], step, written)

    def finish(self, seconds: float) -> None:
        """Hand over the own blocks."""
        for device, block in self.own.items():
            self.training.finish(block, self.part(device, self.state), self.records[device], seconds)
