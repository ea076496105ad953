"""Mainali and Teixeira 2025, "Exact learning dynamics of in-context learning in linear transformers" (arXiv 2504.12916).

A one-layer linear transformer trained on in-context linear regression learns the eigenmodes of the input covariance one after
another, mode a at a rate s_a^2, along logistic curves, with conserved quantities that tie its value and key-query weights.

Here thousands of seeds of the paper's model (all four blocks of the full W_P and W_Q) meet four theories:

- the paper's closed form (`logistic`): exact as N -> infinity;
- the exact coupled flow of the aligned modes at finite N (`null_blocks`), which no longer conserves p_a^2 - q_a^2 mode by mode;
- the covariance of SGD along that flow (`spread`), which predicts the band of the seeds and not only their mean;
- the exact gradient flow of the full population loss (`population`) from unaligned starts. It shows how alignment arises, and
  that with all blocks Gaussian every mode takes one of two routes: yhat = p2 H q1 x_q or, through the "null" blocks,
  yhat = p1 H^T q2 x_q, which tasks that share the eigenbasis (W symmetric) allow.

Conventions: loss 1/2 |y_q - yhat_q|^2, averaged over the batch; time t = lr x steps; context sums divided by N; the query
attends to itself; the query's label is noiseless. Tasks share the eigenbasis of Sigma and are fresh in every prompt.
How far the closed form reaches depends on spectrum and start too: the defaults were picked so that it is within 2% at N/d = 50;
for s = (1, .6, .3, .15) from p = q = .1 the exact theory puts it 4.8% off there.

What measures of trained networks make of these modes is read off the closed form of one instance (`exact_measures`): each dip
of an effective rank, and each maximum of L'(t)^2, is the escape of one mode.

A mode's gap is max over t of |mean over seeds of a(t) - theory| / a(infinity), a(infinity) the end of the exact flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import icldyn as ic
from icldyn import checks
from icldyn.plot import panels
from icldyn.study import Claim, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from icldyn.study import Trajectories

REFERENCE_S = (1.0, 0.6, 0.3, 0.15)  # a wider spectrum from a smaller start, .1: N = 8 and 20, lr .02, batch 512
REFERENCE_STEPS = 2000
OUTSIDE = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}  # beside the axes
DRAWN = 400  # seeds drawn one by one, at most
LINEAR = (
    0.1  # of shift over spread: above it the spread of seeds that leave a saddle is not yet, or no longer, Gaussian
)
EXACT = {"s": np.array((4.0, 2.0, 1.0, 0.5)), "N": 1000, "a0": 1e-4}  # the instance that measures are read off
RIDGES = (0.1, 0.01, 0.001)  # lam of their subspace distance
FLOW_STARTS = 64  # unaligned seeds whose own exact flow is solved


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 1000
    """Seeds of the main run, at the second entry of `N`."""
    other_seeds: int = 256
    """Seeds of every other run."""
    N: tuple[int, ...] = (8, 20, 40, 80, 200)
    """Context lengths; the main run is the second (or the only one), the closed form is judged at the first and the last."""
    s: tuple[float, ...] = (1.0, 0.7, 0.5, 0.35)
    """Eigenvalues of Sigma, descending."""
    lr: float = 0.01
    """Learning rate of SGD."""
    batch: int = 32
    """Prompts a step."""
    start: float = 0.22
    """Initial p_a = q_a of the aligned balanced start."""
    unbalanced: tuple[float, ...] = (0.05, 0.25, 0.6)
    """Ratios q_a / p_a at the start of the unbalanced runs (inverses are run too)."""
    radius: float = 0.7
    """(p_a^2 + q_a^2)^(1/2) at the start of the unbalanced runs."""
    spread: float = 0.2
    """Standard deviation of the Gaussian weights of the unaligned starts."""
    t_end: float = 60.0
    """Time lr x steps of the aligned runs."""
    t_end_unaligned: float = 100.0
    """Time of the unaligned runs."""
    lrs: tuple[float, ...] = (0.04, 0.02, 0.01)
    """Learning rates of the conservation sweep, with the main run's N."""
    reference_seeds: int = 32
    """Seeds of the reference runs: s = (1, .6, .3, .15), N = 8 and 20, lr .02, batch 512, start .1."""


SCALES = {
    "smoke": Config(
        seeds=128,
        other_seeds=64,
        N=(8, 20, 200),
        s=(1.0, 0.75, 0.6, 0.5),
        t_end=30.0,
        t_end_unaligned=40.0,
        lrs=(0.08, 0.04, 0.02),
        reference_seeds=8,
    ),
    "laptop": Config(),
    "paper": Config(
        seeds=10_000,
        other_seeds=10_000,
        N=(16, 40, 80, 160, 400),
        s=tuple(float(f"{a**-0.5:.4f}") for a in range(1, 9)),
        lr=0.002,
        batch=64,
        reference_seeds=64,
    ),
}


