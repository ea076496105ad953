"""Is a run folder what its manifest says? Every file against its SHA-256, every line against its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import manifest
from .files import sha256, unpack, write_atomically
from .run_folder import FORMAT_VERSION, RunFolder, _json, _read_json


@dataclass(frozen=True)
class Damage:
    """Something in a run folder that is not as it was written, and what it belongs to."""

    file: str
    what: str
    cell: tuple[str, int] | None = None  # a block of seeds: trajectory and number
    belongs: str = ""  # or what else was saved: "layout/N20", "theory/exact_N20", "figures", "result"

    def __str__(self) -> str:
        where = (
            f" (block {self.cell[1]} of {self.cell[0]})" if self.cell else f" ({self.belongs})" if self.belongs else ""
        )
        return f"{self.file}{where}: {self.what}"


def verify(path: str | Path) -> list[Damage]:
    """All damage, file by file; a block that is simply not done yet is none."""
    path = Path(path)
    found: list[Damage] = []
    if _read_json(path / "run.json") is None:
        found.append(Damage("run.json", "is damaged or missing", belongs="run"))
    claims: dict[str, tuple[str, dict[str, Any]]] = {}
    coming: set[tuple[str, str]] = set()  # files that were about to be replaced, and by what
    counts: dict[str, int] = {}
    for line in manifest.lines(path):
        name = f"{manifest.FOLDER}/{line.file}"
        if line.entry is None and line.torn:
            continue  # a session that was killed while it wrote; what the line meant to say is simply not done
        if line.entry is None:
            found.append(Damage(name, f"line {line.number} is damaged", belongs="manifest"))
            continue
        if str(line.entry.get("saved")).startswith("layout/"):
            counts[line.entry["saved"].removeprefix("layout/")] = int(line.entry["cells"])
        coming |= {(str(file), str(digest)) for file, digest in line.entry.get("replacing", {}).items()}
        for file, digest in line.entry.get("files", {}).items():
            claims[file] = (digest, line.entry)  # a later line holds
    done: set[tuple[str, int]] = set()
    for file, (digest, entry) in claims.items():
        cell = (str(entry["cell"][0]), int(entry["cell"][1])) if "cell" in entry else None
        done |= {cell} if cell else set()
        what = _wrong(path, file, digest)
        if what and not _is_one_of(path, file, coming):
            found.append(Damage(file, what, cell, "" if cell else str(entry.get("saved"))))
    if (path / "result.json").exists() or any(entry.get("saved") == "result" for _, entry in claims.values()):
        for name, count in counts.items():
            lost = [k for k in range(count) if (name, k) not in done]
            found += [Damage(manifest.FOLDER, "no undamaged line names it", (name, k)) for k in lost]
        if "result.json" not in claims and not _is_one_of(path, "result.json", coming):
            found.append(Damage("result.json", "no undamaged line names it", belongs="result"))
    for checkpoint in sorted((path / "checkpoints").glob("*.ckpt")):
        try:
            unpack(checkpoint.read_bytes())
        except (OSError, ValueError) as error:
            found.append(Damage(f"checkpoints/{checkpoint.name}", str(error), belongs="checkpoint"))
    return found


def _wrong(path: Path, file: str, digest: Any) -> str | None:
    """What is wrong with a file that the manifest names."""
    relative = Path(file)
    if relative.is_absolute() or ".." in relative.parts or (path / file).is_symlink():
        return "lies outside of the run"
    try:
        return None if sha256(path / file) == digest else "differs from what was written"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _is_one_of(path: Path, file: str, coming: set[tuple[str, str]]) -> bool:
    """Whether a file is what a process, killed since, was about to put there."""
    return any(name == file and _wrong(path, file, digest) is None for name, digest in coming)


def restore_record(path: str | Path) -> bool:
    """Write `run.json` again from the manifest, where every session keeps a copy; whether there was one."""
    for entry in manifest.entries(Path(path)):
        record = entry.get("session", {}).get("run")
        if isinstance(record, dict) and record.get("format_version") == FORMAT_VERSION:
            write_atomically(Path(path) / "run.json", _json(record))
            return True
    return False


def discard(run: RunFolder, damage: list[Damage]) -> None:
    """Take away what is damaged and can be made again: checkpoints, lines of the manifest, saved files."""
    for one in damage:
        if one.belongs == "checkpoint":
            (run.path / one.file).unlink(missing_ok=True)
    if any(one.belongs == "manifest" for one in damage):
        manifest.drop_damaged(run.path)
