"""The manifest: what a run folder holds for certain, with checksums; append-only.

Every process that writes has a file of its own, `manifest/NNNNNN.jsonl`: a first line about the session (host, device, versions),
then one line for everything it finished, with the SHA-256 of its files. A line carries its own checksum. What no line names is
not there yet. A process that is killed leaves at most a torn last line.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import sync, write_atomically

FOLDER = "manifest"
LONGEST_LINE = 2**22


@dataclass(frozen=True)
class Line:
    """One line: what it says, or None if it is damaged; `torn` if it is the unfinished end of a file."""

    file: str
    number: int
    entry: dict[str, Any] | None
    torn: bool = False


class Writer:
    """Appends to a new file of the manifest. Every entry is on the disk when `append` returns."""

    def __init__(self, run: Path, session: Mapping[str, Any]):
        folder = run / FOLDER
        folder.mkdir(exist_ok=True)
        number = 1 + max((int(p.stem) for p in folder.glob("*.jsonl") if p.stem.isdecimal()), default=0)
        while True:
            try:
                self.file = (folder / f"{number:06d}.jsonl").open("xb", buffering=0)
                break
            except FileExistsError:  # another process was faster
                number += 1
        self.began, self.lock = time.monotonic(), threading.Lock()
        try:
            self.append(session=dict(session))
            sync(folder)
        except OSError:  # no session without its first line
            self.file.close()
            (folder / f"{number:06d}.jsonl").unlink(missing_ok=True)
            raise

    def append(self, **entry: Any) -> None:
        """Add an entry; "at" is in seconds since the session began, by a clock that never jumps."""
        entry["at"] = round(time.monotonic() - self.began, 3)
        with self.lock:
            line, sound = _encoded(entry), self.file.tell()
            try:
                while line:  # an unbuffered file may write less than asked, when the disk is nearly full
                    line = line[self.file.write(line) :]
                os.fsync(self.file.fileno())
            except OSError:
                os.ftruncate(self.file.fileno(), sound)
                self.file.seek(sound)
                raise

    def close(self) -> None:
        """Say goodbye."""
        if not self.file.closed:
            try:
                self.append(ended=True)
            except OSError:  # a full disk: the session just stops
                pass
            self.file.close()


def lines(run: Path) -> Iterator[Line]:
    """All lines, oldest session first."""
    for path in sorted((run / FOLDER).glob("*.jsonl")):
        with path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
                torn = not raw.endswith(b"\n") and _decoded(raw[:-1]) is None  # else its end alone is wrong: damaged
                yield Line(path.name, number, _decoded(raw), torn)


def entries(run: Path) -> Iterator[dict[str, Any]]:
    """What the undamaged lines say."""
    return (line.entry for line in lines(run) if line.entry is not None)


def seconds(run: Path) -> float:
    """Seconds that all sessions worked, each up to its last line."""
    last: dict[str, float] = {}
    for line in lines(run):
        if line.entry is not None and isinstance(line.entry.get("at"), int | float):
            last[line.file] = float(line.entry["at"])
    return sum(last.values())


def drop_damaged(run: Path) -> None:
    """Rewrite the files that hold damaged lines without these."""
    found = list(lines(run))
    for name in {line.file for line in found if line.entry is None}:
        kept = [_encoded(line.entry) for line in found if line.file == name and line.entry is not None]
        write_atomically(run / FOLDER / name, b"".join(kept))


def _encoded(entry: Mapping[str, Any]) -> bytes:
    text = json.dumps(entry, separators=(",", ":"))
    return f'{{"sha256":"{hashlib.sha256(text.encode()).hexdigest()}","entry":{text}}}\n'.encode()


def _decoded(raw: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(raw)["entry"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and _encoded(entry) == raw.rstrip(b"\n") + b"\n" else None
