"""`icldyn replay FILE.npz`: retrain a recorded run of another codebase and print the largest relative gap of its loss.

The record is full-batch gradient descent on the mean square m = mean_p (y - yhat)^2, without the 1/2. Our loss is m / 2, so that

    w <- w - lr dm/dw    is    w <- w - (2 lr) d(loss)/dw:

the replay descends our loss with twice the recorded rate, from the recorded weights, in float64, and compares m.

The band is what round-off of the record itself may do. M runs more are made in the precision that the record was trained in, with

- initial weights, and prompts that are stored more coarsely, moved at random within half a unit of their last stored place,
- the rate of every single weight, and the numbers of the data, moved by a relative error of root mean square u sqrt(P) / 3, as if
  it were the same in every step: that of a sum of P equal terms one after another, u half a unit relative to 1.

A saddle amplifies these differences, and those of every rounded step, as it amplified the record's own. With m_i the M curves,

    gap(recorded, m)  <=  q rms_i gap(m_i, m)  +  floor,    gap(a, b) = |a - b| / min(a, b),

q of Student's t with M degrees of freedom at 1e-4: where one direction of error rules, as behind a saddle, record and runs are
draws of one normal law, and the bound is missed once in 10^4. The floor is the rounding of the recorded number: u sqrt(P) for its
sum, and delta = u sqrt(N+1) rms(y) for an answer, which moves m by at most 2 delta sqrt(m) + delta^2 (Cauchy and Schwarz). For
final weights the same holds in the Frobenius norm.
"""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks
from .store.recorded import Recorded, read_recorded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .engine.full_batch import FullBatch

Arrays = Mapping[str, np.ndarray]

SADDLE = 1e-4  # where the band is wider, round-off alone can move the loss that far
MISSED = 1e-4  # share of honest records that the band misses
MOST_FOLDED = 2**25  # numbers in the least-squares problem
MOST_RUNS, FEWEST_RUNS = 16, 4  # that make the band
CALL = 10**9  # floating-point operations between two signs of progress
MOST_STEPS = 4096  # likewise
PICTURES = (".png", ".pdf", ".svg")


@dataclass(frozen=True, eq=False)
class Replay:
    """A record beside its replay. Losses are mean squares without the 1/2, before each of T steps."""

    record: Recorded
    loss: np.ndarray  # (T,)
    band: np.ndarray  # (T,): what round-off of the record may do, relative
    weights: dict[str, np.ndarray]  # final_... after the last step, in the record's names and shapes
    finals: dict[str, tuple[float, float]]  # relative gap of each recorded final_ array, and its band
    final_step: int | None  # the step whose weights these are: T, or T-1 where they fit better
    precision: str  # that the record was trained in
    route: str  # "folded", at a cost independent of P and N, or "prompts"
    seconds: float

    @property
    def gap(self) -> np.ndarray:
        """(T,) |recorded - replayed|, relative to the smaller of the two; infinite where one of them is no number."""
        return _apart(self.record["loss"].astype(np.float64), self.loss.astype(np.float64))

    @property
    def away(self) -> np.ndarray:
        """(T,) whether round-off of the record moves the loss by less than 1e-4 at a step."""
        return self.band < SADDLE

    @property
    def outside(self) -> np.ndarray:
        """Steps at which the gap is wider than the band."""
        return np.flatnonzero(~_inside(self.gap, self.band))

    @property
    def within(self) -> bool:
        """Whether the record is reproduced: its losses and final weights lie within the band."""
        return not len(self.outside) and all(bool(_inside(*pair)) for pair in self.finals.values())

    @property
    def facts(self) -> dict[str, Any]:
        """All but the curves, for machines; what is not finite is None."""
        gap, away, record = self.gap, self.away, self.record
        step, widest = int(np.argmax(gap)), int(np.argmax(self.band))
        found = {
            "file": str(record.path),
            **record.sizes,
            "attention": "softmax" if record.softmax else "linear",
            "parametrisation": "merged" if "init_key_query" in record else "separate",
            "lr": record.lr,
            "divide_by_length": record.divide_by_length,
            "dtype": str(self.loss.dtype),
            "precision": self.precision,
            "route": self.route,
            "largest_gap": float(gap[step]),
            "step": step,
            "band_there": float(self.band[step]),
            "largest_gap_away_from_saddles": float(gap[away].max()) if away.any() else None,
            "steps_at_saddles": int((~away).sum()),
            "largest_band": float(self.band[widest]),
            "largest_band_step": widest,
            "first_step_outside": int(self.outside[0]) if len(self.outside) else None,
            "final": {name: {"gap": gap, "band": band} for name, (gap, band) in self.finals.items()},
            "final_step": self.final_step,
            "left_out": list(record.left_out),
            "hint": _hint(self),
            "verdict": "within" if self.within else "outside",
            "seconds": round(self.seconds, 2),
        }
        return _finite(found)

    def figure(self) -> Figure:
        """Both curves, and their gap with its band."""
        from .plot.gaps import gap_figure

        name = checks.shown(self.record.path.name)[1:-1]
        return gap_figure(self.record["loss"].astype(np.float64), self.loss, self.gap, self.band, name)


