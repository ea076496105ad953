"""Trajectories as zarr v3 groups: named dimensions, CRC32C on every chunk, one chunk for every cell of seeds.

A group is created whole, filled with NaN, and written by region; arrays are never resized and no two writers share a chunk.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import checks
from ..trajectory import Trajectory
from .files import unfinished_name

if TYPE_CHECKING:
    import xarray as xr

CODECS = {"bytes", "zstd", "crc32c"}
DTYPES = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64))}
LARGEST_CHUNK = 2**31
LARGEST_METADATA = 2**20


def create(path: Path, layout: Trajectory, seeds_in_chunk: int, attrs: Mapping[str, Any]) -> None:
    """Make an empty group for a layout; if another process makes it at the same time, either will do."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    unfinished = unfinished_name(path)
    coords = sorted(set(layout.coords) - set(sum((layout.dims[n] for n in layout.values), ())))
    group = zarr.open_group(
        unfinished, mode="w", zarr_format=3, attributes={**layout.attrs, **attrs, "coordinates": " ".join(coords)}
    )
    lead = len(layout.coords["diverged_step"][0])

    def add(name: str, dims: Sequence[str], array: np.ndarray, chunks: tuple[int, ...], **settings: Any) -> Any:
        return group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=chunks,
            dimension_names=list(dims),
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
            **settings,
        )

    def piece(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*(1,) * (lead - 1), min(seeds_in_chunk, shape[lead - 1]), *shape[lead:])

    for name, (dims, array) in layout.coords.items():
        if name == "diverged_step":
            add(name, dims, array, piece(array.shape), fill_value=array.flat[0])
        else:
            add(name, dims, array, array.shape)[...] = array
    for name, array in layout.values.items():
        add(name, layout.dims[name], array, piece(array.shape), fill_value=np.nan)
    _move(unfinished, path)


def restore(path: Path, layout: Trajectory, seeds_in_chunk: int, attrs: Mapping[str, Any]) -> None:
    """Write metadata and coordinates of a group again; its cells stay."""
    fresh = unfinished_name(path)
    create(fresh, layout, seeds_in_chunk, attrs)
    for file in files_of_layout(fresh, layout):
        (path / file.relative_to(fresh)).parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, path / file.relative_to(fresh))
    shutil.rmtree(fresh)