SIZES = {"seeds": (2, 10**8), "other_seeds": (8, 10**8), "reference_seeds": (2, 10**8), "batch": (1, 2**20)}
REALS: dict[str, dict[str, float]] = {  # what float32 can hold and a solver of the exact flows can follow
    "lr": {"above": 0},
    "start": {"above": 1e-15},
    "radius": {"above": 1e-6, "most": 100},
    "spread": {"above": 1e-15, "most": 100},
    "t_end": {"above": 1e-6, "most": 1e9},
    "t_end_unaligned": {"above": 1e-6, "most": 1e9},
}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def ratios() -> None:
        if not settings.each("unbalanced", least=1e-6, most=1e6):
            raise checks.refuse("unbalanced", "hold at least one ratio", config.unbalanced)

    def rates() -> list[float]:
        lrs = settings.each("lrs", above=0)
        if len(set(lrs)) < max(2, len(lrs)):
            raise checks.refuse("lrs", "hold at least two different learning rates", config.lrs)
        return lrs

    def eigenvalues() -> np.ndarray:
        s = checks.eigenvalues("s", settings.each("s"))
        checks.real("s[0]", s[0], most=1e6)
        checks.real(f"s[{s.size - 1}]", s[-1], least=1e-6)
        return s

    def context_lengths() -> list[int]:
        return settings.each("N", checks.integer, 1, 10**9, ascending=True)

    def longer_than_wide() -> None:
        N, D = context_lengths()[0], eigenvalues().size
        if N <= D:
            raise checks.refuse("N[0]", f"be above the number of eigenvalues in `s`, {D}", N)

    def start_below_end() -> None:
        start, s = settings.number("start"), eigenvalues()
        lowest = min(N / ((N + 1) * s[0] + s.sum()) for N in context_lengths())
        if start >= lowest**0.5:
            raise checks.refuse("start", f"be below {lowest**0.5:.3g}, where the fastest mode of `s` ends", start)

    def steps(name: str, lrs: Callable[[], list[float]]) -> None:
        shortest, longest = sorted((settings.number("t_end"), settings.number("t_end_unaligned")))
        for k, rate in enumerate(lrs()):
            entry = name if name == "lr" else f"{name}[{k}]"
            if rate > shortest:
                must = f"be at most {shortest:g}, the shorter of `t_end` and `t_end_unaligned`, so that it takes a step"
                raise checks.refuse(entry, must, rate)
            if longest / rate >= 2**31 - 2:
                must = f"be at least {longest / 2**31:.2g}, so that `t_end` and `t_end_unaligned` are below 2**31 steps"
                raise checks.refuse(entry, must, rate)

    settings.gather(
        *(ratios, rates, eigenvalues, context_lengths, longer_than_wide, start_below_end),
        lambda: steps("lr", lambda: [settings.number("lr")]),
        lambda: steps("lrs", rates),
    )