def replay(path: str | Path, dtype: str = "float64", progress: bool = False) -> Replay:
    """Retrain the record in `path` and compare: `result.gap`, `result.band`, `result.within`.

    Linear attention is trained on its folded weights, at a cost a step that depends on neither P nor N, softmax prompt by prompt;
    both on the CPU. Weights that never reach the answer stay as they are.

    Args:
        path: an npz; `icldyn.store.recorded` says what it holds.
        dtype: "float64", or "float32" to see what that makes of the same run.
        progress: whether to show it on standard error.

    Raises:
        icldyn.BadArgument: if the file is no such record, or the dtype is unknown.
    """
    began = time.perf_counter()
    checks.one_of("dtype", dtype, ("float32", "float64"))
    record = read_recorded(path)
    import jax

    with (
        jax.enable_x64(True),
        jax.default_device(jax.local_devices(backend="cpu")[0]),
        jax.default_matmul_precision("highest"),
        np.errstate(all="ignore"),
    ):
        return _replay(record, dtype, progress, began)


def _replay(record: Recorded, dtype: str, progress: bool, began: float) -> Replay:
    from .engine.progress import Progress

    route, precision, T = _route(record), _precision(record, dtype), record.sizes["T"]
    mine, others = _runs(record, route, dtype, precision)
    M = len(others.params["v"])
    loss, spread = np.empty(T, dtype), np.empty(T)
    with Progress(record.path.name if progress else False, T * (M + 1)) as bar:
        for first, count in _calls(T, mine.most):
            before = mine.params, others.params  # of the last call, which is one step
            part = slice(first, first + count)
            loss[part] = 2 * mine.advance(count)[0]
            apart = _apart(2 * others.advance(count).astype(np.float64), loss[part].astype(np.float64))
            spread[part] = np.sqrt(np.mean(apart**2, axis=0))
            bar.advance(count * (M + 1))
    ends = {T: (mine.params, others.params), T - 1: before}
    finals = {step: _final_gaps(record, *params) for step, params in ends.items()}
    closest = min(finals, key=lambda step: max((gap for gap, _ in finals[step].values()), default=0.0))
    return Replay(
        record=record,
        loss=loss,
        band=_or_infinite(_quantile(M) * spread + _floor(record, loss.astype(np.float64), precision)),
        weights={f"final_{name}": a[0] for name, a in _arrays(record, mine.params).items()},
        finals=finals[closest],
        final_step=closest if finals[closest] else None,
        precision=precision,
        route=route,
        seconds=time.perf_counter() - began,
    )


