"""How much wall time does the same accuracy cost, by flow and by SGD?

The curve asked for: mode strengths a_a(t) = p_a q_a of the mean of SGD as lr -> 0, for s = (1, .7, .5, .35), N = 20,
p_a = q_a = .22 at t = 0 and t = lr x steps up to 60 (the aligned setting of the study `mainali2025`).

- by theory: `icldyn.flow` on the exact coupled equations of the modes (`null_blocks.modes_flow`), at several `rtol`;
- by training: `icldyn.ensemble` on the `statistics` objective, batch 32, over learning rates and numbers of seeds.

Error and gap are both max over t and modes of |a - reference| / a(infinity); the reference is the flow at rtol 1e-12.
The gap of an ensemble's mean holds a bias that falls with lr and noise that falls with the seeds ("noise": the largest
standard error of the mean, in the same units). A flow's wall time is that of the whole call, which solves twice to
estimate its error; calls of milliseconds are averaged over 0.2 s. Wall times are medians of interleaved repeats,
"spread" is (slowest - fastest) / median, and compile time stands apart: the first call less the median.

Then both from Gaussian starts, all blocks of W_P and W_Q: the exact gradient flow of the population loss, and SGD.
What a flow does not give is the scatter of the seeds around it.
"""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from _timing import Timing, averaged, figures, interleaved, machine, table, timed
from jax.tree_util import Partial

import icldyn as ic

s, N, START, T_END, BATCH = np.array((1.0, 0.7, 0.5, 0.35)), 20, 0.22, 60.0, 32
SPREAD, T_GAUSSIAN, STARTS = 0.2, 150.0, 64
RECORDS = 65
FINAL = functools.reduce(np.multiply, ic.null_blocks.modes_optimum(s, N))  # a(infinity) = p q, (D,)


@dataclasses.dataclass(frozen=True)
class Settings:
    lrs: tuple[float, ...] = (0.08, 0.04, 0.02, 0.01)
    """Learning rates of SGD."""
    seeds: tuple[int, ...] = (16, 64, 256)
    """Numbers of seeds in an ensemble."""
    rtols: tuple[float, ...] = (1e-4, 1e-6, 1e-8)
    """Relative tolerances of the flow."""
    repeats: int = 5
    """Repeats, interleaved; medians are printed."""
    quick: bool = False
    """Under a minute on two cores: two learning rates, up to 64 seeds, 3 repeats, Gaussian starts to t = 30."""
    json: Path | None = None
    """Write what was measured to this file."""


