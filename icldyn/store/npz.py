"""Arrays of an npz of others, compressed or not: sizes are checked before numbers are read, and nothing is unpickled."""

import math
import zipfile

import numpy as np

from .. import checks

LONGEST_HEADER = 10_000


def members(archive: zipfile.ZipFile, most_members: int, most_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The arrays of the archive by name; their sizes together within bounds."""
    listed = archive.infolist()
    if not 0 < len(listed) <= most_members:
        raise checks.BadArgument(f"Argument `file` must hold 1 to {most_members} arrays, but holds {len(listed)}.")
    found = {m.filename.removesuffix(".npy"): m for m in listed}
    if len(found) < len(listed):
        raise checks.BadArgument("Argument `file` must hold every array once, but holds one of them twice.")
    total = sum(m.file_size for m in listed)
    if total > most_bytes:
        raise checks.BadArgument(f"Argument `file` must hold at most {most_bytes:,} bytes, but claims {total:,}.")
    return found


def header(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that a member claims, when they are what its size allows."""
    name = checks.shown(name)[1:-1]
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version not in readers:
                raise ValueError(f"its format is {version}")
            shape, _, dtype = readers[version](file, max_header_size=LONGEST_HEADER)
            begins = file.tell()
    except Exception as error:  # whatever a hostile header makes of its parser
        why = " ".join(str(error).split())[:120]
        raise checks.BadArgument(f"Argument `{name}` must be a numpy array, but cannot be read: {why}.") from None
    if dtype.hasobject:
        raise checks.BadArgument(
            f"Argument `{name}` must hold numbers, but holds Python objects, which are never unpickled."
        )
    if (
        not all(type(n) is int and n >= 0 for n in shape)
        or math.prod(shape) * dtype.itemsize != member.file_size - begins
    ):
        raise checks.BadArgument(
            f"Argument `{name}` must hold what its header claims, {checks.shown(shape)} of {dtype}, "
            f"but holds {max(member.file_size - begins, 0):,} bytes."
        )
    return shape, dtype


def numbers(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> np.ndarray:
    """The numbers of a member whose header was read, and whose checksum holds."""
    try:
        with archive.open(member) as file:
            a = np.lib.format.read_array(file, allow_pickle=False, max_header_size=LONGEST_HEADER)
            file.read(1)  # to the end, where zipfile compares the checksum
    except (ValueError, MemoryError) as error:
        raise checks.BadArgument(f"Argument `{name}` must be whole, but cannot be read: {error}.") from None
    return np.ascontiguousarray(a, dtype=a.dtype.newbyteorder("="))
