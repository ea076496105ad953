"""A run folder: `run.json` (what ran), `data.zarr` (named dimensions, one group a trajectory), `figures/`.

Every trajectory is written when it is done, under another name, and then renamed; so is `run.json`, and what `run.json`
does not name does not exist. Arrays carry checksums (CRC32C). Nothing in a folder is ever unpickled or executed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__, checks
from ..trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT_VERSION = 1
NAME = re.compile(r"(seeds|theory)/[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
PACKAGES = ("icldyn", "jax", "jaxlib", "optax", "diffrax", "numpy", "xarray", "zarr", "matplotlib")


class RunFolder:
    """One run on disk. `create` a new one or `open` one that exists."""

    def __init__(self, path: Path, record: dict[str, Any]):
        self.path, self.record = path, record

    @classmethod
    def create(cls, path: str | Path, study: str, scale: str, config: Mapping[str, Any]) -> RunFolder:
        """A new folder.

        Raises:
            icldyn.BadArgument: if the path holds anything already, or cannot be written.
        """
        path = Path(path)
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise checks.BadArgument(f"Argument `out` must be a new folder, but {str(path)!r} is not a folder.")
        if path.is_dir() and any(path.iterdir()):
            what = "already holds another run" if (path / "run.json").exists() else "is not empty"
            raise checks.BadArgument(f"Argument `out` must be a new or empty folder, but {str(path)!r} {what}.")
        record = {
            "format_version": FORMAT_VERSION,
            "study": study,
            "scale": scale,
            "config": dict(config),
            "status": "running",
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "commit": _commit(),
            "trajectories": {},
        }
        run = cls(path, record)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run._write_record()
        except OSError as error:
            reason = error.strerror or "it cannot be written"
            raise checks.BadArgument(
                f"Argument `out` must be a folder that can be written, but is {str(path)!r}: {reason}."
            ) from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing folder.

        Raises:
            icldyn.BadArgument: if it holds no run, or one of a newer format.
        """
        path = Path(path)
        try:
            record = json.loads((path / "run.json").read_text())
            version, study = int(record["format_version"]), str(record["study"])
            wanted = {"config": dict, "status": str, "trajectories": dict} if version <= FORMAT_VERSION else {}
            if not all(isinstance(record[key], kind) for key, kind in wanted.items()):
                raise TypeError
            if not all(NAME.fullmatch(name) for name in record.get("trajectories", ())):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise checks.BadArgument(
                f"Argument `run` must be a run folder, but {str(path)!r} has no readable run.json."
            ) from None
        if version > FORMAT_VERSION:
            raise checks.BadArgument(
                f"Argument `run` must be of format {FORMAT_VERSION} or older, but {str(path)!r} ({study}) is of format {version}."
            )
        return cls(path, record)

    def save(self, kind: str, name: str, trajectory: Trajectory) -> None:
        """Add a trajectory, kind "seeds" or "theory", under a new name; what is there already is never touched."""
        import zarr
        from zarr.codecs import Crc32cCodec, ZstdCodec

        data = trajectory.to_xarray()
        encoding = {v: {"compressors": [ZstdCodec(level=1), Crc32cCodec()]} for v in (*data.data_vars, *data.coords)}
        store = self.path / "data.zarr"
        if not store.exists():
            zarr.open_group(store, mode="a", zarr_format=3)
        if not (store / kind).exists():
            zarr.open_group(store / kind, mode="a", zarr_format=3)
        unfinished = store / f".{kind}-{name}.{os.getpid()}.tmp"
        data.to_zarr(unfinished, mode="w", encoding=encoding, zarr_format=3, consolidated=False)
        os.replace(unfinished, store / kind / name)
        self.record["trajectories"][f"{kind}/{name}"] = {"diverged": trajectory.diverged, "seeds": trajectory.num_seeds}
        self._write_record()

    def load(self, kind: str) -> dict[str, Trajectory]:
        """All finished trajectories of a kind."""
        import xarray as xr

        names = [k.split("/", 1)[1] for k in self.record["trajectories"] if k.startswith(f"{kind}/")]
        store = self.path / "data.zarr" / kind
        loaded = {}
        for name in names:
            with xr.open_zarr(store / name, consolidated=False) as data:
                loaded[name] = Trajectory.from_xarray(data.load())
        return loaded

    def save_figures(self, figures: Mapping[str, Figure]) -> list[Path]:
        """Write every figure as PNG; returns the paths."""
        import matplotlib.pyplot as plt

        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        written = []
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png")
            plt.close(figure)
            written.append(folder / f"{name}.png")
        return written

    def finish(self, **facts: Any) -> None:
        """Mark the run complete, with what else is known of it."""
        self.record.update(facts, status="complete")
        self._write_record()

    def _write_record(self) -> None:
        unfinished = self.path / f".run.json.{os.getpid()}.tmp"
        with unfinished.open("w") as file:
            json.dump(self.record, file, indent=2, default=_plain)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, self.path / "run.json")


def free_name(root: str | Path, name: str) -> Path:
    """root/name, or root/name-2, root/name-3 ... whichever is still free."""
    path, k = Path(root) / name, 2
    while path.exists():
        path, k = Path(root) / f"{name}-{k}", k + 1
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


def version(name: str) -> str:
    """Installed version of a package."""
    try:
        return __version__ if name == "icldyn" else metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


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
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=5)
        return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
    except (OSError, subprocess.TimeoutExpired):
        return None
