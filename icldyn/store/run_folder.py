"""A run folder: complete or resumable at every instant.

    run.json       what was asked: study, settings, versions, device; written once
    data.zarr/     seeds/NAME and theory/NAME, named dimensions, filled with NaN until a cell of seeds is done
    manifest/      what is done, with checksums; append-only, a file for each process that wrote
    checkpoints/   unfinished blocks
    figures/       PNG
    result.json    what came out: claims, wall time, memory
    locks/         who is writing

A cell of seeds is first written to `data.zarr`, then named in the manifest: what the manifest does not name does not exist.
Nothing in a folder is ever unpickled or executed.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import platform
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__, checks
from ..trajectory import Trajectory
from . import arrays, manifest
from .checkpoints import Checkpoints
from .files import NAME, UNFINISHED, run_path, sha256, sync, tidy, write_atomically
from .locks import Lock, ending

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..engine.blocks import Cell
    from ..engine.experiment import Experiment
    from ..engine.train import Options

FORMAT_VERSION = 2
KINDS = ("seeds", "theory")
PACKAGES = ("icldyn", "jax", "jaxlib", "optax", "diffrax", "numpy", "xarray", "zarr", "matplotlib")
DECIDE_BITS = ("icldyn", "jax", "jaxlib", "optax")
LARGEST_JSON = 2**26
LAYOUT = -1  # among the cells to do again: metadata and coordinates of a trajectory
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


class RunFolder:
    """One run on disk. `create` a new one, `resume` one to go on writing, or `open` one to read."""

    def __init__(self, path: Path, record: dict[str, Any], say: Callable[[str], None] = _say):
        self.path, self.record, self.say = path, record, say
        self._needed = 0  # bytes that layouts claim
        self._lock: Lock | None = None
        self._manifest: manifest.Writer | None = None

    # ------------------------------------------------------------------ to open

    @classmethod
    def create(
        cls,
        path: str | Path,
        study: str = "",
        scale: str = "",
        config: Mapping[str, Any] | None = None,
        *,
        share: tuple[int, int] = (1, 1),
        say: Callable[[str], None] = _say,
    ) -> RunFolder:
        """A new folder, to write.

        Raises:
            icldyn.BadArgument: if the path holds anything already, or cannot be written.
        """
        path = _folder(path)
        if path.is_dir() and any(not _unfinished(p) for p in path.iterdir()):
            what = "already holds another run" if (path / "run.json").exists() else "is not empty"
            raise checks.BadArgument(f"Argument `out` must be a new or empty folder, but {str(path)!r} {what}.")
        here = _here()
        record = {
            "format_version": FORMAT_VERSION,
            "study": study,
            "scale": scale,
            "config": json.loads(json.dumps(dict(config or {}), default=_plain)),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **here,
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(path / "run.json", _json(record), exclusive=True)
        except FileExistsError:  # another process of the same run was faster
            raise checks.BadArgument(
                f"Argument `out` must be a new or empty folder, but {str(path)!r} already holds another run."
            ) from None
        except OSError as error:
            raise _cannot_write(path, error) from None
        return cls(path, record, say)._writing(share, {})

    @classmethod
    def open(cls, path: str | Path, write: bool = False) -> RunFolder:
        """An existing folder, to read, or to add figures and results to.

        Raises:
            icldyn.BadArgument: if it holds no run, a damaged one, or one of a newer format.
        """
        path = Path(path)
        told = (_read_json(path / "run.json", checked=False) or {}).get("format_version")
        if isinstance(told, int) and told != FORMAT_VERSION:
            raise checks.BadArgument(
                f"Argument `run` must be of format {FORMAT_VERSION}, which this version of icldyn reads, but {str(path)!r} is of "
                f"format {told}."
            )
        record = _read_json(path / "run.json")
        wanted = {"study": str, "scale": str, "config": dict, "versions": dict}
        if record is None or not all(isinstance(record.get(key), kind) for key, kind in wanted.items()):
            copy = "; icldyn verify RUN --repair restores it" if (path / manifest.FOLDER).is_dir() else ""
            raise checks.BadArgument(
                f"Argument `run` must be a run folder, but {str(path)!r} has no readable run.json{copy}."
            )
        return cls(path, record)._writing((1, 1), {}) if write else cls(path, record)

    @classmethod
    def resume(
        cls,
        path: str | Path,
        study: str = "",
        scale: str = "",
        config: Mapping[str, Any] | None = None,
        *,
        share: tuple[int, int] = (1, 1),
        allow_skew: bool = False,
        say: Callable[[str], None] = _say,
    ) -> RunFolder:
        """The folder to go on writing, or a new one if there is none.

        Raises:
            icldyn.BadArgument: if it was started with other settings, if versions or the kind of device differ (unless
                `allow_skew`; the manifest then says so), or if another process writes it.
        """
        if not (run_path("out", path) / "run.json").exists():
            try:
                return cls.create(path, study, scale, config, share=share, say=say)
            except checks.BadArgument:
                if not (Path(path) / "run.json").exists():
                    raise
        path = _folder(path)
        run = cls.open(path)
        run.say = say
        asked = json.loads(json.dumps(dict(config or {}), default=_plain))
        for name, now, then in [("study", study, run.record["study"])] + [
            (name, asked.get(name), run.record["config"].get(name)) for name in {**asked, **run.record["config"]}
        ]:
            if now != then:
                raise checks.BadArgument(
                    f"Argument `{name}` must be {then!r}, as when {str(path)!r} was started, but is {now!r}."
                )
        skew = run._skew()
        if skew and not allow_skew:
            raise checks.BadArgument(
                f"Argument `run` must be resumed where it was started, to keep its bits, but {str(path)!r} was made with "
                f"{'; '.join(skew)}. Give --allow-skew to go on all the same."
            )
        return run._writing(share, {"skew": skew} if skew else {})

    def _skew(self) -> list[str]:
        """What differs between the start of the run and here, of what decides the bits."""
        here, then = _here(), self.record
        pairs = [(name, then["versions"].get(name), here["versions"].get(name)) for name in DECIDE_BITS]
        pairs += [(name, then.get(name), here[name]) for name in ("device", "flags", "commit")]
        return [f"{name} {old}, here {new}" for name, old, new in pairs if old != new]

    def _writing(self, share: tuple[int, int], facts: Mapping[str, Any]) -> RunFolder:
        try:
            for name in ("data.zarr", "checkpoints", "figures", "locks", manifest.FOLDER):
                if (self.path / name).is_symlink():
                    raise checks.BadArgument(f"Argument `run` must hold no links, but {name} in it is one.")
            self._lock = Lock(self.path, share)
            session = {"host": platform.node(), "pid": os.getpid(), "shard": list(share), **_here(), **facts}
            self._manifest = manifest.Writer(self.path, {**session, "run": self.record})
        except OSError as error:
            self.close()
            raise _cannot_write(self.path, error) from None
        if share == (1, 1):  # no one else writes
            tidy(self.path)
        return self

    def close(self) -> None:
        """Stop writing."""
        if self._manifest is not None:
            self._manifest.close()
        if self._lock is not None:
            self._lock.release()
        self._lock = self._manifest = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # ------------------------------------------------------------------ to write

    def train(
        self,
        experiments: Mapping[str, Experiment],
        options: Options | None = None,
        *,
        redo: Collection[tuple[str, int]] | None = None,
    ) -> dict[str, float]:
        """Train what this folder does not hold yet. Names become `data.zarr/seeds/NAME`.

        Returns seconds of compilation and of running, and seed-steps per second. With `redo`, exactly the cells that it names
        (trajectory, number) are trained again; number LAYOUT is metadata and coordinates.

        Raises:
            icldyn.checks.Stopped: if asked to stop; what was done is kept.
            OSError: if the disk is full or fails; what was done is kept.
        """
        from ..engine.train import Options, train

        with self.keeper() as keeper:
            work = list(zip(experiments.values(), self.sinks(experiments, keeper, redo), strict=True))
            told = train(work, dataclasses.replace(options or Options(), keeper=keeper))
        kept = [p for p in (self.path / "checkpoints").glob("*.ckpt") if p.stem.rpartition("-")[0] in experiments]
        if kept and not self.missing(experiments):  # of processes that died just after they had written a block
            for path in kept:
                path.unlink(missing_ok=True)
        return told

    def sinks(
        self,
        experiments: Mapping[str, Experiment],
        keeper: _Keeper,
        redo: Collection[tuple[str, int]] | None = None,
        prefix: str = "",
    ) -> list[_Cells]:
        """Where `engine.train` puts the cells of these experiments; `prefix` tells apart the labels of several runs."""
        return [
            _Cells(self, _known_name(name), place, f"{prefix}{name}", keeper.writer, redo)
            for place, name in enumerate(experiments)
        ]

    def keeper(self, folder: Path | None = None) -> _Keeper:
        """Where `engine.train` keeps unfinished blocks."""
        identity = hashlib.sha256(_json({"run": self.record, "here": _here()})).hexdigest()
        return _Keeper((folder or self.path) / "checkpoints", identity, self.say)

    def save(self, kind: str, name: str, trajectory: Trajectory, replace: bool = False) -> None:
        """Add a whole trajectory, kind "seeds" or "theory", under a new name."""
        checks.one_of("kind", kind, KINDS)
        _ = self._writer  # or refuse
        path = self._group(kind) / _known_name(name)
        if path.exists():
            if not replace and f"{kind}/{name}" in self.saved():
                raise checks.BadArgument(
                    f"Argument `name` must be new in this run, but {kind}/{name} is there already."
                )
            shutil.rmtree(path)  # begun by a process that was killed, or to be repaired
        arrays.save(path, trajectory)
        self.add_files(f"{kind}/{name}", [*self._groups(kind), *(p for p in path.rglob("*") if p.is_file())])

    def save_figures(self, figures: Mapping[str, Figure]) -> list[Path]:
        """Write every figure as PNG; returns the paths."""
        import matplotlib.pyplot as plt

        from ..plot.overlay import image_of

        _ = self._writer  # or refuse
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        drawn = {}
        for name, figure in figures.items():
            drawn[folder / f"{_known_name(name)}.png"] = image_of(figure)
            plt.close(figure)
        self._replace("figures", drawn)
        return list(drawn)

    def ending(self) -> Any:
        """`with run.ending() as other`: "" if this process is to end the run, else who is ending it; see `complete`."""
        return ending(self.path)

    @property
    def complete(self) -> bool:
        """Whether a process ended the run, and all that was ever saved is there."""
        names = {str(name) for name, _ in self._entries("saved")}
        return "result" in names and names <= self.saved() and self.result is not None

    def finish(self, **facts: Any) -> None:
        """Mark the run complete, with what came out of it."""
        self._writer.append(finishing=True)  # so that the last line, and with it the wall time, is now
        tidy(self.path)  # all is done: no one else writes
        facts = {"wall_seconds": round(manifest.seconds(self.path), 1), **facts}
        self._replace("result", {self.path / "result.json": _json(facts)})

    def _replace(self, what: str, contents: Mapping[Path, bytes]) -> None:
        """Write whole files; at every instant the manifest knows what is there, be it the old or the new."""
        digests = {str(f.relative_to(self.path)): hashlib.sha256(data).hexdigest() for f, data in contents.items()}
        self._writer.append(replacing=digests)
        for file, data in contents.items():
            write_atomically(file, data)
        self._writer.append(saved=what, files=digests)

    def add_files(self, what: str, files: Sequence[Path]) -> None:
        """Name finished files in the manifest."""
        self._writer.append(saved=what, files=self._checksums(files))

    def _tell_room(self, layout: Trajectory) -> None:
        """Warn, once, if the disk has less room than the trajectories may need, uncompressed."""
        before, free = self._needed, shutil.disk_usage(self.path).free
        self._needed += sum(array.nbytes for array in layout.values.values())
        if before <= free < self._needed:
            self.say(f"This run may need {self._needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free.")

    @property
    def _writer(self) -> manifest.Writer:
        if self._manifest is None:
            raise checks.BadArgument(
                "Argument `run` must be made by RunFolder.create or RunFolder.resume to be written, but is opened to read."
            )
        return self._manifest

    def _checksums(self, files: Sequence[Path]) -> dict[str, str]:
        for file in files:
            sync(file)
        for folder in {file.parent for file in files}:
            sync(folder)
        return {str(file.relative_to(self.path)): sha256(file) for file in files}

    def _groups(self, kind: str) -> list[Path]:
        """Metadata of the groups above a trajectory."""
        return [self.path / "data.zarr" / "zarr.json", self.path / "data.zarr" / kind / "zarr.json"]

    def _group(self, kind: str) -> Path:
        import zarr

        for file in self._groups(kind):
            if not file.exists():
                with suppress(zarr.errors.ContainsGroupError):  # another process was faster
                    zarr.open_group(file.parent, mode="a", zarr_format=3)
        return self.path / "data.zarr" / kind

    # ------------------------------------------------------------------ to read

    @property
    def result(self) -> dict[str, Any] | None:
        """What came out of a complete run; None before."""
        return _read_json(self.path / "result.json")

    def _entries(self, key: str) -> Iterator[tuple[Any, dict[str, Any]]]:
        for entry in manifest.entries(self.path):
            if key in entry and isinstance(entry.get("files", {}), dict):
                yield entry[key], entry

    def saved(self) -> set[str]:
        """What else than cells is done: "layout/NAME", "theory/NAME", "figures", "result"."""
        return {str(name) for name, entry in self._entries("saved") if self._there(entry)}

    def _there(self, entry: Mapping[str, Any]) -> bool:
        return all((self.path / str(name)).exists() for name in entry["files"])

    def committed(self) -> dict[str, set[int]]:
        """For every trajectory of seeds, the numbers of the cells that are done."""
        done: dict[str, set[int]] = {}
        for cell, entry in self._entries("cell"):
            if self._there(entry):
                done.setdefault(str(cell[0]), set()).add(int(cell[1]))
        return done

    def diverged(self) -> dict[str, int]:
        """How many seeds diverged so far, for every trajectory that lost any."""
        lost: dict[tuple[str, int], int] = {}
        for cell, entry in self._entries("cell"):
            lost[str(cell[0]), int(cell[1])] = int(entry.get("diverged", 0))
        names = dict.fromkeys(name for (name, _), count in lost.items() if count)
        return {name: sum(count for (other, _), count in lost.items() if other == name) for name in names}

    def missing(self, experiments: Mapping[str, Experiment]) -> int:
        """How many cells of these experiments are not done yet."""
        done, missing = self.committed(), 0
        for name in experiments:
            wanted = self._cell_count(name)
            missing += 1 if wanted is None else wanted - len(done.get(name, ()))
        return missing

    def _cell_count(self, name: str) -> int | None:
        found = [entry["cells"] for what, entry in self._entries("saved") if what == f"layout/{name}"]
        return int(found[-1]) if found else None

    def names(self, kind: str) -> list[str]:
        """Names of the trajectories of a kind, in the order of the study, whichever process was the faster."""
        checks.one_of("kind", kind, KINDS)
        prefixes = {"theory": "theory/", "seeds": "layout/"}
        found: dict[str, int] = {}
        for k, (name, entry) in enumerate(self._entries("saved")):
            place = entry.get("place")
            for prefix in {prefixes[kind], f"{kind}/"}:
                if str(name).startswith(prefix):
                    found.setdefault(name.removeprefix(prefix), place if isinstance(place, int) else k)
        return [n for n in sorted(found, key=found.__getitem__) if NAME.fullmatch(n)]

    def load(self, kind: str) -> dict[str, Trajectory]:
        """All trajectories of a kind; their values are read when they are asked for.

        Raises:
            icldyn.BadArgument: if one is incomplete or damaged.
        """
        done, loaded = self.committed(), {}
        for name in self.names(kind):
            count = self._cell_count(name) if kind == "seeds" else None
            if count is not None and len(done.get(name, ())) < count:
                raise checks.BadArgument(
                    f"Argument `run` must be a complete run, but {str(self.path)!r} stopped before its end: "
                    f"{len(done.get(name, ()))} of {count} blocks of {name} are done. Go on with --resume."
                )
            try:
                loaded[name] = arrays.load(self.path / "data.zarr" / kind / name)
            except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                raise arrays.refuse_damage(self.path / "data.zarr" / kind / name, error) from None
        return loaded


class _Cells:
    """A sink for one experiment: its cells become chunks of `data.zarr/seeds/NAME` and lines of the manifest."""

    def __init__(
        self,
        run: RunFolder,
        name: str,
        place: int,
        label: str,
        writer: _WriterThread,
        redo: Collection[tuple[str, int]] | None,
    ):
        self.run, self.name, self.place, self.label, self.writer = run, name, place, label, writer
        self.redo = None if redo is None else {number for which, number in redo if which == name}
        self.before: dict[int, Any] = {}  # files of the cells named in the manifest, whether they are there or not
        self.layout: dict[str, Any] = {}
        for cell, entry in run._entries("cell"):
            if cell[0] == name:
                self.before[int(cell[1])] = entry["files"]
        for what, entry in run._entries("saved"):
            if what == f"layout/{name}":
                self.layout = entry
        if not self.layout:  # being created by another process, or by one that was killed before it said so
            told = _read_json(run.path / "data.zarr" / "seeds" / name / "zarr.json", checked=False) or {}
            self.layout = told.get("attributes", {})
        self.block = self.layout["block"] if isinstance(self.layout.get("block"), int) else None

    def begin(self, experiment: Experiment, layout: Trajectory, cells: Sequence[Cell]) -> Collection[int]:
        """Create the group, or check that it is of the same experiment; returns what is not to be trained."""
        self.experiment = experiment
        path = self.run._group("seeds") / self.name
        size, attrs = cells[0].size, {"fingerprint": experiment.fingerprint}
        if self.layout.get("fingerprint", experiment.fingerprint) != experiment.fingerprint:
            raise checks.BadArgument(
                f"Argument `run` must hold the same experiments, but {self.name} in {str(self.run.path)!r} was trained from "
                "other code or other numbers."
            )
        self.run._tell_room(layout)
        if not path.is_dir():
            arrays.create(path, layout, size, attrs)
        elif self.redo is not None and LAYOUT in self.redo:
            arrays.restore(path, layout, size, attrs)
        if f"layout/{self.name}" not in self.run.saved():
            files = self.run._checksums([*self.run._groups("seeds"), *arrays.files_of_layout(path, layout)])
            facts = {"cells": len(cells), "block": experiment.block, "place": self.place, **attrs, "files": files}
            self.run._writer.append(saved=f"layout/{self.name}", **facts)
        self.region = arrays.Region(path)
        if self.region.seeds_in_chunk != size:
            raise checks.refuse("block", f"be {self.region.seeds_in_chunk}, as in this run", experiment.block)
        if self.redo is not None:
            return {cell.number for cell in cells} - self.redo
        there = self.run.path
        return {k for k, files in self.before.items() if all((there / str(name)).exists() for name in files)}

    def commit(self, cell: Cell, values: Mapping[str, np.ndarray], diverged_step: np.ndarray, **facts: Any) -> None:
        """Write a cell, then name it in the manifest; in the writer's thread."""
        where = (*self.experiment.index(cell.point), cell.rows)

        def write() -> None:
            files = self.run._checksums(self.region.write(where, {**values, "diverged_step": diverged_step}))
            if self.before.get(cell.number, files) != files:
                self.run.say(
                    f"Block {cell.number} of {self.name} came out otherwise than before, and is kept as it is now."
                )
            lost = int((diverged_step >= 0).sum())
            self.run._writer.append(cell=[self.name, cell.number], files=files, diverged=lost, **facts)

        self.writer.submit(write)


