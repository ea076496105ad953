"""Files that are whole or not there: written under another name, synced, renamed. Reading runs no code and is bounded."""

import hashlib
import io
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .. import checks

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=,-]{0,99}")
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.tmp|.+\.[0-9a-f]{32}\.partial")  # ours, and those of zarr


def run_path(name: str, value: str | Path) -> Path:
    """A path for a run: printable, without "..", its last part letters, digits, "_", ".", "=", "," and "-"."""
    if not isinstance(value, str | Path):
        raise checks.refuse(name, "be a path", value)
    path, text = Path(value), str(value)
    parts = [len(part.encode(errors="replace")) for part in path.parts]
    if max(parts, default=0) > 255 or sum(parts) + len(parts) > 4000:
        raise checks.refuse(name, "have at most 255 bytes between slashes and 4,000 in all", text)
    if not text.isprintable() or ".." in path.parts or not NAME.fullmatch(path.name):
        raise checks.BadArgument(
            f"Argument `{name}` must be a path without '..' whose last part has at most 100 letters, digits, '_', '.', '=', ',' "
            f"and '-', starting with a letter or digit, but is {text[:120]!r}."
        )
    return path


def write_atomically(path: Path, content: bytes, exclusive: bool = False) -> None:
    """Write a whole file or nothing; it survives a loss of power once this returns.

    Raises:
        FileExistsError: with `exclusive`, if the file is there already.
    """
    unfinished = unfinished_name(path)
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(unfinished, path)
        else:
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync(path.parent)


def check_place(name: str, path: str | None, endings: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written, before any work; None is none.

    Raises:
        icldyn.BadArgument: if it has none of these endings, or is no file in a folder that exists.
    """
    if path is None:
        return
    if Path(path).suffix not in endings:
        raise checks.refuse(name, f"end in {' or '.join(endings)}", path)
    if not Path(path).parent.is_dir() or Path(path).is_dir():
        raise checks.refuse(name, "be a file in a folder that exists", path)


def write_all(contents: Mapping[str, bytes]) -> list[str]:
    """Write what a command was asked for, each file whole or not at all; returns their paths.

    Raises:
        icldyn.BadArgument: at the first that cannot be written, with the reason.
    """
    for path, content in contents.items():
        try:
            write_atomically(Path(path), content)
        except OSError as error:
            raise checks.BadArgument(f"{path!r} cannot be written: {error.strerror or error}.") from None
    return list(contents)


def unfinished_name(path: Path) -> Path:
    """A name to write under before the rename, which no other process on any host uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def tidy(folder: Path) -> None:
    """Take away what killed processes left half written; for when no one else writes."""
    for here, folders, files in os.walk(folder):
        for name in filter(UNFINISHED.fullmatch, files):
            Path(here, name).unlink(missing_ok=True)
        for name in filter(UNFINISHED.fullmatch, list(folders)):
            folders.remove(name)
            shutil.rmtree(Path(here, name), ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays by name as the bytes of an npz behind their SHA-256."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()


def unpack(content: bytes) -> dict[str, np.ndarray]:
    """Back from `pack`.

    Raises:
        ValueError: if a byte is wrong, or if the content is not plain numbers of the size that it claims.
    """
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise ValueError("its SHA-256 differs")
    return read_npz(content[32:])


def read_npz(content: bytes) -> dict[str, np.ndarray]:
    """Arrays of an npz: plain numbers alone, never pickled objects, and never more than the content holds.

    Raises:
        ValueError: if it holds anything else.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("it is compressed")
                data = io.BytesIO(archive.read(member))
                version = np.lib.format.read_magic(data)
                if version != (1, 0):
                    raise ValueError(f"{member.filename} is of format {version}")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(data)
                body = data.read()
                if dtype.kind not in "biuf" or fortran and len(shape) > 1:
                    raise ValueError(f"{member.filename} holds {dtype}")
                if len(body) != dtype.itemsize * int(np.prod(shape, dtype=object)):
                    raise ValueError(f"{member.filename} does not hold the numbers that it claims")
                arrays[member.filename.removesuffix(".npy")] = np.frombuffer(body, dtype).reshape(shape)
    except (zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error)) from None
    return arrays
