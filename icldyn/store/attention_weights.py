"""Attention weights out of checkpoints of other people's models (.npz, .safetensors): every head's W_Q, W_K, W_V, W_O.

A folder holds one file for every checkpoint, in it or in a folder of its own (checkpoint-500/model.safetensors). Names tell the
layout; row-vector activations x W throughout, so that W_QK = W_Q W_K^T and W_OV = W_V W_O. R is the width of a head:

    blocks.0.attn.W_Q, W_K, W_V (H, D, R), W_O (H, R, D)        TransformerLens
    h.0.attn.c_attn.weight (D, 3D), c_proj.weight (D, D)        GPT-2; transposed, as in nanoGPT, likewise
    layers.0.attention.query_key_value.weight (3D, D), dense    GPT-NeoX and Pythia: H x (query, key, value) x R rows
    layers.0.self_attn.q_proj.weight (H R, D), k_, v_, o_proj   Llama and its kin; fewer key heads are shared by neighbours
    W_Q, W_K, W_V, W_O (L, H, D, R), or (H, D, R) of one layer  plain arrays

or four patterns given by hand, such as "enc.{layer}.q". Biases, gains of normalisation and rotary positions are not folded in:
with rotations W_QK is that of two tokens at the same place. Reading runs no code.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks
from . import npz

ENDINGS = (".npz", ".safetensors")
MOST_BYTES = 2**38  # of all arrays of an npz together, unpacked; only those of attention are read
MOST_MEMBERS = 100_000
LAYER = "{layer}"
LAYOUTS = {  # what a weight is called, without what stands before
    "TransformerLens": tuple(f"blocks.{LAYER}.attn.W_{x}" for x in "QKVO"),
    "GPT-2": (f"h.{LAYER}.attn.c_attn.weight", f"h.{LAYER}.attn.c_proj.weight"),
    "GPT-NeoX": (f"layers.{LAYER}.attention.query_key_value.weight", f"layers.{LAYER}.attention.dense.weight"),
    "Llama": tuple(f"layers.{LAYER}.self_attn.{x}_proj.weight" for x in "qkvo"),
    "plain": ("W_Q", "W_K", "W_V", "W_O"),
}
HEADS_IN_CONFIG = ("n_head", "num_attention_heads", "num_heads", "n_heads")


@dataclass(frozen=True)
class Naming:
    """How to find the weights: what the user said beyond the names of the file."""

    names: tuple[str, ...] | None = None  # of W_Q, W_K, W_V, W_O, with {layer}
    heads: int | None = None  # of matrices that hold all heads
    transposed: bool = False  # matrices under `names` are (out, in), as in torch


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads of one layer, float64: W_Q, W_K, W_V (H, D, R) and W_O (H, R, D)."""

    W_Q: np.ndarray
    W_K: np.ndarray
    W_V: np.ndarray
    W_O: np.ndarray


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights: its name in the folder, and the last number in it, which is the step."""

    path: Path
    name: str
    step: int | None


def checkpoints(folder: str | Path) -> list[Checkpoint]:
    """The files of a folder, in the order of the numbers in their names.

    Raises:
        icldyn.BadArgument: if there is no such folder, none in it, or a model that is cut into several files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise checks.refuse("folder", "be a folder of checkpoints", str(folder))
    files = [p for pattern in ("*", "*/*") for p in folder.glob(pattern) if p.suffix in ENDINGS and p.is_file()]
    if not files:
        raise checks.BadArgument(
            f"Argument `folder` must hold .npz or .safetensors files, but {str(folder)!r} has none."
        )
    for path in files:
        if re.search(r"-\d+-of-\d+$", path.stem):
            raise checks.BadArgument(
                f"Argument `folder` must hold each model in one file, but {path.name!r} is a part of one."
            )
    return sorted((_checkpoint(path, folder) for path in files), key=lambda one: _order(one.name))


def checkpoint(path: str | Path) -> Checkpoint:
    """One file, wherever it is.

    Raises:
        icldyn.BadArgument: if it is none.
    """
    path = Path(path)
    if path.suffix not in ENDINGS or not path.is_file():
        raise checks.refuse("reference", "be an .npz or .safetensors file", str(path))
    return _checkpoint(path, path.parent)


def layers(one: Checkpoint, naming: Naming) -> list[int]:
    """Numbers of the layers that a file holds attention weights of, ascending."""
    with _opened(one) as file:
        return sorted(_layout(file, naming)[1])