class _Keeper(Checkpoints):
    """Checkpoints, and the thread that writes finished cells: a checkpoint is dropped after the cells before it are written."""

    def __init__(self, folder: Path, identity: str, say: Callable[[str], None]):
        super().__init__(folder, identity, say)
        self.writer = _WriterThread()

    def __enter__(self) -> _Keeper:
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        self.writer.finish(tell=kind is None or kind.__name__ == "Stopped")

    def drop(self, name: str) -> None:
        """Forget a block once it is written."""
        self.writer.submit(lambda: super(_Keeper, self).drop(name))


class _WriterThread:
    """Writes in the background, in order, a few cells behind; an error stops it and is raised at the next call."""

    def __init__(self) -> None:
        self.waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(16)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (job := self.waiting.get()) is not None:
            if self.error is None:
                try:
                    job()
                except BaseException as error:
                    self.error = error

    def submit(self, job: Callable[[], None]) -> None:
        """Have it done, after all before it."""
        if self.error is not None:
            raise self.error
        self.waiting.put(job)

    def flush(self) -> None:
        """Wait until all is written so far; raise what went wrong."""
        reached = threading.Event()
        self.submit(reached.set)
        while not reached.wait(0.05) and self.error is None:
            pass
        if self.error is not None:
            raise self.error

    def finish(self, tell: bool = True) -> None:
        """Write all that is left; raise what went wrong."""
        self.waiting.put(None)
        self.thread.join()
        if tell and self.error is not None:
            raise self.error


