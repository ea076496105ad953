"""Checkpoints of unfinished blocks: one small file each, whole or not there, checked by SHA-256 when it is read."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from .files import pack, unpack, write_atomically

FORMAT = 1


class Checkpoints:
    """What `engine.train` keeps of its blocks, in a folder."""

    def __init__(self, folder: Path, identity: str, say: Callable[[str], None]):
        self.folder, self.say = folder, say
        self.stamp = np.frombuffer(bytes.fromhex(identity), np.uint8)

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """What was kept of a block; None, said aloud, if it is damaged or was made by other code."""
        path = self.folder / f"{name}.ckpt"
        try:
            arrays = unpack(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.say(f"Checkpoint {path.name} is damaged ({error}); its block starts again.")
            return None
        if int(arrays.pop("format", np.int64(0))) != FORMAT:
            self.say(f"Checkpoint {path.name} is of another version; its block starts again.")
            return None
        if not np.array_equal(arrays.pop("identity", None), self.stamp):
            self.say(f"Checkpoint {path.name} belongs to other settings or versions; its block starts again.")
            return None
        return arrays

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a block in place of what was kept of it."""
        self.folder.mkdir(exist_ok=True)
        write_atomically(
            self.folder / f"{name}.ckpt", pack({**arrays, "format": np.int64(FORMAT), "identity": self.stamp})
        )

    def drop(self, name: str) -> None:
        """Forget a block."""
        (self.folder / f"{name}.ckpt").unlink(missing_ok=True)
