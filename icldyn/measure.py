"""`icldyn measure FOLDER`: effective ranks and subspace distances of attention heads along checkpoints of other people's models.

For every checkpoint, layer and head, in float64 from the factors (`measures.spectra`, `measures.subspace`):

- er_0, er_1, er_2 of W_QK = W_Q W_K^T and W_OV = W_V W_O;
- their subspace distances to the reference: key and query side of W_QK, write and read side of W_OV;
- their Frobenius norms.

The mean over heads stands for a layer. The reference is M_inf of the distance: the last checkpoint, whose own distance is then 0
whether training converged or not, or a later one, given by name. `store.attention_weights` says what files are read.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks
from .store import attention_weights as weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".pdf", ".svg")
LEFT_OUT = 3  # er_k for k = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Measured:
    """Numbers of every checkpoint (T), layer (L) and head (H), by name; NaN where one says nothing."""

    folder: str
    checkpoints: list[weights.Checkpoint]
    reference: weights.Checkpoint
    layers: list[int]
    values: dict[str, np.ndarray]  # (T, L, H)
    D: int
    R: int
    rcond: float
    rank: int | None

    @property
    def chance(self) -> float:
        """Distance of random heads, sqrt(1 - r/D)."""
        return math.sqrt(1 - min(self.rank or self.R, self.D) / self.D)

    @property
    def by_layer(self) -> dict[str, np.ndarray]:
        """Means over the heads that have a number, (T, L)."""
        out = {}
        for name, value in self.values.items():
            count = np.isfinite(value).sum(axis=2)
            out[name] = np.where(count > 0, np.nansum(value, axis=2) / np.maximum(count, 1), np.nan)
        return out

    def rows(self, heads: bool = False) -> list[dict[str, Any]]:
        """A row for every checkpoint and layer (and head); None where a number says nothing."""
        values = self.values if heads else {name: v[..., None] for name, v in self.by_layer.items()}
        out = []
        for t, l, h in np.ndindex(next(iter(values.values())).shape):
            one = self.checkpoints[t]
            row = {"checkpoint": one.name, "step": one.step, "layer": self.layers[l]} | ({"head": h} if heads else {})
            numbers = {name: float(v[t, l, h]) for name, v in values.items()}
            out.append(row | {name: x if math.isfinite(x) else None for name, x in numbers.items()})
        return out

    def figure(self) -> Figure:
        """er_2 (or the last er_k that heads of this width have) and the distances, by layer, against the step."""
        from .measures.subspace import SIDES
        from .plot.measured import measured_figure

        steps = [one.step for one in self.checkpoints]
        named = None not in steps and len(set(steps)) == len(steps)
        x = np.array(steps if named else range(len(steps)), float)
        means, k = self.by_layer, min(self.R, self.D, LEFT_OUT) - 1
        ranks = {f"effective rank of {kind.upper()}": means[f"{kind}_er_{k}"] for kind in SIDES}
        distances = {", ".join(s.values()): [means[f"{kind}_{x}"] for x in s.values()] for kind, s in SIDES.items()}
        return measured_figure(x, "step" if named else "checkpoint", ranks, distances, self.chance, k)


def measure(
    folder: str | Path,
    *,
    reference: str | Path | None = None,
    rcond: float = 1e-6,
    rank: int | None = None,
    naming: weights.Naming | None = None,
    progress: bool = False,
) -> Measured:
    """Measure every checkpoint of a folder; layer after layer, so that memory holds one layer of two checkpoints.

    Args:
        folder: of .npz or .safetensors files, one for each checkpoint.
        reference: the file whose weights are M_inf; the last checkpoint by default.
        rcond: relative cut of the projector of the distances, and of the ranks.
        rank: fixed rank of the projector instead.
        naming: names, heads and orientation where the file does not tell them.
        progress: whether to show it on standard error.

    Raises:
        icldyn.BadArgument: a sentence that says which file cannot be used, and why.
    """
    checks.real("rcond", rcond, least=0, most=1)
    naming = naming or weights.Naming()
    ordered = weights.checkpoints(folder)
    end = ordered[-1] if reference is None else weights.checkpoint(reference)
    layers = weights.layers(end, naming)
    import jax

    from .engine.progress import Progress

    found: dict[str, list[np.ndarray]] = {}
    with (
        jax.enable_x64(True),
        jax.default_device(jax.local_devices(backend="cpu")[0]),
        Progress("measuring" if progress else False, len(layers) * len(ordered)) as bar,
    ):
        kernel = _kernel(rcond, rank)
        for layer in layers:
            last = weights.read(end, layer, naming)
            if rank is not None:
                checks.integer("rank", rank, 1, min(last.W_Q.shape[1:]))
            for one in ordered:
                heads = weights.read(one, layer, naming)
                _same_shapes(one, heads, last)
                for name, value in kernel(vars(heads), vars(last)).items():
                    found.setdefault(name, []).append(np.asarray(value))
                bar.advance(1)
    H, D, R = last.W_Q.shape
    shape = (len(layers), len(ordered), H)
    values = {name: np.stack(found[name]).reshape(shape).swapaxes(0, 1) for name in _names() if name in found}
    return Measured(str(folder), ordered, end, layers, values, D, R, rcond, rank)


def _names() -> list[str]:
    """All numbers in the order of the table."""
    from .measures.subspace import SIDES

    ranks = [f"er_{k}" for k in range(LEFT_OUT)]
    return [f"{kind}_{name}" for kind, sides in SIDES.items() for name in (*ranks, *sides.values(), "norm")]


def _kernel(rcond: float, rank: int | None) -> Any:
    """All numbers of all heads of a layer beside those of the reference, name -> (H,)."""
    import jax
    import jax.numpy as jnp

    from .measures import spectra, subspace

    def one_head(now: dict[str, Any], end: dict[str, Any]) -> dict[str, Any]:
        out = {}
        for kind, sides in subspace.SIDES.items():
            M, M_inf = (
                spectra.qk(w["W_Q"], w["W_K"]) if kind == "qk" else spectra.ov(w["W_V"], w["W_O"]) for w in (now, end)
            )
            for k in range(min(M.s.size, LEFT_OUT)):
                out[f"{kind}_er_{k}"] = spectra.effective_rank_of(M.s, k, rcond)
            for side, name in sides.items():
                D = subspace.distance(M, M_inf, side, rcond=rcond, rank=rank)
                out[f"{kind}_{name}"] = jnp.where(subspace.spans_all(M, side, rcond=rcond, rank=rank), jnp.nan, D)
            out[f"{kind}_norm"] = jnp.linalg.norm(M.s)
        return out

    return jax.vmap(one_head)


def _same_shapes(one: weights.Checkpoint, heads: weights.Heads, last: weights.Heads) -> None:
    for name, a in vars(heads).items():
        if a.shape != getattr(last, name).shape:
            wanted = f"have shape {getattr(last, name).shape}, as in the reference"
            raise checks.BadArgument(f"{one.name}: Argument `{name}` must {wanted}, but has shape {a.shape}.")


@dataclass(frozen=True)
class _Options:
    heads: bool = False
    """A row for every head, not their mean."""
    reference: str | None = None
    """The file whose weights the distances are to; the last checkpoint by default. Best is one later than all others."""
    rcond: float = 1e-6
    """Singular values below this times the largest are rounding."""
    rank: int | None = None
    """Distances to the leading so many directions of each checkpoint, instead of all above rcond."""
    names: tuple[str, str, str, str] | None = None
    """Names of W_Q, W_K, W_V and W_O with {layer} in them, such as enc.{layer}.q, where they are not recognised."""
    num_heads: int | None = None
    """Heads of matrices that hold all of them, where no config.json says it."""
    transposed: bool = False
    """Matrices under --names are (out, in), as those of torch."""
    json: bool = False
    """Print for machines."""
    figure: str | None = None
    """Draw ranks and distances of the layers into this file (png, pdf or svg)."""
    out: str | None = None
    """Write the table, with norms, into this csv."""
    quiet: bool = False
    """Show no progress."""


def verb(words: list[str]) -> int:
    """Run `icldyn measure`; returns the exit code."""
    import tyro

    from .store.files import check_place

    if not words or words[0].startswith("-") and words[0] not in ("-h", "--help"):
        raise checks.BadArgument(
            "Argument `folder` must be a folder of checkpoints, but is missing: icldyn measure FOLDER."
        )
    options = tyro.cli(
        _Options,
        prog="icldyn measure FOLDER",
        description="Ranks and subspace distances of attention heads along checkpoints (.npz, .safetensors). Options:",
        args=words[1:] or words[:1] * (words[0] in ("-h", "--help")),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    checks.gather(
        lambda: checks.real("rcond", options.rcond, least=0, most=1),
        lambda: None if options.rank is None else checks.integer("rank", options.rank, 1),
        lambda: None if options.num_heads is None else checks.integer("num-heads", options.num_heads, 1),
        lambda: check_place("figure", options.figure, PICTURES),
        lambda: check_place("out", options.out, (".csv",)),
    )
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # read when jax is imported: heads are too small to be shared out
    naming = weights.Naming(options.names, options.num_heads, options.transposed)
    settings = {"reference": options.reference, "rcond": options.rcond, "rank": options.rank, "naming": naming}
    try:
        found = measure(words[0], **settings, progress=not (options.quiet or options.json))
        rows = found.rows(options.heads)
        written = _write(found, rows, options)
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return 130
    if options.json:
        told = {"folder": found.folder, "reference": str(found.reference.path), "D": found.D, "R": found.R}
        told |= {"heads": next(iter(found.values.values())).shape[2], "rcond": found.rcond, "rank": found.rank}
        print(json.dumps(told | {"chance": found.chance, "rows": rows, "wrote": written}, indent=2))
    else:
        _print(found, rows)
        print("\n".join(f"wrote {path}" for path in written), end="\n" if written else "")
    return 0


def _write(found: Measured, rows: list[dict[str, Any]], options: _Options) -> list[str]:
    from .plot.overlay import image_of
    from .store.files import write_all

    contents = {}
    if options.figure is not None:
        contents[options.figure] = image_of(found.figure(), Path(options.figure).suffix[1:])
    if options.out is not None:
        table = io.StringIO()
        writer = csv.DictWriter(table, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        contents[options.out] = table.getvalue().encode()
    return write_all(contents)


def _print(found: Measured, rows: list[dict[str, Any]]) -> None:
    columns = [name for name in rows[0] if not name.endswith("_norm") and name != "step"]
    cells = [[name.replace("qk_", "QK ").replace("ov_", "OV ") for name in columns]]
    cells += [
        ["-" if row[c] is None else f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        for row in rows
    ]
    cells = [[checks.shown(line[0])[1:-1], *line[1:]] for line in cells]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    for line in cells:
        print(
            "  ".join(
                text.rjust(w) if k else text.ljust(w) for k, (text, w) in enumerate(zip(line, widths, strict=True))
            )
        )
    heads = next(iter(found.values.values())).shape[2]
    print(
        f"\n{len(found.layers)} layers of {heads} heads, D = {found.D}, R = {found.R}; er_k without the k leading directions"
    )
    print(f"distances are to {found.reference.name}; those of random heads are {found.chance:.3f}")
    if found.reference.path.resolve() in [one.path.resolve() for one in found.checkpoints]:
        print("  its own is 0, converged or not: name a later file by --reference if there is one")
    if all(row["qk_key"] is None for row in rows):
        print("  none says anything: a head spans the whole space; take --rank or a larger --rcond")
