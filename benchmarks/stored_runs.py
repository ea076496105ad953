"""What do storing, checkpoints and many devices cost, and does memory stay flat as seeds grow?

In one process, interleaved:

- the bare engine (results in memory) against a run folder: records, checksums, manifest and checkpoints on the disk;
- the same blocks on one and on two devices, and the spmd engine on both. On a CPU the devices are fake: each gets one worker
  thread, so that the ratio says what dealing out blocks costs, and how far two cores are twice one.

And, with `--memory`, whole studies in processes of their own, `icldyn run mainali2025 --scale smoke --seeds S`: wall time, peak
memory of the process, and size on the disk, for S from 1,000 to 100,000 (half an hour on two cores).
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import tyro
from _timing import Timing, figures, interleaved, machine, table

import icldyn as ic
from icldyn.engine import train as engine
from icldyn.engine.ensemble import ensembles
from icldyn.engine.train import Options

PROMISED_STORED = 0.95
PROMISED_TWO_DEVICES = 1.8
PROMISED_MEMORY = 1.3


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    seeds: int = 512
    """Seeds of every run."""
    steps: int = 6000
    """Steps of every seed: those of the main job."""
    repeats: int = 5
    """Interleaved repeats."""
    checkpoint_seconds: float = 0.5
    """How often unfinished blocks are kept; the default of `icldyn run` is 30."""
    memory: tuple[int, ...] = ()
    """Also run whole studies with so many seeds, such as 1000 10000 100000."""
    quick: bool = False
    """A rough answer within a minute."""
    json: Path | None = None
    """Keep the numbers here."""


def experiment(settings: Settings) -> ic.Experiment:
    """The main run of `mainali2025` at laptop scale."""
    task, model = ic.linear_regression(20, [1.0, 0.7, 0.5, 0.35]), ic.linear_attention(4)
    measures = ic.modes.measures(task.U) | {"loss": ic.population(task, model).loss}
    init = ic.aligned(model, p=0.22, q=0.22)
    objective = ic.statistics(task, model, 32)
    return ic.Experiment(objective, init, seeds=settings.seeds, lr=0.01, steps=settings.steps, measures=measures)


def on(devices: int, run: Any) -> Any:
    """`run` with one worker for each of so many devices."""

    def call() -> float:
        every = engine.workers
        engine.workers = lambda: jax.local_devices()[:devices]
        try:
            return run()
        finally:
            engine.workers = every

    return call


def measure(settings: Settings) -> dict[str, Timing]:
    """Seconds without compilation of every way to run the same blocks."""
    one, folders = experiment(settings), iter(range(10**6))

    def bare(**options: Any) -> float:
        return ensembles({"main": one}, Options(**options))["main"].attrs["run_seconds"]

    def stored(where: Path, seconds: float) -> float:
        with ic.RunFolder.create(where / f"run{next(folders)}") as run:
            began = time.perf_counter()
            told = run.train({"main": one}, Options(checkpoint_seconds=seconds))
            return time.perf_counter() - began - told["compile_seconds"]  # until the last byte is on the disk

    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "in memory": bare,
            "run folder, checkpoints every 30 s": lambda: stored(Path(folder), 30.0),
            f"run folder, checkpoints every {settings.checkpoint_seconds:g} s": lambda: stored(
                Path(folder), settings.checkpoint_seconds
            ),
            "1 device": on(1, bare),
            "2 devices": on(2, bare),
            "spmd over all devices": lambda: bare(engine="spmd"),
        }
        for way in ways.values():
            way()  # compiles
        return interleaved(ways, settings.repeats)


def whole_study(S: int) -> dict[str, Any]:
    """One `icldyn run` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["run", "mainali2025", "--scale", "smoke", "--seeds", str(S), "--out", f"{folder}/run", "--json"]
        began = time.perf_counter()
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        done = subprocess.run([sys.executable, "-m", "icldyn", *words], capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr)
        files = [p for p in Path(folder).rglob("*") if p.is_file()]
        return {
            "S": S,
            "seconds": time.perf_counter() - began,
            "peak_memory_gb": json.loads(Path(folder, "run/result.json").read_text())["peak_memory_gb"],
            "megabytes": sum(p.stat().st_size for p in files) / 1e6,
            "files": len(files),
        }


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=128, steps=2000, repeats=3)
    print(f"{machine()}\n{settings.seeds} seeds of {settings.steps} steps, D = 4, batch 32\n")
    found = measure(settings)
    seed_steps = settings.seeds * settings.steps
    base, single = found["in memory"].seconds, found["1 device"].seconds
    rows = [
        (
            way,
            figures(seed_steps / t.seconds),
            f"{base / t.seconds:.3f}",
            f"{single / t.seconds:.2f}",
            f"{t.cores:.1f}",
            f"{t.spread:.0%}",
        )
        for way, t in found.items()
    ]
    print(table(("blocks of 32 seeds", "seed-steps/s", "over in memory", "over 1 device", "cores", "spread"), rows))
    stored, two = base / found["run folder, checkpoints every 30 s"].seconds, single / found["2 devices"].seconds
    print(f"\nStored over in memory: {stored:.3f} (promised at least {PROMISED_STORED})")
    print(f"2 devices over 1: {two:.2f} (promised at least {PROMISED_TWO_DEVICES})")
    studies = [whole_study(S) for S in settings.memory]
    if studies:
        print()
        shown = [
            (f"{r['S']:,}", figures(r["seconds"]), r["peak_memory_gb"], figures(r["megabytes"]), f"{r['files']:,}")
            for r in studies
        ]
        print(table(("seeds of the main run", "seconds", "peak GB", "MB on disk", "files"), shown))
        growth = studies[-1]["peak_memory_gb"] / studies[0]["peak_memory_gb"]
        print(
            f"\nPeak memory, {studies[-1]['S']:,} seeds over {studies[0]['S']:,}: {growth:.2f} (promised {PROMISED_MEMORY})"
        )
    if settings.json is not None:
        ways = {way: {"seconds": t.seconds, "spread": t.spread, "cores": t.cores} for way, t in found.items()}
        settings.json.write_text(json.dumps({"machine": machine(), "ways": ways, "studies": studies}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__.splitlines()[0]))
