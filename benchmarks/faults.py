"""What does it cost to kill a run, at any instant, again and again?

A real run, `icldyn run mainali2025 --scale smoke` at a small size with checkpoints every 0.2 s, in a process of its own, is
killed and started again with the same command and `--resume` until it is complete; then another run, until there were enough
kills. First all of it with SIGKILL, then with SIGTERM, which asks it to keep what it has and stop.

The instants are random: half of them anywhere between the start of the process and the end of a run that nothing happens to,
half of them in the time that this run trains; a run that was killed after its last block is then left to end. Where they
landed is told by what the process had written by then: "start" is before it holds the folder, "compilation" before its first
block or checkpoint of this session, "after" when the result is there.

After every kill each line of the manifest must still be there and every file as it says (`icldyn verify`); of a completed run
`data.zarr` must have every bit, and no file more, of a run that nothing happened to, with the same claims, and no block may
have been trained twice. Compiled programs are kept in a folder for this benchmark, so that starting again is cheap.
"""

import collections
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from _timing import machine, table

import icldyn
from icldyn.store import manifest
from icldyn.store.verify import verify

SIZES = "--seeds 256 --other-seeds 16 --reference-seeds 2 --N 20 --unbalanced 0.25 --lrs 0.08 0.04 --block 8"
TIMES = "--t-end 80 --t-end-unaligned 30 --checkpoint-seconds 0.2"
COMMAND = ["run", "mainali2025", "--scale", "smoke", *SIZES.split(), *TIMES.split(), "--quiet", "--resume", "--out"]
PHASES = ("start", "compilation", "training", "theory", "figures", "after")
CALL = 0.25
PROMISED_STOP = 2 + CALL  # seconds from SIGTERM to exit while it trains
LONGEST = 300.0  # seconds of any process; more is a hang


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is done."""

    kills: int = 50
    """Kills with each of the signals."""
    signals: tuple[str, ...] = ("SIGKILL", "SIGTERM")
    """Which, one after the other."""
    seed: int = 0
    """Of the random instants."""
    quick: bool = False
    """4 kills with each signal: a few minutes."""
    json: Path | None = None
    """Keep the numbers here."""


class Session:
    """One process of the command line that works on a run folder."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.began, self.wall = folder, time.monotonic(), time.time()
        self.words = folder.with_name(f"{folder.name}.stderr").open("w+")
        call = [sys.executable, "-m", "icldyn", *COMMAND, str(folder)]
        self.process = subprocess.Popen(
            call, env=environment, cwd=folder.parent, stdout=subprocess.DEVNULL, stderr=self.words
        )

    def end(self, seconds: float) -> int | None:
        """Its exit code, or None if it goes on after so many seconds since it began."""
        try:
            return self.process.wait(max(self.began + seconds - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            return None

    def told(self) -> str:
        """What it said."""
        return Path(self.words.name).read_text()

    def lines(self) -> list[dict[str, Any]]:
        """What it wrote in the manifest."""
        for file in sorted((self.folder / manifest.FOLDER).glob("*.jsonl"), reverse=True):
            lines = [line.entry for line in manifest.lines(self.folder) if line.file == file.name and line.entry]
            if lines and lines[0]["session"]["pid"] == self.process.pid:
                return lines
        return []

    def phase(self) -> str:
        """How far it came."""
        lines, told = self.lines(), self.told()
        if any(line.get("saved") == "result" for line in lines):
            return "after"
        if "drawing the figures" in told:
            return "figures"
        if "solving the exact equations" in told:
            return "theory"
        kept = [p.stat().st_mtime for p in (self.folder / "checkpoints").glob("*.ckpt")]
        if any("cell" in line for line in lines) or max(kept, default=0.0) > self.wall:
            return "training"
        return "compilation" if lines else "start"


def named(folder: Path) -> list[str]:
    """What the manifest names, with checksums."""
    kept = [{k: e[k] for k in ("cell", "saved", "files") if k in e} for e in manifest.entries(folder) if "files" in e]
    return [json.dumps(entry, sort_keys=True) for entry in kept]


def content(folder: Path) -> dict[str, bytes]:
    """Every file of the data."""
    data = folder / "data.zarr"
    return {str(p.relative_to(data)): p.read_bytes() for p in data.rglob("*") if p.is_file()}


def claims(folder: Path) -> Any:
    """What came out."""
    return json.loads((folder / "result.json").read_text())["claims"]


def trained_twice(folder: Path) -> int:
    """Blocks that are named more than once."""
    times = collections.Counter(str(e["cell"]) for e in manifest.entries(folder) if "cell" in e)
    return sum(count - 1 for count in times.values())


def watched(session: Session) -> dict[str, float]:
    """Seconds from its start until a process that nothing happens to came to each phase, and until its end."""
    reached: dict[str, float] = {}
    while (code := session.process.poll()) is None:
        reached.setdefault(session.phase(), time.monotonic() - session.began)
        time.sleep(0.05)
    if code:
        raise SystemExit(session.told())
    return reached | {"end": time.monotonic() - session.began}


@dataclasses.dataclass
class Found:
    """What the kills with one signal came to."""

    kills: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    runs: int = 0
    sessions: int = 0
    lost: int = 0
    twice: int = 0
    unequal: int = 0
    corrupt: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)  # exits

    def count(self, phase: str) -> int:
        """Kills in a phase."""
        return sum(kill["phase"] == phase for kill in self.kills)

    def slowest(self, *phases: str) -> float:
        """Longest seconds from signal to exit."""
        return max((kill["seconds"] for kill in self.kills if kill["phase"] in phases), default=0.0)


def kill_runs(
    number: signal.Signals,
    count: int,
    reference: Path,
    spans: Sequence[tuple[float, float]],
    environment: Any,
    seed: int,
) -> Found:
    """Kill and resume runs until there were `count` kills and every run is complete."""
    found, instants = Found(), random.Random(seed)
    while len(found.kills) < count and not found.wrong:
        folder = reference.with_name(f"{number.name}-{found.runs}")
        before: list[str] = []
        leave = False
        while not found.wrong:
            session = Session(folder, environment)
            found.sessions += 1
            leave = leave or len(found.kills) == count
            code = session.end(LONGEST if leave else instants.uniform(*spans[found.sessions % len(spans)]))
            if code is None:
                sent = time.monotonic()
                session.process.send_signal(number)
                code = session.process.wait(LONGEST)
                seconds = time.monotonic() - sent
                if code != 0:  # else it was at its end
                    kill = {"at": round(sent - session.began, 3), "seconds": round(seconds, 3), "code": code}
                    found.kills.append(kill | {"phase": session.phase()})
                    leave = session.phase() in PHASES[3:]
                    print(f"{number.name} {len(found.kills)}: {found.kills[-1]}", file=sys.stderr, flush=True)
            heard = number == signal.SIGTERM and "writing to" in session.told() and session.phase() != "after"
            if code not in (0, 75 if heard else -number) or "Traceback" in session.told():
                found.wrong.append(f"exit code {code}: {session.told()[-2000:]}")
            after = named(folder)
            found.lost += sum(line not in after for line in before)
            found.corrupt += [str(damage) for damage in verify(folder)] if (folder / "run.json").exists() else []
            before = after
            if code == 0:
                break
        found.runs += 1
        found.twice += trained_twice(folder)
        found.unequal += content(folder) != content(reference) or claims(folder) != claims(reference)
        shutil.rmtree(folder)
    return found


def main(settings: Settings) -> None:
    began, count = time.perf_counter(), 4 if settings.quick else settings.kills
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as where:
        package = str(Path(icldyn.__file__).parents[1])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "JAX_COMPILATION_CACHE_DIR": f"{where}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        watched(Session(Path(where, "first"), environment))  # compiles
        reference = Path(where, "whole")
        reached = watched(Session(reference, environment))
        if content(reference) != content(Path(where, "first")):
            raise SystemExit("Two runs that nothing happened to differ.")
        blocks = sum("cell" in entry for entry in manifest.entries(reference))
        spans = [(0.0, reached["end"]), (reached["training"], reached["theory"])]
        print(
            f"A run that nothing happens to: {blocks} blocks, training from {spans[1][0]:.1f} s to {spans[1][1]:.1f} s, "
            f"end at {reached['end']:.1f} s.\n"
        )
        done = {
            name: kill_runs(signal.Signals[name], count, reference, spans, environment, settings.seed)
            for name in settings.signals
        }
    landed = [(name, len(f.kills), *(f.count(phase) for phase in PHASES), f.runs) for name, f in done.items()]
    print(table(("kills", "all", *PHASES, "runs completed"), landed))
    came = [
        (name, f.lost, f.twice, len(f.corrupt), f"{f.runs - f.unequal} of {f.runs}", len(f.wrong))
        for name, f in done.items()
    ]
    print()
    print(
        table(
            ("kills", "lines lost", "blocks trained twice", "corrupt files", "runs with equal bits", "wrong exits"),
            came,
        )
    )
    for fault in [one for f in done.values() for one in (*f.corrupt, *f.wrong)]:
        print(f"\n{fault}")
    if stopped := done.get("SIGTERM"):
        slowest = f"{stopped.slowest('training'):.2f} s (promised at most {PROMISED_STOP:g} s)"
        late = ", ".join(f"{phase} {stopped.slowest(phase):.2f} s" for phase in PHASES if phase != "training")
        print(f"\nLongest from SIGTERM to exit while it trains: {slowest}; {late}.")
    ok = not any(f.lost or f.twice or f.corrupt or f.unequal or f.wrong for f in done.values())
    print(f"Nothing lost, nothing corrupt, equal bits: {'pass' if ok else 'FAIL'}")
    print(f"{time.perf_counter() - began:.0f} s in all.")
    if settings.json is not None:
        told = {"machine": machine(), "reached": reached, **{name: dataclasses.asdict(f) for name, f in done.items()}}
        settings.json.write_text(json.dumps(told, indent=1) + "\n")
    if not ok:
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__.splitlines()[0]))
