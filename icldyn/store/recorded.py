"""A recorded run of another codebase, read from an npz: sizes are checked before numbers are read, and nothing is unpickled.

    prompts (P, N+1, D+1)   last token the query, its label 0
    targets (P,) or (P, 1)
    lr, softmax, divide_by_length
    loss (T,)               mean squared error without the 1/2, before each of T full-batch steps
    init_value (H, D+1, D+1)
    init_key_query (H, D+1, D+1)            merged, logits x_q^T M_h x_m; or
    init_key, init_query (H, R, D+1)        separate, M_h = init_query_h^T init_key_h
    final_...               the same weights after the last step, as far as they were kept

Numbers are float16, float32 or float64 (lr may be an integer), switches bool or uint8; a single number has shape () or (1,).
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import checks
from . import npz

MOST_BYTES = 2**31  # of all arrays together, unpacked
MOST_MEMBERS = 100
MERGED = ("init_key_query",)
SEPARATE = ("init_key", "init_query")
ALWAYS = ("prompts", "targets", "lr", "loss", "softmax", "divide_by_length", "init_value")
SWITCHES = ("softmax", "divide_by_length")


@dataclass(frozen=True)
class Recorded:
    """A record that was checked. Arrays keep the type they were stored in."""

    path: Path
    arrays: Mapping[str, np.ndarray]  # of the schema, single numbers as shape ()
    left_out: tuple[str, ...]  # other arrays of the file

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights, without "init_"."""
        return ("value", "key_query") if "init_key_query" in self else ("value", "key", "query")

    @property
    def sizes(self) -> dict[str, int]:
        """H, D, N, P, T, and R of separate keys and queries."""
        P, tokens, width = self["prompts"].shape
        sizes = {"H": len(self["init_value"]), "D": width - 1, "N": tokens - 1, "P": P, "T": len(self["loss"])}
        return sizes if "init_key_query" in self else sizes | {"R": self["init_key"].shape[1]}

    @property
    def lr(self) -> float:
        """The learning rate, of the loss without the 1/2."""
        return float(self["lr"])

    @property
    def softmax(self) -> bool:
        """Whether attention is softmax."""
        return bool(self["softmax"])

    @property
    def divide_by_length(self) -> bool:
        """Whether the context sums of linear attention are divided by N."""
        return bool(self["divide_by_length"])


