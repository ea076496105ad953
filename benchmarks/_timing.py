"""Wall time measured fairly: compile time apart, repeats interleaved, medians, and the machine named beside them."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from icldyn.engine.devices import cores


class Timing(NamedTuple):
    """Seconds of repeated runs of one thing."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]  # of all threads of this process

    @property
    def seconds(self) -> float:
        """Median wall time."""
        return statistics.median(self.wall)

    @property
    def cores(self) -> float:
        """CPU seconds per wall second, median: the cores that were kept busy."""
        return statistics.median(c / w for c, w in zip(self.cpu, self.wall, strict=True))

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median: large when others use the machine."""
        return (max(self.wall) - min(self.wall)) / self.seconds


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, wall seconds, CPU seconds) of one call, its arrays waited for."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = jax.block_until_ready(run())
    return result, time.perf_counter() - wall, time.process_time() - cpu


def interleaved(runs: Mapping[Any, Callable[[], float | None]], repeats: int) -> dict[Any, Timing]:
    """Every run once, then every run again, ...: a slow minute of the machine meets all of them alike.

    A run that returns a number says how long it took without its own preparations, which keep one core busy; otherwise its call
    is timed.
    """
    wall: dict[Any, list[float]] = {name: [] for name in runs}
    cpu: dict[Any, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            own, outer, spent = timed(run)
            seconds = own if isinstance(own, float) else outer
            wall[name].append(seconds)
            cpu[name].append(spent - (outer - seconds))
    return {name: Timing(tuple(wall[name]), tuple(cpu[name])) for name in runs}


def averaged(run: Callable[[], Any], shortest: float = 0.2) -> Callable[[], float]:
    """Calls `run` as often as fills `shortest` seconds, and returns the mean seconds: for runs of milliseconds."""
    count = max(1, round(shortest / timed(run)[1]))

    def call() -> float:
        return timed(lambda: [run() for _ in range(count)])[1] / count

    return call


def by_count(run: Callable[[int], Any], seconds: float, seeds: int) -> tuple[Callable[[], Any], int]:
    """A call of about so many seconds, and its seed-steps."""
    run(2)
    steps, spent = 2, 0.0
    while spent < seconds / 4 and steps < 2**22:
        steps *= 4
        spent = min(_seconds(run, steps), _seconds(run, steps))
    steps = max(2, round(steps * seconds / spent))
    run(steps)
    return (lambda: run(steps)), steps * seeds


def _seconds(run: Callable[[int], Any], steps: int) -> float:
    result, wall, _ = timed(lambda: run(steps))
    return result if isinstance(result, float) else wall


def compiled(function: Any, *args: Any, **static: Any) -> tuple[Callable[..., Any], float]:
    """The program of a jitted function for these arguments, and the seconds that tracing and compiling it took."""
    began = time.perf_counter()
    program = function.lower(*args, **static).compile()
    return program, time.perf_counter() - began


def workers() -> int:
    """Blocks of seeds that `icldyn.ensemble` runs at a time: one a CPU core, or one an accelerator."""
    devices = jax.local_devices()
    return max(cores(), len(devices)) if devices[0].platform == "cpu" else len(devices)


def machine() -> str:
    """Device, cores, versions and present load, in one line."""
    devices = jax.local_devices()
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {cores()} CPU cores ({processor()}), "
        f"jax {jax.__version__}, Python {platform.python_version()}, float32 unless said{load}"
    )


def processor() -> str:
    """The CPU's name, with AVX-512 where it has it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, value in lines.items()}
    return facts.get("model name", platform.machine()) + (", AVX-512" if "avx512f" in facts.get("flags", "") else "")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table, first column to the left and the others to the right."""
    cells = [[str(c) for c in header], *[[str(c) for c in row] for row in rows]]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + (":" if k else "-") for k, w in enumerate(widths))
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])


def figures(value: float, digits: int = 3) -> str:
    """`value` to so many significant digits, with thousands separated: 12345.6 -> "12,300"."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:#.{digits}g}"