def experiments(config: Config) -> dict[str, Any]:
    """Every run of the study, by name."""
    check(config)
    main, last = _main_N(config), config.N[-1]
    model = ic.linear_attention(len(config.s))
    balanced = ic.aligned(model, p=config.start, q=config.start)
    few = -(-config.other_seeds // 4)

    def trained(N: int, init, seeds: int = config.other_seeds, s=config.s, batch: int = config.batch, **settings):
        task = ic.linear_regression(N, s)
        return ic.Experiment(
            ic.statistics(task, ic.linear_attention(task.D), batch),
            init,
            seeds=seeds,
            measures=_measures(task),
            dims=ic.modes.DIMS,
            **{"lr": config.lr, "t_end": config.t_end} | settings,
        )

    out = {f"N{N}": trained(N, balanced, config.seeds if N == main else config.other_seeds) for N in config.N}
    for k, (p, q) in enumerate(_unbalanced(config)):
        out[f"unbalanced{k}"] = trained(last, ic.aligned(model, p=p, q=q), few, records=257)
    out["lr_sweep"] = trained(main, balanced, lr=list(config.lrs), records=9)
    for name, init in _unaligned(model).items():
        out[name] = trained(main, init, init_scale=config.spread, t_end=config.t_end_unaligned)
    for N in (8, 20):
        settings = {"s": REFERENCE_S, "batch": 512, "lr": 0.02, "t_end": None, "steps": REFERENCE_STEPS, "records": 3}
        init = ic.aligned(ic.linear_attention(len(REFERENCE_S)), p=0.1, q=0.1)
        out[f"reference_N{N}"] = trained(N, init, config.reference_seeds, **settings)
    return out


def _main_N(config: Config) -> int:
    """The context length of the main run: the second, or the only one."""
    return config.N[min(1, len(config.N) - 1)]


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """The exact flow (`exact_RUN`) and, for balanced starts, the closed form (`closed_RUN`) on the record times of every run."""
    s = np.asarray(config.s)
    out = {}
    for name, run in seeds.items():
        if name.startswith("N"):
            N = int(name[1:])
            out[f"exact_{name}"] = _modes_flow(s, N, config.start, config.start, run.t)
            out[f"closed_{name}"] = _closed_form(s, N, config.start, run.t)
        elif name.startswith("unbalanced"):
            p, q = _unbalanced(config)[int(name.removeprefix("unbalanced"))]
            out[f"exact_{name}"] = _modes_flow(s, config.N[-1], p, q, run.t)
        elif name.startswith("reference_N"):
            N = int(name.removeprefix("reference_N"))
            out[f"exact_{name}"] = _modes_flow(np.asarray(REFERENCE_S), N, 0.1, 0.1, run.t)
            out[f"closed_{name}"] = _closed_form(np.asarray(REFERENCE_S), N, 0.1, run.t)
        elif name.startswith("unaligned"):
            model, task = ic.linear_attention(s.size), ic.linear_regression(_main_N(config), s)
            init, count = _unaligned(model)[name], min(run.num_seeds, FLOW_STARTS)
            starts = ic.initial_params(init, seeds=count, init_scale=config.spread)
            out[f"exact_{name}"] = ic.flow(
                ic.gradient_flow(ic.population(task, model)),
                starts,
                run.t,
                measures=_measures(task),
                dims=ic.modes.DIMS,
                many=True,
            )
    main = _main_N(config)
    out["spread"] = _spread(config, main, seeds[f"N{main}"].t)
    out["exact_measures"] = exact_measures()
    return out


def exact_measures():
    """er_k of q_1, L'(t)^2 and the ridge subspace distance along the closed form of one instance, where q_1 has sqrt(a_a(t))."""
    import jax

    s, N, t = EXACT["s"], EXACT["N"], np.arange(6001) / 100
    a = np.asarray(ic.logistic.strength(t, np.full(s.size, EXACT["a0"]), s, N))
    q, q_inf = np.sqrt(a), np.sqrt(np.asarray(ic.logistic.final_strength(s, N)))
    descending = -np.sort(-q, axis=1)
    ranks = [jax.vmap(lambda q, k=k: ic.spectra.effective_rank_of(q, k))(descending) for k in range(3)]
    distances = jax.vmap(jax.vmap(ic.subspace.ridge_distance_of_modes, (None, None, 0)), (0, None, None))
    loss = np.asarray(ic.logistic.loss(a, s, N))
    values = {
        "effective_rank": np.stack(ranks, axis=1),
        "squared_slope": -np.asarray(ic.autocorrelation.local_curvature(t, loss)),
        "ridge_distance": np.asarray(distances(q, q_inf, np.array(RIDGES))),
    }
    dims = {"effective_rank": ("time", "left_out"), "squared_slope": ("time",), "ridge_distance": ("time", "ridge")}
    return ic.Trajectory(values, dims, {"t": (("time",), t)})


def _exact_events(measures) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Escape times (4,), times of the least er_k (3,) and of the local maxima of L'(t)^2."""
    from scipy.signal import argrelmax

    squared = measures["squared_slope"]
    peaks = argrelmax(np.where(squared > 1e-12 * squared.max(), squared, 0))[
        0
    ]  # rounding of a loss at its end has some too
    dips = measures["effective_rank"].argmin(axis=0)
    return np.asarray(ic.logistic.escape_time(EXACT["s"], EXACT["N"], EXACT["a0"])), measures.t[dips], measures.t[peaks]


def _spread(config: Config, N: int, t: np.ndarray):
    """The exact coupled flow with the standard deviation over seeds that SGD adds to it."""
    from jax.tree_util import Partial

    s, start = np.asarray(config.s), np.full(len(config.s), config.start)
    exact, noise = Partial(_loss, s, float(N)), Partial(_noise, s, float(N))
    settings = {"lr": config.lr, "batch": config.batch, "measures": {"strength": _strength}, "dims": ic.modes.DIMS}
    return ic.spread(exact, noise, {"p": start, "q": start}, t, **settings)


def _noise(s, N, w):
    return ic.gradient_noise.modes_noise(w["p"], w["q"], s, N)


def _unaligned(model) -> dict[str, Any]:
    """Gaussian starts: of p2 and q1 alone, as the paper's reduced model, and of all blocks."""
    return {"unaligned_p2_q1": ic.gaussian(model, null_blocks=False), "unaligned_all_blocks": ic.gaussian(model)}


def _measures(task) -> dict[str, Any]:
    """What is read off the weights: the modes, and the exact loss."""
    exact = ic.population(task, ic.linear_attention(task.D))
    wanted = np.asarray(ic.logistic.final_strength(np.asarray(task.s), task.N))
    return ic.modes.measures(task.U, wanted) | {"loss": exact.loss}


def _modes_flow(s: np.ndarray, N: int, p: float, q: float, t: np.ndarray):
    """The exact coupled flow of aligned modes with p_a = p, q_a = q at t = 0."""
    from jax.tree_util import Partial

    start = {"p": np.full(s.size, p), "q": np.full(s.size, q)}
    measures = {"strength": _strength, "p": _p, "q": _q, "norm_gap": _norm_gap, "loss": Partial(_loss, s, float(N))}
    distance = Partial(_distance, np.asarray(ic.logistic.final_strength(s, N)))
    return ic.flow(
        Partial(_field, s, float(N)),
        start,
        t,
        measures=measures | {"preconditioner_distance": distance},
        dims=ic.modes.DIMS,
    )


def _field(s, N, w):
    return dict(zip("pq", ic.null_blocks.modes_flow(w["p"], w["q"], s, N), strict=True))


def _loss(s, N, w):
    return ic.null_blocks.modes_loss(w["p"], w["q"], s, N)


def _strength(w):
    return w["p"] * w["q"]


def _p(w):
    return w["p"]


def _q(w):
    return w["q"]


def _norm_gap(w):
    return (w["p"] ** 2 - w["q"] ** 2).sum()


def _distance(wanted, w):
    return (((w["p"] * w["q"] - wanted) ** 2).sum() / (wanted**2).sum()) ** 0.5


def _closed_form(s: np.ndarray, N: int, start: float, t: np.ndarray):
    """The logistic curves as a trajectory."""
    a = np.asarray(ic.logistic.strength(t, np.full(s.size, start**2), s, N), float)
    wanted = np.asarray(ic.logistic.final_strength(s, N))
    distance = np.sqrt(((a - wanted) ** 2).sum(1) / (wanted**2).sum())
    loss = np.asarray(ic.logistic.loss(a, s, N))
    return ic.Trajectory(
        {"strength": a, "loss": loss, "preconditioner_distance": distance},
        {"strength": ("time", "mode"), "loss": ("time",), "preconditioner_distance": ("time",)},
        {"t": (("time",), t)},
    )


def _unbalanced(config: Config) -> list[tuple[float, float]]:
    """(p, q) at the start, at the same distance from the origin, for every ratio q / p and its inverse."""
    pairs = [(config.radius / np.sqrt(1 + r**2), config.radius * r / np.sqrt(1 + r**2)) for r in config.unbalanced]
    return pairs + [(q, p) for p, q in pairs]


def _final(s: np.ndarray, N: int) -> np.ndarray:
    """a(infinity) of the exact flow, (D,)."""
    p, q = ic.null_blocks.modes_optimum(s, N)
    return p * q


def _gap(s: np.ndarray, N: int, run, theory) -> float:
    """max over t and modes of |mean over seeds of a - theory| / a(infinity)."""
    return float(np.abs((run.mean("strength") - theory["strength"]) / _final(s, N)).max())


def _escape(config: Config, N: int, run) -> tuple[np.ndarray, np.ndarray]:
    """Times at which the seeds' mean strength crosses a^inf / 2, and the logarithm log(a^inf / a_0 - 1), (D,) each.

    In the closed form the time is (tau / 2) times this logarithm, exactly.
    """
    s = np.asarray(config.s)
    ends = np.asarray(ic.logistic.final_strength(s, N))
    relative = np.maximum.accumulate(run.mean("strength") / ends, axis=0)
    times = np.array([np.interp(0.5, relative[:, a], run.t, right=np.nan) for a in range(s.size)])
    return times, np.log(ends / config.start**2 - 1)


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of log |y| against log x; NaN where y is 0 or not finite, or a single point is given."""
    if len(x) < 2 or not (np.isfinite(y) & (y != 0)).all():
        return float("nan")
    return float(np.polyfit(np.log(x), np.log(np.abs(y)), 1)[0])


def _loss_at_zero_rate(config: Config, run) -> tuple[float, float]:
    """The seeds' mean final loss extrapolated to lr = 0 by a quadratic (a line for two rates), and its standard error."""
    means, errors = run.mean("loss")[..., -1], run.standard_error("loss")[..., -1]
    if not np.isfinite(errors).all():
        return float("nan"), float("nan")
    fit, covariance = np.polyfit(config.lrs, means, min(2, len(means) - 1), w=1 / errors, cov="unscaled")
    return float(fit[-1]), float(np.sqrt(covariance[-1, -1]))


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says, and where it stops holding, each decided by a number from the seeds."""
    s, d = np.asarray(config.s), len(config.s)
    main, last = _main_N(config), config.N[-1]
    out: list[Claim] = []

    def claim(sentence: str, measured: float, **limits) -> None:
        out.append(Claim(sentence, float(measured), **limits))

    for N in config.N:
        gap = _gap(s, N, seeds[f"N{N}"], theory[f"exact_N{N}"])
        claim(
            f"The mode strengths of SGD follow the exact coupled flow at N/d = {N / d:g} (gap)",
            gap,
            high=0.02,
            gap=True,
        )
    for N in sorted({config.N[0], last}):
        gap = _gap(s, N, seeds[f"N{N}"], theory[f"closed_N{N}"])
        limits = {"high": 0.02, "gap": True} if N / d >= 50 else {}
        claim(f"The same gap of the paper's closed form at N/d = {N / d:g}", gap, **limits)

    times, logarithm = _escape(config, last, seeds[f"N{last}"])
    slope = _slope(1 / s**2, times / logarithm)
    claim(f"Escape time over its logarithm against 1/s^2 (slope, N/d = {last / d:g})", slope, low=0.98, high=1.02)

    sweep = seeds["lr_sweep"]
    drift = sweep.mean("norm_gap")[:, -1] - sweep.mean("norm_gap")[:, 0]
    slope = _slope(np.asarray(config.lrs), drift)
    claim("||W_P||^2 - ||W_Q||^2 drifts in proportion to lr at fixed t (slope)", slope, low=0.9, high=1.1)

    loss, error = _loss_at_zero_rate(config, sweep)
    end = theory[f"exact_N{main}"]["loss"][-1]
    optimum = ic.null_blocks.modes_loss(*ic.null_blocks.modes_optimum(s, main), s, float(main))
    claim(
        "Final loss of the seeds as lr -> 0 equals the exact flow's (standard errors apart)",
        abs(loss - end) / error,
        high=4,
    )
    claim("The exact flow's final loss is at the exact optimum (relative excess)", end / optimum - 1, low=0, high=5e-3)

    spread, run = theory["spread"], seeds[f"N{main}"]
    ratio = spread["strength_sd"][1:] / run.standard_deviation("strength")[1:]
    reach = np.abs(spread["strength_shift"][1:] / spread["strength_sd"][1:]).max()
    some = max(0.1, 4 / (2 * run.num_seeds) ** 0.5)  # 10%, or four standard errors of a standard deviation
    claim(
        "Standard deviation over seeds of the mode strengths, predicted over measured (mean log over t, worst mode)",
        np.abs(np.log(ratio).mean(0)).max(),
        **({"high": some} if reach < LINEAR else {}),
    )
    claim(f"Its linearisation: largest shift of a mean by noise over the spread (holds below {LINEAR})", reach)

    for N in (8, 20):
        apart = (seeds[f"reference_N{N}"].mean("strength") / theory[f"exact_reference_N{N}"]["strength"] - 1)[1:, 2]
        when = f"at steps {REFERENCE_STEPS // 2} and {REFERENCE_STEPS}"
        claim(
            f"Reference run, N = {N}, third mode {when}: seeds against exact flow (relative)",
            np.abs(apart).max(),
            high=0.02,
        )

    run, flow = seeds["unaligned_p2_q1"], theory["exact_unaligned_p2_q1"]
    for block in ("p2", "q1"):
        name = f"{block}_off_diagonal"
        apart = np.abs(run.isel(seed=slice(flow.num_seeds)).mean(name) - flow.mean(name)).max()
        claim(
            f"Unaligned p2, q1: mean off-diagonal share of {block} follows the exact flow (difference)",
            apart,
            high=0.02,
        )
    run, flow = seeds["unaligned_all_blocks"], theory["exact_unaligned_all_blocks"]
    some = run.isel(seed=slice(flow.num_seeds))
    near = np.abs(some["null_block_share"][:, -1] - flow["null_block_share"][:, -1]) < 0.05
    claim("Unaligned, all blocks: share of seeds that take the routes of their own exact flow", near.mean(), low=0.8)

    escapes, dips, peaks = _exact_events(theory["exact_measures"])
    for k, t in enumerate(dips):
        sentence = f"Closed form: er_{k} of q_1 is least when mode {k + 1} escapes (relative distance in t)"
        claim(sentence, abs(t / escapes[k] - 1), high=0.3)
    apart = np.abs(peaks / escapes - 1).max() if peaks.size == escapes.size else np.inf
    claim(
        "Closed form: L'(t)^2 has one maximum for every mode, when it escapes (relative distance in t)", apart, high=0.3
    )

    total = sum(run.finite().size for run in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(run.diverged for run in seeds.values()), high=0)
    return out


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """The figures (a) to (m)."""
    return {
        "overlay": _figure_overlay(config, seeds, theory),
        "conservation": _figure_conservation(config, seeds, theory),
        "phase_plane": _figure_phase_plane(config, seeds, theory),
        "escape_and_fixed_point": _figure_escape(config, seeds, theory),
        "where_the_closed_form_holds": _figure_closed_form(config, seeds, theory),
        "alignment": _figure_alignment(config, seeds, theory),
        "spread": _figure_spread(config, seeds, theory),
        "exact_measures": _figure_exact_measures(theory["exact_measures"]),
    }


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """Mode strengths of the main run with both theories."""
    N = _main_N(config)
    curves = {"exact flow": theory[f"exact_N{N}"], "closed form": theory[f"closed_N{N}"]}
    ic.overlay(seeds[f"N{N}"], curves, "strength", ax, labels=_mode_labels(config))
    ax.set(ylabel=r"$a_\alpha$", xlim=(0, seeds[f"N{N}"].t[-1]), ylim=(0, None))


def _mode_labels(config: Config) -> list[str]:
    return [f"$s_{a + 1}$ = {value:g}" for a, value in enumerate(config.s)]


def _figure_overlay(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    N = _main_N(config)
    run, curves = seeds[f"N{N}"], {"exact flow": theory[f"exact_N{N}"], "closed form": theory[f"closed_N{N}"]}
    figure, (left, right) = panels.row(2, 4.2, 3.0)
    ic.overlay(run, curves, "loss", left)
    left.set(
        title=f"(a) loss, N/d = {N / len(config.s):g}",
        ylabel=r"$\frac{1}{2}\,\mathrm{E}\,|y-\hat{y}|^2$",
        xlim=(0, run.t[-1]),
    )
    ic.overlay(run, curves, "strength", right, labels=_mode_labels(config), legend=OUTSIDE)
    right.set(title="(b) mode strengths", ylabel=r"$a_\alpha = p_\alpha q_\alpha$", xlim=(0, run.t[-1]), ylim=(0, None))
    return figure


def _figure_conservation(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, middle, right) = panels.row(3, 3.3, 2.8)
    first, last = _main_N(config), config.N[-1]
    run = seeds[f"N{first}"]
    some = run.isel(seed=slice(DRAWN))
    left.plot(
        some.t, some["norm_gap"].T, color="C0", alpha=min(1.0, 40 / some.num_seeds), linewidth=0.4, rasterized=True
    )
    left.plot(run.t, run.mean("norm_gap"), color="C1", label=f"mean of {run.num_seeds:,} seeds")
    left.plot(run.t, theory[f"exact_N{first}"]["norm_gap"], "k--", label="gradient flow: conserved")
    left.set(
        title=f"(c) conserved quantity, lr = {config.lr:g}", xlabel="time $t$", ylabel=r"$\|W_P\|_F^2 - \|W_Q\|_F^2$"
    )
    left.legend()
    sweep = seeds["lr_sweep"]
    drift, error = np.abs(sweep.mean("norm_gap")[:, -1]), sweep.standard_error("norm_gap")[:, -1]
    middle.errorbar(config.lrs, drift, yerr=error, fmt="o", color="C1", label=f"{config.other_seeds} seeds each")
    grid = np.array([min(config.lrs), max(config.lrs)])
    middle.plot(grid, drift[0] / config.lrs[0] * grid, "k--", linewidth=1, label="proportional to lr")
    middle.set(
        title=f"its drift at t = {config.t_end:g}: slope {_slope(np.asarray(config.lrs), drift):.3f}",
        xlabel="learning rate",
        ylabel="|mean drift|",
    )
    middle.set(xscale="log", yscale="log")
    panels.plain_ticks(middle.xaxis, config.lrs)
    panels.plain_ticks(middle.yaxis, drift)
    middle.legend()
    for k, label in enumerate(_mode_labels(config)):
        for N, dashes in dict(((last, ":"), (first, "-"))).items():
            p, q = (seeds[f"N{N}"].mean(name)[:, k] for name in "pq")
            right.plot(
                seeds[f"N{N}"].t, p**2 - q**2, color=f"C{k}", linestyle=dashes, label=label if N == first else None
            )
        exact = theory[f"exact_N{first}"]
        right.plot(
            exact.t,
            exact["p"][:, k] ** 2 - exact["q"][:, k] ** 2,
            "k--",
            linewidth=0.9,
            label="exact flow" if k == 0 else None,
        )
    right.set(
        title=f"per mode: N/d = {first / len(config.s):g} (solid), {last / len(config.s):g} (dotted)",
        xlabel="time $t$",
        ylabel=r"$p_\alpha^2 - q_\alpha^2$",
    )
    right.legend(**OUTSIDE)
    return figure


def _figure_phase_plane(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    import matplotlib.pyplot as plt

    s, N = np.asarray(config.s), config.N[-1]
    figure, axes = panels.row(len(s), 2.6, 3.0)
    ends = np.asarray(ic.logistic.final_strength(s, N))
    starts = _unbalanced(config)
    for k, ax in enumerate(axes):
        reach = 1.35 * np.sqrt(ends[k])
        grid = np.linspace(1e-3, reach, 200)
        ax.plot(
            grid, ends[k] / grid, color="0.75", linewidth=4, label=r"fixed points of the closed form, $pq = 1/s^\infty$"
        )
        for r, (p0, q0) in enumerate(starts):
            run, flow = seeds[f"unbalanced{r}"], theory[f"exact_unbalanced{r}"]
            color = plt.get_cmap("viridis")(0.1 + 0.8 * r / len(starts))
            some = run.isel(seed=slice(DRAWN))
            ax.plot(some["p"][:, :, k].T, some["q"][:, :, k].T, color=color, alpha=0.3, linewidth=1.2, rasterized=True)
            c = p0**2 - q0**2
            p = np.sqrt(max(c, 0)) + grid
            label = r"$p^2 - q^2$ = const" if r == 0 else None
            ax.plot(p, np.sqrt(p**2 - c), color="C1", linewidth=0.9, linestyle=":", label=label)
            ax.plot(flow["p"][:, k], flow["q"][:, k], "k--", linewidth=0.8, label="exact flow" if r == 0 else None)
            ax.plot(p0, q0, "o", color=color, markersize=4)
        title = f"{'(d) ' if k == 0 else ''}$s_{k + 1}$ = {s[k]:g}"
        ax.set(xlim=(0, reach), ylim=(0, reach), aspect="equal", xlabel=r"$p_\alpha$", title=title)
    axes[0].set_ylabel(r"$q_\alpha$")
    handles, labels = axes[0].get_legend_handles_labels()
    shown = f"{seeds['unbalanced0'].num_seeds} seeds from each start, N/d = {N / s.size:g}"
    figure.legend(handles, labels, loc="outside lower center", ncol=3, title=shown, title_fontsize=7.5)
    return figure


def _figure_escape(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, right) = panels.row(2, 3.7, 3.0)
    s = np.asarray(config.s)
    for N, color in {config.N[0]: "C1", config.N[-1]: "C0"}.items():
        times, logarithm = _escape(config, N, seeds[f"N{N}"])
        slope = _slope(1 / s**2, times / logarithm)
        left.plot(
            1 / s**2,
            times / logarithm,
            "o",
            color=color,
            label=f"{seeds[f'N{N}'].num_seeds} seeds, N/d = {N / s.size:g}: slope {slope:.3f}",
        )
    left.plot(1 / s**2, 0.5 / s**2, "k--", linewidth=1, label=r"closed form, $\tau/2 = 1/(2 s^2)$")
    left.set(
        title="(e) escape time over its logarithm",
        xlabel=r"$1/s_\alpha^2$",
        ylabel=r"$t_{1/2}\,/\,\log(a^\infty/a_0 - 1)$",
        xscale="log",
        yscale="log",
    )
    panels.plain_ticks(left.xaxis, 1 / s**2)
    panels.plain_ticks(left.yaxis, 0.5 / s**2)
    left.legend()
    for k, N in enumerate(dict.fromkeys((config.N[0], _main_N(config), config.N[-1]))):
        run, exact, closed = seeds[f"N{N}"], theory[f"exact_N{N}"], theory[f"closed_N{N}"]
        panels.band(
            right, run.t, run.quantile("preconditioner_distance", (0.05, 0.5, 0.95)), f"C{k}", f"N/d = {N / s.size:g}"
        )
        right.plot(run.t, exact["preconditioner_distance"], "k--", linewidth=1, label="exact flow" if k == 0 else None)
        right.plot(run.t, closed["preconditioner_distance"], "k:", linewidth=1, label="closed form" if k == 0 else None)
    right.set(
        title="(f) distance to the paper's preconditioner",
        xlabel="time $t$",
        ylabel=r"$\|p_2 q_1 - \Gamma^{-1}\|_F\,/\,\|\Gamma^{-1}\|_F$",
        yscale="log",
        ylim=(5e-3, 1.2),
    )
    right.legend()
    return figure


def _figure_closed_form(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, right) = panels.row(2, 4.2, 3.0)
    s, ratio = np.asarray(config.s), np.asarray(config.N) / len(config.s)
    for label, kind, color, marker in (
        ("closed form", "closed", "C1", "s"),
        ("exact coupled flow", "exact", "C0", "o"),
    ):
        gaps = [_gap(s, N, seeds[f"N{N}"], theory[f"{kind}_N{N}"]) for N in config.N]
        left.plot(ratio, gaps, marker=marker, markersize=4, color=color, label=label)
    noise = [float((seeds[f"N{N}"].standard_error("strength") / _final(s, N)).max()) for N in config.N]
    left.plot(ratio, noise, color="0.6", linewidth=1, label="standard error of the seeds")
    left.axhline(0.02, color="0.3", linewidth=0.7, linestyle=":")
    left.text(ratio[0], 0.0215, "2%", fontsize=7, color="0.3")
    left.set(
        title="(g) where the closed form holds",
        xlabel="context length over dimension, N/d",
        ylabel=r"max$_t$ |mean $a$ - theory| / $a(\infty)$",
        xscale="log",
        yscale="log",
    )
    panels.plain_ticks(left.xaxis, ratio)
    left.set_ylim(1e-4, None)
    left.legend(loc="lower left")
    N = config.N[0]
    curves = {"exact flow": theory[f"exact_N{N}"], "closed form": theory[f"closed_N{N}"]}
    ic.overlay(seeds[f"N{N}"], curves, "strength", right, labels=_mode_labels(config), legend=OUTSIDE)
    right.set(
        title=f"mode strengths at N/d = {N / s.size:g}",
        ylabel=r"$a_\alpha$",
        xlim=(0, seeds[f"N{N}"].t[-1]),
        ylim=(0, None),
    )
    return figure


def _figure_alignment(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, middle, right) = panels.row(3, 3.4, 2.9)
    run, flow = seeds["unaligned_p2_q1"], theory["exact_unaligned_p2_q1"]
    for ax, name, title in (
        (left, "p2_off_diagonal", "(h) off-diagonal share of $p_2$"),
        (middle, "q1_off_diagonal", "of $q_1$"),
    ):
        panels.band(ax, run.t, run.quantile(name, (0.05, 0.5, 0.95)), "C0", f"{run.num_seeds} seeds, median and 5%–95%")
        for k, level in enumerate(flow.quantile(name, (0.05, 0.5, 0.95))):
            label = f"exact flow from {flow.num_seeds} of the starts" if k == 1 else None
            ax.plot(flow.t, level, "k--", linewidth=1.2 if k == 1 else 0.7, label=label)
        ax.set(xlabel="time $t$", title=title, xlim=(0, run.t[-1]), ylim=(1e-5, 1.5), yscale="log")
    left.set_ylabel(r"$\sum_{a \neq b} M_{ab}^2\,/\,\|M\|_F^2$")
    left.legend(loc="upper right")
    run, flow = seeds["unaligned_all_blocks"], theory["exact_unaligned_all_blocks"]
    right.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    right.plot(
        flow["null_block_share"][:, -1],
        run.isel(seed=slice(flow.num_seeds))["null_block_share"][:, -1],
        "o",
        color="C1",
        markersize=3.5,
        alpha=0.7,
    )
    right.set(
        title=f"share of weight in $p_1$, $q_2$ at t = {run.t[-1]:g}",
        xlabel="exact flow from the same start",
        ylabel="seed",
        aspect="equal",
    )
    return figure


def _figure_spread(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, right) = panels.row(2, 4.2, 3.0)
    N, spread = _main_N(config), theory["spread"]
    run = seeds[f"N{N}"]
    normal = (0.158655, 0.841345)  # one standard deviation of a Gaussian
    ic.overlay(run, {"exact flow": spread}, "strength", left, band=normal, labels=_mode_labels(config))
    mean = spread["strength"] + spread["strength_shift"] + spread["strength_shift_steps"]
    for side in (-1, 1):
        left.plot(spread.t, mean + side * spread["strength_sd"], "k:", linewidth=0.8)
    left.plot([], [], "k:", linewidth=0.8, label="predicted, ±1 sd")
    handles, labels = left.get_legend_handles_labels()  # the modes have their colours from the other panel
    left.legend(handles[-2:], labels[-2:], title=f"{run.coverage}, 16%–84% band", title_fontsize=7.5, loc="lower right")
    left.set(title=f"(i) band of the seeds, N/d = {N / len(config.s):g}", ylabel=r"$a_\alpha$")
    left.set(xlim=(0, run.t[-1]), ylim=(0, None))
    deviation = run.standard_deviation("strength")
    for k, label in enumerate(_mode_labels(config)):
        right.plot(run.t, deviation[:, k], color=f"C{k}", label=label)
        right.plot(spread.t, spread["strength_sd"][:, k], "k--", linewidth=1, label=None if k else "predicted")
    right.set(title=f"(j) its width, lr = {config.lr:g}, batch {config.batch}", xlabel="time $t$")
    right.set(ylabel=r"standard deviation of $a_\alpha$", xlim=(0, run.t[-1]), ylim=(0, None))
    right.legend(**OUTSIDE)
    return figure


def _figure_exact_measures(measures) -> Figure:
    figure, (left, middle, right) = panels.row(3, 3.4, 2.9)
    escapes, dips, peaks = _exact_events(measures)
    curves = [
        (left, "effective_rank", [f"$k$ = {k}" for k in range(3)]),
        (middle, "squared_slope", [None]),
        (right, "ridge_distance", [rf"$\lambda$ = {lam:g}" for lam in RIDGES]),
    ]
    for ax, name, labels in curves:
        for k, t in enumerate(escapes):
            ax.axvline(t, color="0.75", linewidth=0.8, label="escape of a mode" if k == 0 else None, zorder=0)
        ax.plot(measures.t, measures[name].reshape(measures.t.size, -1), label=labels)
        ax.set(xlabel="time $t$", xscale="log", xlim=(0.05, measures.t[-1]))
        panels.plain_ticks(ax.xaxis, (0.1, 1, 10))
    for k, t in enumerate(dips):
        left.plot(t, measures["effective_rank"][:, k].min(), "o", color=f"C{k}", markersize=4)
    middle.plot(peaks, np.interp(peaks, measures.t, measures["squared_slope"]), "o", color="C0", markersize=4)
    left.set(title="(k) effective rank of $q_1$, less its top $k$", ylabel=r"$\mathrm{er}_k$", ylim=(0.9, 5.1))
    middle.set(title="(l) squared slope of the loss", ylabel="$L'(t)^2$", yscale="log", ylim=(1e-6, 1e3))
    right.set(title="(m) ridge subspace distance of $q_1$", ylabel=r"$D_\lambda$", ylim=(0, 1.02))
    left.legend(loc="upper right", ncol=2)
    right.legend(loc="lower left")
    return figure


STUDY = Study(
    title="Exact learning dynamics of a linear transformer: staged, sigmoidal modes and their conservation laws",
    paper="Mainali and Teixeira 2025, arXiv 2504.12916",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