def save(path: Path, trajectory: Trajectory) -> None:
    """Write a whole trajectory, one chunk for each value."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    data = trajectory.to_xarray()
    encoding = {v: {"compressors": [ZstdCodec(level=1), Crc32cCodec()]} for v in (*data.data_vars, *data.coords)}
    unfinished = unfinished_name(path)
    data.to_zarr(unfinished, mode="w", encoding=encoding, zarr_format=3, consolidated=False)
    _move(unfinished, path)


def _move(unfinished: Path, path: Path) -> None:
    try:
        os.rename(unfinished, path)
    except OSError:
        shutil.rmtree(unfinished)
        if not path.is_dir():
            raise


class Region:
    """Writes cells of one group."""

    def __init__(self, path: Path):
        import zarr

        self.path = path
        self.group = zarr.open_group(path, mode="r+", zarr_format=3)
        settings = {"write_empty_chunks": True}  # a cell of NaN is data too
        self.arrays = {
            name: zarr.open_array(path / name, mode="r+", zarr_format=3, config=settings)
            for name, array in self.group.arrays()
        }

    @property
    def seeds_in_chunk(self) -> int:
        """How many seeds share a chunk."""
        return self.arrays["diverged_step"].chunks[-1]

    def write(self, where: tuple[int | slice, ...], values: Mapping[str, np.ndarray]) -> list[Path]:
        """Write one cell of every value; returns the files."""
        written = []
        for name, value in values.items():
            array = self.arrays[name]
            array[where] = value
            numbers = [(k.start if isinstance(k, slice) else k) // c for k, c in zip(where, array.chunks, strict=False)]
            numbers += [0] * (array.ndim - len(numbers))
            written.append(self.path / name / "c" / "/".join(map(str, numbers)))
        return written


def load(path: Path) -> Trajectory:
    """A trajectory whose values are read when they are asked for.

    Raises:
        ValueError: if the group asks for anything but plain arrays of a bounded size.
    """
    import xarray as xr

    check(path)
    data = xr.open_dataset(path, engine="zarr", consolidated=False, chunks=None, cache=False, zarr_format=3)
    found = Trajectory.from_xarray(data)
    return dataclasses.replace(found, values={name: Stored(v, path / name) for name, v in found.values.items()})


@dataclasses.dataclass(frozen=True)
class Stored:
    """Values on disk: indexing selects, `numpy.asarray` reads and checks."""

    variable: xr.Variable
    path: Path

    shape = property(lambda self: self.variable.shape)
    ndim = property(lambda self: self.variable.ndim)
    dtype = property(lambda self: self.variable.dtype)

    def __getitem__(self, index: Any) -> Stored:
        return Stored(self.variable[index], self.path)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        try:
            return np.asarray(self.variable.values, dtype)
        except (ValueError, RuntimeError, OSError) as error:
            raise refuse_damage(self.path, error) from None


def check(path: Path) -> None:
    """Refuse metadata that would make zarr do more than read plain numbers.

    Raises:
        ValueError: a sentence about what is wrong.
    """
    if path.is_symlink():
        raise ValueError(f"{path.name} is a link")
    for member in (path, *(p for p in sorted(path.iterdir()) if p.is_dir())):
        file = member / "zarr.json"
        if member.is_symlink() or file.stat().st_size > LARGEST_METADATA:
            raise ValueError(f"{path.name}/{member.name} is a link or too large")
        told = json.loads(file.read_text())
        if member == path:
            if (told["zarr_format"], told["node_type"]) != (3, "group") or (path / ".zgroup").exists():
                raise ValueError(f"{path.name} is not a group of zarr v3")
            continue
        if (told["zarr_format"], told["node_type"]) != (3, "array") or (member / ".zarray").exists():
            raise ValueError(f"{path.name}/{member.name} is not an array of zarr v3")
        codecs = {codec["name"] for codec in told["codecs"]}
        if not codecs <= CODECS or told["data_type"] not in DTYPES or told.get("storage_transformers"):
            raise ValueError(f"{path.name}/{member.name} is not made of plain numbers")
        chunk = [int(n) for n in told["chunk_grid"]["configuration"]["chunk_shape"]]
        shape = [int(n) for n in told["shape"]]
        if told["chunk_grid"]["name"] != "regular" or 8 * np.prod(chunk, dtype=object) > LARGEST_CHUNK:
            raise ValueError(f"{path.name}/{member.name} has chunks above {LARGEST_CHUNK:,} bytes")
        pieces = np.prod([-(-n // max(c, 1)) for n, c in zip(shape, chunk, strict=True)], dtype=object)
        chunks = member / "c"
        there = sum(1 for p in chunks.rglob("*") if p.is_file()) if chunks.is_dir() else int(chunks.is_file())
        if pieces > there:
            raise ValueError(f"{path.name}/{member.name} claims {pieces} chunks, but has {there}")


def files_of_layout(path: Path, layout: Trajectory) -> list[Path]:
    """The files of a new group that no cell ever writes: metadata and coordinates."""
    fixed = [path / name / "c" for name in layout.coords if name != "diverged_step"]
    return sorted([*path.glob("**/zarr.json"), *(p for folder in fixed for p in folder.rglob("*") if p.is_file())])


def refuse_damage(path: Path, error: Exception) -> checks.BadArgument:
    """The sentence for data that cannot be read."""
    return checks.BadArgument(
        f"Argument `run` must hold sound data, but {path} does not ({error}); icldyn verify says what is damaged."
    )