def read(one: Checkpoint, layer: int, naming: Naming) -> Heads:
    """The heads of one layer.

    Raises:
        icldyn.BadArgument: a sentence with the file's name: what is missing, misshapen, not a number, or damaged.
    """
    with _opened(one) as file:
        layout, found = _layout(file, naming)
        if layer not in found:
            raise checks.BadArgument(f"Argument `folder` must hold layer {layer} in every file, but this one does not.")
        names, part = found[layer]
        arrays = [_numbers(file, name)[part] for name in names]
        split = {"GPT-2": _gpt2, "GPT-NeoX": _neox, "Llama": _llama}.get(layout, _by_head)
        return _checked(split(names, arrays, naming, lambda: _count(one, file.metadata, naming, layout)))


def _checkpoint(path: Path, folder: Path) -> Checkpoint:
    name = path.relative_to(folder).as_posix()
    numbers = re.findall(r"\d+", name.removesuffix(path.suffix))
    return Checkpoint(path, name, int(numbers[-1]) if numbers else None)


def _order(name: str) -> list[tuple[int, int, str]]:
    """Numbers by their size, text as text."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


@dataclass(frozen=True)
class _File:
    """An open file: shapes of all its arrays, and the numbers of one when they are asked for."""

    shapes: Mapping[str, tuple[int, ...]]
    numbers: Callable[[str], np.ndarray]
    metadata: Mapping[str, str]


@contextmanager
def _opened(one: Checkpoint) -> Iterator[_File]:
    try:
        with (_open_npz if one.path.suffix == ".npz" else _open_safetensors)(one.path) as file:
            yield file
    except checks.BadArgument as error:
        raise checks.BadArgument(f"{one.name}: {error}") from None
    except Exception as error:  # whatever a damaged file makes of its reader
        why = " ".join(str(error).split())[:200]
        raise checks.BadArgument(f"{one.name}: it must be a whole {one.path.suffix} file, but is not: {why}.") from None


@contextmanager
def _open_npz(path: Path) -> Iterator[_File]:
    with zipfile.ZipFile(path) as archive:
        members = npz.members(archive, MOST_MEMBERS, MOST_BYTES)
        shapes = {name: npz.header(archive, name, member)[0] for name, member in members.items()}
        yield _File(shapes, lambda name: npz.numbers(archive, name, members[name]), {})


@contextmanager
def _open_safetensors(path: Path) -> Iterator[_File]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        yield _File(shapes, file.get_tensor, file.metadata() or {})


def _layout(file: _File, naming: Naming) -> tuple[str, dict[int, tuple[tuple[str, ...], Any]]]:
    """Which layout the names are of; by layer, its names and the part of the arrays that is this layer's."""
    candidates = LAYOUTS if naming.names is None else {"given": naming.names}
    for layout, patterns in candidates.items():
        found = [_matching(file.shapes, pattern, anywhere=naming.names is None) for pattern in patterns]
        if not any(found):
            continue
        for pattern, one in zip(patterns, found, strict=True):
            if set(one) != set().union(*found):
                raise checks.BadArgument(f"Argument `folder` must hold {pattern} of every layer, but one is missing.")
        by_layer = {layer: tuple(one[layer] for one in found) for layer in found[0]}
        if LAYER not in patterns[0] and len(shape := file.shapes[by_layer[0][0]]) == 4:
            return layout, {layer: (by_layer[0], layer) for layer in range(shape[0])}
        return layout, {layer: (names, ...) for layer, names in by_layer.items()}
    some = ", ".join(checks.shown(name)[1:-1] for name in list(file.shapes)[:5])
    wanted = f"arrays named {', '.join(naming.names)}" if naming.names else f"names of {', '.join(LAYOUTS)}"
    raise checks.BadArgument(
        f"Argument `names` must say where W_Q, W_K, W_V and W_O are (such as 'enc.{LAYER}.q'): there are no {wanted} "
        f"among {some} ..."
    )


def _matching(names: Mapping[str, Any], pattern: str, anywhere: bool) -> dict[int, str]:
    """Names by layer; `anywhere`: they may have parts before the pattern."""
    before, layer, after = (re.escape(part) for part in pattern.partition(LAYER))
    expression = ("(?:.*[./])?" if anywhere else "") + before + (r"(\d+)" if layer else "()") + after
    found: dict[int, str] = {}
    for name in names:
        match = re.fullmatch(expression, name)
        if match and found.setdefault(int(match[1] or 0), name) != name:
            raise checks.BadArgument(
                f"Argument `names` must tell {found[int(match[1] or 0)]} from {name}: both are {pattern}."
            )
    return found