def _runs(record: Recorded, route: str, dtype: str, precision: str) -> tuple[FullBatch, FullBatch]:
    """The replay, and the M runs of the band."""
    from .engine.full_batch import FullBatch

    rng, data, operations = np.random.default_rng(0), _objective(record, route), _operations(record, route)
    M = MOST_RUNS if operations * MOST_RUNS < 2**23 else FEWEST_RUNS
    most = int(np.clip(CALL // (operations * M), 1, MOST_STEPS))
    summed = np.finfo(precision).eps / 2 * math.sqrt(record.sizes["P"] / 3)
    given = record["lr"].dtype if record["lr"].dtype.kind == "f" else np.float64
    of_rate = max(summed, np.finfo(given).eps / 2)
    exact = _params({n: record[f"init_{n}"][None].astype(np.float64) for n in record.weights})
    moved = _params({n: _moved(rng, record[f"init_{n}"], _stored(record[f"init_{n}"]), M) for n in record.weights})
    coarse = any(np.finfo(record[name].dtype).eps > np.finfo(precision).eps for name in ("prompts", "targets"))
    own = [_summed(rng, _objective(record, route, rng) if coarse else data, summed) for _ in range(M)]
    rates = {n: 2 * record.lr * (1 + of_rate * rng.uniform(-1, 1, a.shape)) for n, a in moved.items()}
    rate = {n: np.full_like(a, 2 * record.lr) for n, a in exact.items()}
    return FullBatch(data, exact, rate, dtype, most), FullBatch(own, moved, rates, precision, most)


def _calls(T: int, most: int) -> list[tuple[int, int]]:
    """First step and number of steps of every call; the last step is a call of its own."""
    return [(k, min(most, T - 1 - k)) for k in range(0, T - 1, most)] + [(T - 1, 1)]


def _route(record: Recorded) -> str:
    """Linear attention is "folded" wherever its least-squares problem is smaller than a pass over the prompts."""
    if record.softmax or _operations(record, "folded") > min(_operations(record, "prompts"), 4 * MOST_FOLDED):
        return "prompts"
    return "folded"


def _operations(record: Recorded, route: str) -> int:
    """Of one step of one run, roughly."""
    P, N, D, H = (record.sizes[n] for n in "PNDH")
    if route == "folded":
        size = D * (D + 1) * (D + 2) // 2
        return 4 * size * min(P, size + 1)
    return 12 * P * H * (N + 1) * (D + 1) if record.softmax else 12 * P * (N * D**2 + D**3)


def _objective(record: Recorded, route: str, rng: np.random.Generator | None = None) -> Any:
    """What is descended; with `rng`, of prompts and targets moved within half a unit of their last stored place."""
    from .objectives.fixed_prompts import fixed_prompts, least_squares

    prompts, targets = record["prompts"], record["targets"]
    if rng is not None:
        prompts, targets = (_moved(rng, a, a.dtype)[0] for a in (prompts, targets))
    data = prompts[:, :-1, :-1], prompts[:, :-1, -1], prompts[:, -1, :-1], targets
    length = record.sizes["N"] if record.divide_by_length else 1
    if route == "folded":
        return least_squares(_model(record), *data, length)
    return fixed_prompts(_model(record), *data, 1.0 if record.softmax else record.sizes["N"] / length)


def _model(record: Recorded) -> Any:
    D, H, R = (record.sizes.get(n) for n in "DHR")
    if record.softmax:
        from .models.softmax_attention import softmax_attention

        return softmax_attention(D, H, R)
    from .models.heads import Heads

    return Heads(D=D, H=H, R=R, zero_blocks=False)  # `separate` refuses R > D, which other code allows


def _params(arrays: Arrays) -> dict[str, np.ndarray]:
    """The model's weights, runs first, from those of the record: what never reaches the answer is left out."""
    params = {"v": arrays["value"][:, :, -1]}
    if "key_query" in arrays:
        return params | {"U": arrays["key_query"][:, :, :-1].swapaxes(2, 3)}
    return params | {"K": arrays["key"], "Q": arrays["query"][..., :-1]}


def _arrays(record: Recorded, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The record's weights, runs first, from those of the model: what never reaches the answer is as at the start."""
    w = {name: np.asarray(a, dtype=np.float64) for name, a in params.items()}
    S = len(w["v"])
    out = {n: np.repeat(record[f"init_{n}"].astype(np.float64)[None], S, axis=0) for n in record.weights}
    out["value"][:, :, -1] = w["v"]
    if "U" in w:
        out["key_query"][:, :, :-1] = w["U"].swapaxes(2, 3)
    else:
        out["key"], out["query"][..., :-1] = w["K"], w["Q"]
    return out


def _final_gaps(record: Recorded, mine: Any, others: Any) -> dict[str, tuple[float, float]]:
    """Relative gap and band of every final array that was recorded, in the Frobenius norm."""
    found, ours, theirs = {}, _arrays(record, mine), _arrays(record, others)
    for name in (n for n in record.weights if f"final_{n}" in record):
        final = record[f"final_{name}"]
        norm = max(float(np.linalg.norm(final.astype(np.float64))), np.finfo(np.float64).tiny)
        gap = np.linalg.norm(final - ours[name][0]) / norm
        apart = np.sqrt(np.mean(np.sum((theirs[name] - ours[name]) ** 2, axis=(1, 2, 3)))) / norm
        band = _quantile(len(theirs[name])) * apart + np.finfo(_stored(final)).eps
        found[f"final_{name}"] = float(_or_infinite(gap)), float(_or_infinite(band))
    return found


def _stored(a: np.ndarray) -> np.dtype:
    """The type that numbers had before they were saved: float64 that float32 holds exactly were float32."""
    fits = a.dtype == np.float64 and (a == a.astype(np.float32)).all()
    return np.dtype(np.float32) if fits else a.dtype


def _precision(record: Recorded, dtype: str) -> str:
    """What the record was trained in: float64 if one of its weights is no float32. Never finer than the replay's own."""
    weights = [record[f"{when}_{n}"] for when in ("init", "final") for n in record.weights if f"{when}_{n}" in record]
    return dtype if any(_stored(a) == np.float64 for a in weights) else "float32"


def _moved(rng: np.random.Generator, a: np.ndarray, stored: np.dtype, runs: int = 1) -> np.ndarray:
    """(runs, ...) `a` in float64, every number moved within half a unit of its last place as `stored`."""
    half = np.spacing(np.abs(a).astype(stored)).astype(np.float64) / 2
    return a + half * rng.uniform(-1, 1, (runs, *a.shape))


def _summed(rng: np.random.Generator, objective: Any, error: float) -> Any:
    """The objective with every number of its data moved by a relative error."""
    import jax

    return jax.tree.map(lambda a: a * (1 + error * rng.uniform(-1, 1, np.shape(a))), objective)


def _floor(record: Recorded, loss: np.ndarray, precision: str) -> np.ndarray:
    """(T,) relative rounding of the recorded loss itself."""
    P, N = record.sizes["P"], record.sizes["N"]
    u, stored = (np.finfo(kind).eps / 2 for kind in (precision, record["loss"].dtype))
    delta = u * math.sqrt((N + 1) * float(np.mean(record["targets"].astype(np.float64) ** 2)))
    return u * math.sqrt(P) + 2 * delta / np.sqrt(loss) + delta**2 / loss + u + stored


def _quantile(M: int) -> float:
    """Student's t with M degrees of freedom, two-sided."""
    from scipy.special import stdtrit

    return float(stdtrit(M, 1 - MISSED / 2))


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """gap(one, other) = |one - other| / min(one, other); infinite where one of them is no number."""
    with np.errstate(all="ignore"):
        apart = np.abs(one - other) / np.minimum(one, other)
    return np.where(one == other, 0.0, np.where(np.isfinite(apart), apart, np.inf))


def _inside(gap: Any, band: Any) -> Any:
    """Whether a gap is a number, and within its band."""
    return np.isfinite(gap) & (gap <= band)


def _or_infinite(value: Any) -> Any:
    return np.where(np.isnan(value), np.inf, value)


def _finite(value: Any) -> Any:
    """For JSON: what is no number becomes None."""
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hint(found: Replay) -> str | None:
    """What a record that is not reproduced looks like, if it looks like something known."""
    if not len(found.outside):
        return None
    recorded, loss = found.record["loss"].astype(np.float64), found.loss.astype(np.float64)
    if np.isclose(2 * recorded[0], loss[0], rtol=SADDLE):
        return "its first loss is half of the mean square: it seems to carry the 1/2"
    if len(loss) > 1 and _inside(_apart(recorded[:-1], loss[1:]), found.band[1:]).all():
        return "its losses are those after each step, not before"
    if found.outside[0] == 0:
        return "its first loss is not that of its initial weights: they, its data or a convention differ"
    return None


@dataclass(frozen=True)
class _Options:
    dtype: str = "float64"
    """Precision of the replay, float64 or float32."""
    json: bool = False
    """Print for machines."""
    figure: str | None = None
    """Draw both curves and their gap into this file (png, pdf or svg)."""
    out: str | None = None
    """Write step, recorded, replayed, gap, band and the final weights into this npz."""
    quiet: bool = False
    """Show no progress."""


def verb(words: list[str]) -> int:
    """Run `icldyn replay`; returns the exit code: 0 within the band, 1 outside."""
    import tyro

    if not words or words[0].startswith("-") and words[0] not in ("-h", "--help"):
        raise checks.BadArgument("Argument `file` must be a recorded run, but is missing: icldyn replay FILE.npz.")
    options = tyro.cli(
        _Options,
        prog="icldyn replay FILE.npz",
        description="Retrain a recorded run of another codebase and print the largest relative gap of its loss. Options:",
        args=words[1:] or words[:1] * (words[0] in ("-h", "--help")),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    checks.gather(
        lambda: checks.one_of("dtype", options.dtype, ("float32", "float64")),
        lambda: _place("figure", options.figure, PICTURES, words[0]),
        lambda: _place("out", options.out, (".npz",), words[0]),
    )
    try:
        found = replay(words[0], options.dtype, progress=not (options.quiet or options.json))
        written = _write(found, options)
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(found.facts | {"wrote": written}, indent=2))
    else:
        _print(found)
        print("\n".join(f"wrote {path}" for path in written), end="\n" if written else "")
    return 0 if found.within else 1


def _place(name: str, path: str | None, endings: tuple[str, ...], record: str) -> None:
    """Refuse what cannot be written, or is the record itself, before any work."""
    from .store.files import check_place

    check_place(name, path, endings)
    if path is not None and Path(path).resolve() == Path(record).resolve():
        raise checks.refuse(name, "be another file than the record", path)


def _write(found: Replay, options: _Options) -> list[str]:
    from .plot.overlay import image_of
    from .store.files import write_all

    contents = {}
    if options.figure is not None:
        contents[options.figure] = image_of(found.figure(), Path(options.figure).suffix[1:])
    if options.out is not None:
        curves = {"recorded": found.record["loss"], "replayed": found.loss, "gap": found.gap, "band": found.band}
        arrays = io.BytesIO()
        np.savez(arrays, allow_pickle=False, step=np.arange(len(found.loss)), **curves, **found.weights)
        contents[options.out] = arrays.getvalue()
    return write_all(contents)


def _print(found: Replay) -> None:
    f, record = found.facts, found.record
    sizes = ", ".join(f"{name} = {f[name]}" for name in "HRDNP" if name in f)
    lr = f"lr {record.lr:g} of the mean square, which is {2 * record.lr:g} of half of it"
    print(f"{checks.shown(record.path.name)[1:-1]}: {f['parametrisation']} {f['attention']} attention, {sizes}")
    print(f"{len(found.loss):,} steps of full-batch gradient descent, {lr}")
    if record.left_out:
        print(f"left out: {', '.join(checks.shown(name)[1:-1] for name in record.left_out)}")
    gap, band = float(found.gap.max()), found.band[f["step"]]
    print(f"\nlargest relative gap of the loss   {gap:.2e} at step {f['step']:,}; the band there is {band:.2e}")
    if f["steps_at_saddles"]:
        away = f["largest_gap_away_from_saddles"]
        told = "-" if away is None else f"{away:.2e}"
        widest = f"{found.band.max():.2e} (step {f['largest_band_step']:,})"
        print(f"  away from saddles                {told}, where the band is below {SADDLE:g}")
        print(
            f"  at saddles                       {f['steps_at_saddles']:,} steps; {found.precision} round-off may reach {widest}"
        )
    for name, (apart, allowed) in found.finals.items():
        print(f"{name:<34} {apart:.2e} after {found.final_step:,} steps; the band is {allowed:.2e}")
    outside = f"outside, first at step {found.outside[0]:,}" if len(found.outside) else "outside, in its final weights"
    print(f"verdict                            {'within' if found.within else outside} the band of round-off")
    if f["hint"]:
        print(f"hint                               {f['hint']}")
    print(
        f"{found.seconds:.1f} s, {found.route}, {found.loss.dtype}; record trained in {found.precision}",
        file=sys.stderr,
    )