def read_recorded(path: str | Path) -> Recorded:
    """Read and check a record.

    Raises:
        icldyn.BadArgument: a sentence that says what is missing, misshapen, not a number, too large or damaged.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise checks.refuse("file", "be an npz file", str(path))
        with zipfile.ZipFile(path) as archive:
            members = npz.members(archive, MOST_MEMBERS, MOST_BYTES)
            headers = {name: npz.header(archive, name, member) for name, member in members.items()}
            wanted = _schema(headers)
            arrays = {name: npz.numbers(archive, name, members[name]) for name in wanted}
    except checks.BadArgument:
        raise
    except Exception as error:  # whatever a hostile file makes of zipfile, zlib and their like
        why = " ".join(str(error).split())[:200]
        raise checks.BadArgument(
            f"Argument `file` must be a whole npz file, but {str(path)!r} is not: {why}."
        ) from None
    arrays = {name: a.reshape(()) if wanted[name] == () else a for name, a in arrays.items()}
    checks.gather(*(lambda name=name: _finite(name, arrays[name]) for name in arrays))
    arrays["targets"] = arrays["targets"].reshape(-1)
    _values(arrays)
    return Recorded(path, arrays, tuple(sorted(set(headers) - set(wanted))))


def _schema(headers: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, tuple[int, ...]]:
    """The shape of every array that is read, from the headers alone; () for single numbers."""
    if "init_key_query" in headers and any(name in headers for name in SEPARATE):
        raise checks.BadArgument(
            "Arguments `init_key_query` and `init_key`, `init_query` must not be given together: weights are merged or separate."
        )
    kind = SEPARATE if any(name in headers for name in SEPARATE) else MERGED
    missing = [name for name in (*ALWAYS, *kind) if name not in headers]
    if missing:
        instead = " (or `init_key` and `init_query`)" if "init_key_query" in missing else ""
        listed = ", ".join(f"`{name}`" for name in missing)
        raise checks.BadArgument(f"Argument `file` must hold {listed}{instead}, but does not.")
    checks.gather(*(lambda name=name: _kind(name, headers[name][1]) for name in (*ALWAYS, *kind)))
    wanted = _shapes({name: shape for name, (shape, _) in headers.items()}, kind)
    finals = {f"final_{n[5:]}": wanted[n] for n in ("init_value", *kind) if f"final_{n[5:]}" in headers}
    checks.gather(*(lambda name=name: _kind(name, headers[name][1]) for name in finals))
    wanted |= finals
    checks.gather(*(lambda name=name: _shape(name, headers[name][0], wanted[name]) for name in wanted))
    return wanted


def _shapes(given: Mapping[str, tuple[int, ...]], kind: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """What the shapes have to be: P, N, D from the prompts, H and R from the weights, T from the loss."""
    prompts, loss, first = given["prompts"], given["loss"], given[kind[0]]
    if len(prompts) != 3 or prompts[0] < 1 or prompts[1] < 2 or prompts[2] < 2:
        raise checks.BadArgument(
            "Argument `prompts` must have shape (P, N+1, D+1), at least one prompt of a pair and the query, "
            f"but has shape {checks.shown(prompts)}."
        )
    if len(loss) != 1 or loss[0] < 1:
        raise checks.BadArgument(
            f"Argument `loss` must have shape (T,), T at least 1, but has shape {checks.shown(loss)}."
        )
    if len(first) != 3 or min(first) < 1:
        axes = "(H, D+1, D+1)" if kind == MERGED else "(H, R, D+1)"
        raise checks.BadArgument(f"Argument `{kind[0]}` must have shape {axes}, but has shape {checks.shown(first)}.")
    P, _, width = prompts
    H = first[0]
    targets = (P,) if len(given["targets"]) == 1 else (P, 1)
    weights = dict.fromkeys(kind, (H, width, width) if kind == MERGED else (H, first[1], width))
    single = dict.fromkeys(("lr", *SWITCHES), ())
    return {"prompts": prompts, "targets": targets, "loss": loss, **single, **weights, "init_value": (H, width, width)}


def _shape(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted and not (wanted == () and shape == (1,)):
        raise checks.BadArgument(f"Argument `{name}` must have shape {wanted}, but has shape {checks.shown(shape)}.")


def _kind(name: str, dtype: np.dtype) -> None:
    if name in SWITCHES:
        allowed, must = dtype.kind == "b" or dtype == np.uint8, "be a bool (or 0 or 1 as uint8)"
    else:
        whole = name == "lr" and dtype.kind in "iu"
        allowed = whole or dtype.kind == "f" and dtype.itemsize in (2, 4, 8)
        must = "hold float16, float32 or float64 numbers"
    if not allowed:
        raise checks.BadArgument(f"Argument `{name}` must {must}, but holds {dtype}.")


def _finite(name: str, a: np.ndarray) -> None:
    bad = 0 if name in SWITCHES else int((~np.isfinite(a)).sum())
    if bad:
        raise checks.BadArgument(f"Argument `{name}` must be finite, but {bad} of {a.size} entries are not.")


def _values(arrays: Mapping[str, np.ndarray]) -> None:
    """What the numbers must be."""
    labels = np.count_nonzero(arrays["prompts"][:, -1, -1])
    if labels:
        raise checks.BadArgument(
            f"Argument `prompts` must end with the query, its label 0, but {labels} of {len(arrays['prompts'])} labels are not 0."
        )
    if (arrays["loss"] < 0).any():
        raise checks.BadArgument(
            f"Argument `loss` must not be negative, but its smallest entry is {arrays['loss'].min():g}."
        )
    checks.real("lr", float(arrays["lr"]), above=0)
    for name in SWITCHES:
        if int(arrays[name]) not in (0, 1):
            raise checks.refuse(name, "be 0 or 1", int(arrays[name]))
