"""What test_spmd.py runs in processes of their own, and the folder of npz files that they share."""

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax

import icldyn as ic
from icldyn import checks
from icldyn.engine import spmd, train
from icldyn.engine.train import Options

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


class Folder:
    """A sink and a keeper: a file for each cell, and one for each unfinished block."""

    block = None

    def __init__(self, path, slow=0.0, full=False, saves=None):
        self.path, self.label, self.slow, self.full, self.saves = Path(path), "a", slow, full, saves
        self.path.mkdir(exist_ok=True)

    def begin(self, experiment, layout, cells):
        if self.full == "at once":
            raise checks.BadArgument("No room at all.")
        return [cell.number for cell in cells if self.file(cell).exists()]

    def file(self, cell):
        return self.path / f"cell-{self.label}-{cell.number}.npz"

    def commit(self, cell, values, diverged_step, **facts):
        assert not self.file(cell).exists()  # no cell is trained twice
        if self.full:
            raise OSError("No room.")
        self.write(self.file(cell), values | {"diverged_step": diverged_step})

    def load(self, name):
        file = self.path / f"kept-{name}.npz"
        return dict(np.load(file)) if file.exists() else None

    def save(self, name, arrays):
        self.write(self.path / f"kept-{name}.npz", arrays)
        time.sleep(self.slow)
        self.saves = self.saves and self.saves - 1
        if self.saves == 0:
            self.stop.set()

    def drop(self, name):
        (self.path / f"kept-{name}.npz").unlink(missing_ok=True)

    def write(self, file, arrays):
        partial = file.with_suffix(f".{os.getpid()}")
        with open(partial, "wb") as out:
            np.savez(out, **arrays)
        os.replace(partial, file)

    def __eq__(self, other):
        """Whether both hold the same cells, bit for bit."""
        mine, theirs = ({f.name: dict(np.load(f)) for f in sorted(a.path.glob("cell-*"))} for a in (self, other))
        return mine.keys() == theirs.keys() and all(
            mine[f].keys() == theirs[f].keys() and all(np.array_equal(mine[f][k], theirs[f][k]) for k in mine[f])
            for f in mine
        )


def experiment(spread=0.5, **settings):
    task, model = ic.linear_regression(4, [spread + 0.5, 0.5]), ic.linear_attention(2)
    base = {"seeds": 44, "lr": 0.02, "steps": 40, "init_scale": 0.3, "records": 5, "block": 8}
    return ic.Experiment(ic.sampled(task, model, 8), ic.gaussian(model), **(base | settings))


def run(folder, engine="spmd", settings=None, **options):
    """Exit code of training into a folder."""
    options = Options(engine=engine, keeper=folder, **options)
    folder.stop = options.stop
    try:
        train.train([(experiment(**(settings or {})), folder)], options)
    except checks.Stopped:
        return 75
    return 0


def one_of_many(path, address, processes, index, slow, full, seeds=44):
    """One process of a distributed run."""
    spmd.initialise(address, processes, index, heartbeat_seconds=10)
    folder = Folder(path, slow=slow, full=full)
    signal.signal(signal.SIGTERM, lambda *_: folder.stop.set())
    try:
        return run(folder, settings={"seeds": seeds}, checkpoint_seconds=0.0)
    except checks.BadArgument:
        return 2


def over_devices(path):
    """The first engine over 1, 2, 4 and 8 devices, the second over 4 and 8, and what its programs hold."""
    everything, jitted, texts = jax.devices(), spmd.advance_all, {}

    @functools.cache
    def compiled(mesh, narrow):
        made = {}

        def call(program, *arguments):
            if program not in made:
                made[program] = jitted(mesh, narrow).lower(program, *arguments).compile()
                texts[mesh.size, len(texts)] = made[program].as_text()
            return made[program](*arguments)

        return call

    spmd.advance_all = compiled
    for engine, count in [("blocks", 1), ("blocks", 2), ("blocks", 4), ("blocks", 8), ("spmd", 4), ("spmd", 8)]:
        jax.devices = train.workers = lambda count=count: everything[:count]
        run(Folder(f"{path}/{engine}-{count}"), engine)
    run(Folder(f"{path}/adam"), settings={"optimiser": optax.adam})
    assert len(texts) == 3 and all("while(" in text for text in texts.values())
    assert not [name for name in COLLECTIVES for text in texts.values() if name in text]


if __name__ == "__main__":
    command, arguments = json.loads(sys.argv[1])
    sys.exit({"one_of_many": one_of_many, "over_devices": over_devices}[command](**arguments))