def free_name(root: str | Path, name: str) -> Path:
    """root/name, or root/name-2, root/name-3 ... whichever is still free."""
    path, k = Path(root) / name, 2
    while path.exists():
        path, k = Path(root) / f"{name}-{k}", k + 1
    return path


def version(name: str) -> str:
    """Installed version of a package."""
    try:
        return __version__ if name == "icldyn" else metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _here() -> dict[str, Any]:
    """What decides the bits of a run in this process, and what else one would like to know."""
    import jax

    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
    partitionable = jax.config.jax_threefry_partitionable
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "commit": _commit(),
        "device": f"{jax.default_backend()} {jax.devices()[0].device_kind} {platform.machine()}",
        "flags": {"XLA_FLAGS": sorted(flags), "jax_threefry_partitionable": bool(partitionable)},
    }


def _commit() -> str | None:
    """The git commit of the code that runs, with "+" after it if the checkout has changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5)
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", __file__], cwd=here, capture_output=True, timeout=5
        )
        if head.returncode or tracked.returncode:
            return None
        package = ["git", "status", "--porcelain", "--", ".."]  # a run folder in the checkout is no change of the code
        changes = subprocess.run(package, cwd=here, capture_output=True, text=True, timeout=5)
        return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
    except (OSError, subprocess.TimeoutExpired):
        return None


def _folder(path: str | Path) -> Path:
    path = run_path("out", path)
    try:
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise checks.BadArgument(f"Argument `out` must be a new folder, but {str(path)!r} is not a folder.")
    except OSError as error:
        raise _cannot_write(path, error) from None
    return path


def _cannot_write(path: Path, error: OSError) -> Exception:
    if error.errno in DISK_FULL:
        return error
    reason = error.strerror or "it cannot be written"
    return checks.BadArgument(f"Argument `out` must be a folder that can be written, but is {str(path)!r}: {reason}.")


def _known_name(name: str) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name) or name == "zarr.json":
        raise checks.refuse("name", "be letters, digits, '_', '.' and '-', at most 100, and not zarr.json", name)
    return name


def _unfinished(path: Path) -> bool:
    return path.name.startswith(".run.json.") and UNFINISHED.fullmatch(path.name) is not None


def _json(record: Mapping[str, Any]) -> bytes:
    """JSON for people, with a checksum of its content."""
    plain = json.loads(json.dumps(record, default=_plain))
    return json.dumps({**plain, "sha256": _digest(plain)}, indent=2).encode() + b"\n"


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path, checked: bool = True) -> dict[str, Any] | None:
    """A record without its checksum; None if it is not there, damaged, or too large to be ours."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            return None
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict) or checked and record.pop("sha256", None) != _digest(record):
            return None
        return record
    except (OSError, ValueError, RecursionError):
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)
