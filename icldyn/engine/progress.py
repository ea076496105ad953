"""Seed-steps per second, for people."""

import threading
import time
from typing import Any


class Progress:
    """A rich progress bar fed by the host between calls; plain lines when standard error is not a terminal."""

    def __init__(self, title: str | bool, total: int):
        self.total, self.done, self.skipped = total, 0, 0
        self.title = title if isinstance(title, str) else "training"
        self.shown = bool(title)
        self.lock = threading.Lock()

    def __enter__(self) -> "Progress":
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
        """Count work done, from any thread."""
        with self.lock:
            self.done += seed_steps
            if self.shown:
                now = time.perf_counter()
                rate = f"{self.done / max(now - self.began, 1e-9):,.0f} seed-steps/s"
                reached = self.done + self.skipped
                self.rich.update(self.task, completed=reached, rate=rate)
                if self.plain is not None and (now - self.told > 15 or reached == self.total):
                    self.told = now
                    self.plain.print(f"{self.title}: {reached / self.total:4.0%}, {rate}", highlight=False)

    def skip(self, seed_steps: int) -> None:
        """Count work that was done before, which says nothing about the rate."""
        with self.lock:
            self.skipped += seed_steps

    def __exit__(self, *_: Any) -> None:
        if self.shown:
            self.rich.stop()