def _modes_field(s: jax.Array, N: jax.Array, w: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return dict(zip("pq", ic.null_blocks.modes_flow(w["p"], w["q"], s, N), strict=True))


def _modes_strength(w: dict[str, jax.Array]) -> jax.Array:
    return w["p"] * w["q"]


def modes_flow(rtol: float, t: np.ndarray) -> Any:
    """The exact coupled flow of the aligned modes."""
    start = {"p": np.full(s.size, START), "q": np.full(s.size, START)}
    return ic.flow(Partial(_modes_field, s, float(N)), start, t, measures={"strength": _modes_strength}, rtol=rtol)


def population_flow(starts: Any, t: np.ndarray, many: bool, rtol: float = 1e-8) -> Any:
    """The exact gradient flow of all blocks of W_P and W_Q, from any start."""
    field = ic.gradient_flow(ic.population(*setting()))
    return ic.flow(field, starts, t, measures={"strength": STRENGTH}, many=many, rtol=rtol)


def sgd(lr: float, S: int) -> Any:
    """S seeds from the aligned start."""
    task, model = setting()
    init = ic.aligned(model, p=START, q=START)
    return ic.ensemble(ic.statistics(task, model, BATCH), init, seeds=S, lr=lr, t_end=T_END, **RECORDED)


def sgd_gaussian(lr: float, t_end: float) -> Any:
    """STARTS seeds with all weights N(0, SPREAD^2) at t = 0."""
    task, model = setting()
    objective, init = ic.statistics(task, model, BATCH), ic.gaussian(model)
    return ic.ensemble(objective, init, seeds=STARTS, lr=lr, t_end=t_end, init_scale=SPREAD, **RECORDED)


def setting() -> tuple[Any, Any]:
    """Task and model."""
    return ic.linear_regression(N, s), ic.linear_attention(s.size)


STRENGTH = Partial(ic.modes.strength, np.eye(s.size))
RECORDED: dict[str, Any] = {"records": RECORDS, "measures": {"strength": STRENGTH}}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """max over t and modes of |a - b| / a(infinity), for curves (T, D)."""
    return float((np.abs(a - b) / FINAL).max())


Runs = dict[Any, Callable[[], Any]]


def measured(runs: Runs, repeats: int) -> tuple[dict[Any, Any], dict[Any, float], dict[Any, Timing]]:
    """Results, seconds of the first call and timings of the later ones.

    Programs are shared (an ensemble's by all lr and S, a flow's by all rtol): who comes first pays for compiling.
    """
    results, first = {}, {}
    for key, run in runs.items():
        results[key], first[key], _ = timed(run)
    return results, first, interleaved({key: averaged(run) for key, run in runs.items()}, repeats)


def compiling(first: dict[Any, float], found: dict[Any, Timing], key: Any) -> float:
    """Seconds of compiling, for the first run of a program: its first call less the median of later ones."""
    return max(0.0, first[key] - found[key].seconds)


def milliseconds(timing: Timing) -> str:
    return figures(1e3 * timing.seconds)


def aligned_curves(settings: Settings) -> dict[str, Any]:
    """The same curve by flow and by SGD: prints a table and the ratios of wall times, returns the numbers."""
    grid = np.linspace(0, T_END, RECORDS)
    flows: Runs = {("flow", rtol): functools.partial(modes_flow, rtol, grid) for rtol in settings.rtols}
    pairs = itertools.product(settings.lrs, settings.seeds)
    trainings: Runs = {("SGD", lr, S): functools.partial(sgd, lr, S) for lr, S in pairs}
    results, first, found = measured({**flows, **trainings}, settings.repeats)
    error, rows = {}, []
    for key, run in results.items():
        reference = modes_flow(1e-12, run.t)["strength"]
        if key in flows:
            error[key] = distance(run["strength"], reference)
            name, work = f"flow, rtol {key[1]:.0e}", f"{run.attrs['solver_steps']} solver steps"
            shown = (f"{error[key]:.1e}", "-")
        else:
            error[key] = distance(run.mean("strength"), reference)
            name, work = f"SGD, lr {key[1]:g}, S = {key[2]}", f"{run.attrs['steps'] * key[2]:,} seed-steps"
            shown = (f"{error[key]:.2%}", f"{(run.standard_error('strength') / FINAL).max():.2%}")
        rows.append((name, work, milliseconds(found[key]), *shown, f"{found[key].spread:.0%}"))
    print(table(("how", "work", "wall ms", "error or gap", "noise", "spread"), rows))
    once = [compiling(first, found, next(iter(runs))) for runs in (flows, trainings)]
    print(f"\nCompile time, once: flow {once[0]:.1f} s, SGD {once[1]:.1f} s.")

    loosest, ratios = max(flows, key=lambda key: key[1]), {}
    for wanted in (0.02, 0.01):
        reaching = [key for key in trainings if error[key] <= wanted]
        if not reaching:
            print(f"No SGD run reaches a gap of {wanted:.0%}; the smallest is {min(error[k] for k in trainings):.2%}.")
            continue
        best = min(reaching, key=lambda key: found[key].seconds)
        ratios[f"{wanted:g}"] = ratio = found[best].seconds / found[loosest].seconds
        print(
            f"A gap of {wanted:.0%}: the cheapest SGD run (lr {best[1]:g}, S = {best[2]}, gap {error[best]:.2%}) takes "
            f"{figures(ratio, 2)} times the wall time of the flow at rtol {loosest[1]:.0e}, error {error[loosest]:.1e}."
        )
    seconds = {str(key): timing.seconds for key, timing in found.items()}
    return {"seconds": seconds, "error": {str(key): value for key, value in error.items()}, "sgd_over_flow": ratios}


def any_start(settings: Settings, t_end: float) -> dict[str, Any]:
    """The gradient flow of all blocks, and SGD from the same Gaussian starts: prints a table, returns the numbers."""
    lr, model = settings.lrs[-1], ic.linear_attention(s.size)
    aligned = jax.tree.map(lambda w: w[0], ic.initial_params(ic.aligned(model, p=START, q=START), seeds=1))
    starts = ic.initial_params(ic.gaussian(model), seeds=STARTS, init_scale=SPREAD)
    short, long = np.linspace(0, T_END, RECORDS), np.linspace(0, t_end, RECORDS)
    one, many = f"flow, 1 aligned start, t = {T_END:g}", f"flow, {STARTS} Gaussian starts, t = {t_end:g}"
    training = (f"SGD, lr {lr:g}, the same {STARTS} starts", None)
    runs: Runs = {(one, rtol): functools.partial(population_flow, aligned, short, False, rtol) for rtol in (1e-4, 1e-8)}
    runs |= {(many, rtol): functools.partial(population_flow, starts, long, True, rtol) for rtol in (1e-4, 1e-8)}
    runs[training] = functools.partial(sgd_gaussian, lr, t_end)
    results, first, found = measured(runs, settings.repeats)
    rows = []
    for key, run in results.items():
        label, rtol = key
        name = label if rtol is None else f"{label}, rtol {rtol:.0e}"
        steps = run.attrs["steps"] if rtol is None else run.attrs["solver_steps"]
        estimate = "-" if rtol is None else f"{run.attrs['error']:.0e}"
        once = "shared" if rtol == 1e-8 else f"{compiling(first, found, key):.1f}"
        rows.append((name, f"{steps:,}", once, milliseconds(found[key]), estimate, f"{found[key].spread:.0%}"))
    print(table(("all blocks of W_P and W_Q", "steps", "compile s", "wall ms", "error estimate", "spread"), rows))

    to_modes = distance(results[one, 1e-8]["strength"], modes_flow(1e-12, short)["strength"])
    trained = results[training]
    apart = trained["strength"] - population_flow(starts, trained.t, True)["strength"]  # (S, T, D): seed and its flow
    gap, noise = distance(apart.mean(0), np.zeros(s.size)), (apart.std(0, ddof=1) / STARTS**0.5 / FINAL).max()
    ratio = found[training].seconds / found[many, 1e-4].seconds
    lost = f"{trained.diverged} seeds diverged, {results[many, 1e-8].attrs['failed']} solves failed"
    print(
        f"\nThe population flow from the aligned start is {to_modes:.0e} from the flow of the modes.\n"
        f"Mean strengths over the {STARTS} Gaussian starts: SGD is {gap:.2%} of a(infinity) from the flow (noise "
        f"{noise:.2%}) and takes {figures(ratio, 2)} times the wall time of the flow at rtol 1e-4; {lost}."
    )
    return {"gaussian_gap": gap, "gaussian_seconds": {str(key): timing.seconds for key, timing in found.items()}}


def main(settings: Settings) -> None:
    began, t_end = time.perf_counter(), T_GAUSSIAN
    if settings.quick:
        settings = dataclasses.replace(settings, lrs=settings.lrs[:2], seeds=settings.seeds[:2], repeats=3)
        t_end = 30.0
    print(f"{machine()}\nflows in float64; SGD in float32, batch {BATCH}\n")
    out = {"machine": machine()} | aligned_curves(settings)
    print()
    out |= any_start(settings, t_end)
    print(f"{time.perf_counter() - began:.0f} s in all.")
    if settings.json is not None:
        settings.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__.splitlines()[0]))