def _numbers(file: _File, name: str) -> np.ndarray:
    a = file.numbers(name)
    if a.dtype.kind != "f" and a.dtype.name != "bfloat16":
        raise checks.BadArgument(f"Argument `{name}` must hold floating-point numbers, but holds {a.dtype}.")
    return checks.array(name, a.astype(np.float64))


def _count(one: Checkpoint, metadata: Mapping[str, str], naming: Naming, layout: str) -> int:
    """How many heads a matrix holds: as given, or from config.json beside the file or above it, or from its metadata."""
    if naming.heads is not None:
        return naming.heads
    for place in (one.path.parent, one.path.parent.parent):
        try:
            config = json.loads((place / "config.json").read_text())
        except (OSError, ValueError):
            continue
        for name in HEADS_IN_CONFIG:
            if isinstance(config, dict) and name in config:
                return checks.integer(f"{name} of config.json", config[name], 1)
    for name in HEADS_IN_CONFIG:
        if metadata.get(name, "").isdigit():
            return checks.integer(name, int(metadata[name]), 1)
    raise checks.BadArgument(
        f"Argument `num-heads` must be given: weights in the layout of {layout} do not say how many heads they hold, and no "
        "config.json beside them does."
    )


def _cut(W: np.ndarray, H: int, name: str) -> np.ndarray:
    """(D, H R) into (H, D, R)."""
    if W.ndim != 2 or W.shape[1] % H:
        raise checks.BadArgument(f"Argument `{name}` must hold {H} heads of one width, but has shape {W.shape}.")
    return W.reshape(W.shape[0], H, -1).transpose(1, 0, 2)


def _by_head(
    names: tuple[str, ...], arrays: list[np.ndarray], naming: Naming, count: Callable[[], int]
) -> list[np.ndarray]:
    if all(a.ndim == 3 for a in arrays):
        return arrays
    if naming.transposed:
        arrays = [a.T for a in arrays]
    H = count()
    *inner, W_O = (_cut(a if k < 3 else a.T, H, name) for k, (name, a) in enumerate(zip(names, arrays, strict=True)))
    return [*inner, W_O.transpose(0, 2, 1)]


def _gpt2(
    names: tuple[str, ...], arrays: list[np.ndarray], naming: Naming, count: Callable[[], int]
) -> list[np.ndarray]:
    fused, output = arrays
    if fused.ndim != 2 or 3 * min(fused.shape) != max(fused.shape):
        raise checks.BadArgument(
            f"Argument `{names[0]}` must have shape (D, 3D) or (3D, D), but has shape {fused.shape}."
        )
    if fused.shape[0] > fused.shape[1]:  # of a torch Linear
        fused, output = fused.T, output.T
    H = count()
    Q, K, V = (_cut(part, H, names[0]) for part in np.split(fused, 3, axis=1))
    return [Q, K, V, _cut(output.T, H, names[1]).transpose(0, 2, 1)]


def _neox(
    names: tuple[str, ...], arrays: list[np.ndarray], naming: Naming, count: Callable[[], int]
) -> list[np.ndarray]:
    fused, output = arrays
    H = count()
    both = _cut(fused.T, H, names[0])
    if both.shape[2] % 3:
        raise checks.BadArgument(
            f"Argument `{names[0]}` must hold {H} heads of one width, but has shape {fused.shape}."
        )
    return [*np.split(both, 3, axis=2), _cut(output, H, names[1]).transpose(0, 2, 1)]


def _llama(
    names: tuple[str, ...], arrays: list[np.ndarray], naming: Naming, count: Callable[[], int]
) -> list[np.ndarray]:
    H = count()
    Q = _cut(arrays[0].T, H, names[0])
    shared = []
    for name, a in zip(names[1:3], arrays[1:3], strict=True):
        W = _cut(a.T, max(a.shape[0] // Q.shape[2], 1), name)
        if H % len(W):
            raise checks.BadArgument(f"Argument `{name}` must hold a divisor of {H} heads, but holds {len(W)}.")
        shared.append(np.repeat(W, H // len(W), axis=0))
    return [Q, *shared, _cut(arrays[3], H, names[3]).transpose(0, 2, 1)]


def _checked(arrays: list[np.ndarray]) -> Heads:
    """The four arrays, when their shapes fit each other."""
    H, D, R = arrays[0].shape
    wanted = {"W_Q": (H, D, R), "W_K": (H, D, R), "W_V": (H, D, None), "W_O": (H, arrays[2].shape[2], D)}
    return Heads(*(checks.array(name, a, shape=wanted[name]) for name, a in zip(wanted, arrays, strict=True)))
