"""One writer for every share of a run: a second one is told who holds it."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import checks

FOLDER = "locks"


class Lock:
    """Held from construction until `release`; the system frees it when the process dies, however it dies.

    Raises:
        icldyn.BadArgument: if another process holds this share, or shares of another number of processes.
    """

    def __init__(self, run: Path, share: tuple[int, int]):
        folder = run / FOLDER
        folder.mkdir(exist_ok=True)
        self.path = folder / _name(share)
        self.lock = _acquired(self.path)
        if self.lock is None:
            raise checks.BadArgument(f"Argument `run` must be a run that no one is writing, but {_holder(self.path)}.")
        for other in sorted(folder.glob("*-of-*.lock")):
            if not other.stem.endswith(f"-of-{share[1]}"):
                held = _acquired(other)
                if held is None:
                    self.lock.release()
                    raise checks.BadArgument(
                        f"Argument `shard` must be i/{other.stem.rpartition('-of-')[2]} while others write so, "
                        f"but is {share[0]}/{share[1]}: {_holder(other)}."
                    )
                held.release()
        try:
            self.path.with_suffix(".json").write_text(json.dumps(_here()))
        except OSError:
            self.lock.release()
            raise

    def release(self) -> None:
        """Let others write."""
        self.lock.release()


@contextmanager
def ending(run: Path) -> Iterator[str]:
    """One process at a time ends a run: "" for this one, else who does; free again when that one dies, however it dies."""
    path = run / FOLDER / "finish.lock"
    lock = _acquired(path)
    if lock is None:
        yield _holder(path)
        return
    try:
        path.with_suffix(".json").write_text(json.dumps(_here()))
        yield ""
    finally:
        lock.release()


def _name(share: tuple[int, int]) -> str:
    return f"{share[0]}-of-{share[1]}.lock"


def _acquired(path: Path) -> Any:
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _here() -> dict[str, Any]:
    return {"host": platform.node(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def _holder(path: Path) -> str:
    try:
        told = json.loads(path.with_suffix(".json").read_text())
        return f"process {int(told['pid'])} on {str(told['host'])[:80]} holds it since {str(told['since'])[:40]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process holds it"
