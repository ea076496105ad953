"""Lu, Letey, Zavatone-Veth, Maiti and Pehlevan 2025, "Asymptotic theory of in-context learning by linear attention".

arXiv 2405.11751.

Linear attention is fitted by ridge regression to n = tau d^2 contexts of l = alpha d pairs, their tasks drawn from a pool of
k = kappa d. The error on new tasks ("ICL") and on the pool's tasks ("IDG", in-distribution generalisation) have sharp limits
as d -> infinity: both have a double descent in tau with its peak at tau = 1, and for rich data the model turns at kappa = 1
from memorising the pool (e_ICL - e_IDG = 1 - kappa) to learning in context (no difference), which the posterior mean over
the pool (dMMSE) never does.

Nothing is trained by gradients: a seed draws its own pool and data set, and the steps of an experiment are Newton's, each of
which solves the ridge regression at the next, smaller lam exactly (`icldyn.objectives.ridge`). So t counts ridges, and t = 0 is
Gamma = 0. Three theories: the paper's closed forms (lam -> 0), the limit at any lam, and the equivalent at finite d.

Conventions: errors are E (y_q - yhat)^2 without the 1/2, with the query's label noise rho included; x ~ N(0, I/d), |w|^2 = d;
the ridge is lam in (sum h h^T + (n/d) lam I)^-1 sum h y.
"""

from __future__ import annotations

import functools
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

TABLE = {  # (alpha, kappa, tau, rho) -> (e_ICL, e_IDG) without ridge, as the notes of the project give the paper's formulas
    (10, 0.5, 0.5, 0.01): (0.8208, 0.2463),
    (10, 0.5, 2, 0.01): (0.8912, 0.1124),
    (10, 0.2, 10, 0.01): (0.8583, 0.0330),
    (10, 1, 10, 0.01): (0.2565, 0.0929),
    (10, 4, 10, 0.01): (0.1197, 0.1104),
    (1, 1, 5, 0.01): (0.7921, 0.4926),
    (10, 2, 0.5, 0.25): (1.2486, 1.1071),
}
SHORT = (0.1, 1e-3, 1e-5)  # ridges of all runs but the paths; the last stands for none
PATH = tuple(float(f"{lam:.6g}") for lam in np.geomspace(10, 1e-5, 13))
KINDS = ("icl", "idg")


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 256
    """Seeds (pools and data sets) of every run at dimension `d`."""
    d: int = 16
    """Dimension of the inputs."""
    alpha: float = 10.0
    """Context length over d."""
    rho: float = 0.01
    """Variance of the label noise."""
    kappas: tuple[float, ...] = (0.5, 4.0)
    """Tasks in the pool over d, for the double descent; the first also for the ridge paths, the last for `sizes`."""
    taus: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
    """Contexts over d^2, for the double descent."""
    path_taus: tuple[float, ...] = (0.5, 1.0, 2.0, 10.0)
    """Contexts over d^2, for the error against the ridge."""
    task_kappas: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)
    """Tasks over d, for the transition."""
    tau: float = 10.0
    """Contexts over d^2, for the transition and for `sizes`."""
    sizes: tuple[int, ...] = (8, 32)
    """Other dimensions, for the finite-size effects."""
    size_seeds: int = 32
    """Seeds of the runs at other dimensions."""
    pools: int = 32
    """Pools over which the equivalent at finite d is averaged."""
    prompts: int = 2000
    """Sampled prompts for the posterior mean over the pool, for each kind of error."""


SCALES = {
    "smoke": Config(
        seeds=64,
        d=8,
        taus=(0.5, 1.0, 2.0),
        path_taus=(2.0,),
        task_kappas=(0.5, 1.0, 4.0),
        sizes=(),
        pools=16,
        prompts=500,
    ),
    "laptop": Config(),
    "paper": Config(
        seeds=64,
        d=64,
        task_kappas=(0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0),
        sizes=(16, 32),
        size_seeds=256,
    ),
}
SIZES = {"seeds": (2, 10**8), "d": (2, 256), "size_seeds": (2, 10**8), "pools": (1, 10**6), "prompts": (2, 10**7)}
REALS: dict[str, dict[str, float]] = {
    "alpha": {"above": 0, "most": 1e6},
    "rho": {"above": 1e-6, "most": 1e6},
    "tau": {"above": 0, "most": 1e4},
}
LISTS = ("kappas", "taus", "path_taus", "task_kappas")


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def whole(name: str, power: int, least: int, what: str) -> None:
        smallest = min(np.atleast_1d(getattr(config, name)))
        d = min([config.d, *config.sizes])
        if round(smallest * d**power) < least:
            raise checks.refuse(name, f"leave at least {what} at d = {d}", getattr(config, name))

    settings.gather(
        *(functools.partial(settings.each, name, ascending=True, above=0, most=1e4) for name in LISTS),
        lambda: [checks.integer(f"sizes[{k}]", d, 2, 256) for k, d in enumerate(checks.entries("sizes", config.sizes))],
    )
    checks.gather(
        *(functools.partial(whole, name, 1, 1, "one task in the pool") for name in ("kappas", "task_kappas")),
        *(functools.partial(whole, name, 2, 1, "one context") for name in ("taus", "path_taus", "tau")),
        functools.partial(whole, "alpha", 1, 2, "two pairs in a context"),
    )


@dataclass(frozen=True)
class Run:
    """One experiment: dimension, ratios, and the ridges of its records after the first."""

    d: int
    kappa: float
    tau: float
    lams: tuple[float, ...]


def runs(config: Config) -> dict[str, Run]:
    """Every run, by name."""
    out = {}
    for kappa in config.kappas:
        out |= {_name(tau, kappa): Run(config.d, kappa, tau, SHORT) for tau in config.taus}
    out |= {_name(config.tau, kappa): Run(config.d, kappa, config.tau, SHORT) for kappa in config.task_kappas}
    out |= {f"path_tau{tau:g}": Run(config.d, config.kappas[0], tau, PATH) for tau in config.path_taus}
    return out | {f"d{d}": Run(d, config.kappas[-1], config.tau, SHORT) for d in (config.d, *config.sizes)}


def _name(tau: float, kappa: float) -> str:
    return f"tau{tau:g}_kappa{kappa:g}"


def _counts(config: Config, run: Run) -> dict[str, int]:
    """Tasks, pairs and contexts."""
    return {"k": round(run.kappa * run.d), "l": round(config.alpha * run.d), "n": round(run.tau * run.d**2)}


def experiments(config: Config) -> dict[str, Any]:
    """Every run: a seed's pool and data set, then one exact solution a step."""
    check(config)
    from icldyn.objectives.ridge import newton, ridge_path

    out = {}
    for name, run in runs(config).items():
        most = round(max(config.kappas + config.task_kappas) * run.d)
        first, ratio = run.lams[0], run.lams[1] / run.lams[0]
        path = ridge_path(run.d, **_counts(config, run), rho=config.rho, first=first, ratio=ratio, most=most)
        out[name] = ic.Experiment(
            path,
            path.start,
            seeds=config.seeds if run.d == config.d else config.size_seeds,
            lr=1.0,
            steps=len(run.lams),
            records=len(run.lams) + 1,
            measures={"icl": path.icl, "idg": path.idg},
            optimiser=newton,
            dtype="float64",
            block=8,  # a seed holds a matrix of d^2 (d+1)^2 numbers
        )
    return out


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """The limit d -> infinity (`limit_RUN`), the equivalent at finite d (`finite_RUN`), and dMMSE (`memoriser_RUN`)."""
    out, every = {}, runs(config)
    for name, trained in seeds.items():
        run = every[name]
        ratios = (config.alpha, run.kappa, run.tau, config.rho)
        limit = np.transpose([ic.finite_pool.ridge_errors(*ratios, lam) for lam in run.lams])
        out[f"limit_{name}"] = _curve(trained.t, limit, config.rho)
        out[f"finite_{name}"] = _curve(trained.t, finite(config, run), config.rho)
    for kappa in config.task_kappas:
        name, rng = _name(config.tau, kappa), np.random.default_rng(1)
        counts = _counts(config, every[name])
        pool = ic.finite_pool.sphere(rng, counts["k"], config.d)
        flat = ic.finite_pool.memoriser_errors(rng, pool, counts["l"], config.rho, config.prompts)
        out[f"memoriser_{name}"] = _curve(seeds[name].t, np.repeat(flat[:, None], len(every[name].lams), 1), config.rho)
    return out


@functools.lru_cache(maxsize=4096)
def finite(config: Config, run: Run) -> np.ndarray:
    """(e_ICL, e_IDG) of the equivalent at finite d for every ridge of a run, (2, L), averaged over pools."""
    rng, counts = np.random.default_rng(0), _counts(config, run)
    total = np.zeros((2, len(run.lams)))
    for _ in range(config.pools):
        w = ic.finite_pool.sphere(rng, counts["k"], run.d)
        moments = w.mean(0), w.T @ w / len(w)
        total += ic.finite_pool.pool_errors(*moments, counts["l"], counts["n"], config.rho, run.lams)
    return total / config.pools


def _curve(t: np.ndarray, errors: np.ndarray, rho: float):
    """Errors (2, L) as a trajectory that starts at Gamma = 0, where both are 1 + rho."""
    values = {kind: np.concatenate([[1 + rho], e]) for kind, e in zip(KINDS, errors, strict=True)}
    return ic.Trajectory(values, {kind: ("time",) for kind in KINDS}, {"t": (("time",), t)})


def _gap_task(run, at: int = -1) -> float:
    """g_task = e_ICL - e_IDG, the mean over seeds or a theory's."""
    values = [run.mean(kind) if run.num_seeds else run[kind] for kind in KINDS]
    return float(values[0][at] - values[1][at])


def _apart(run, theory) -> np.ndarray:
    """Relative differences of the seeds' mean from a theory, (2, T)."""
    return np.array([run.mean(kind) / theory[kind] - 1 for kind in KINDS])


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says, each decided by a number from the seeds."""
    out: list[Claim] = []
    pool, every = ic.finite_pool, runs(config)

    def claim(sentence: str, measured: float, **limits) -> None:
        out.append(Claim(sentence, float(measured), **limits))

    apart = max(np.abs(np.subtract(pool.ridgeless_errors(*p), wanted)).max() for p, wanted in TABLE.items())
    claim("The closed forms without ridge give the table of seven points (largest difference)", apart, high=1e-4)
    apart = max(np.abs(np.subtract(pool.ridge_errors(*p, 0.0), pool.ridgeless_errors(*p))).max() for p in TABLE)
    claim("The self-consistent equations at lam = 0 give the same (largest difference)", apart, high=1e-10)
    far = [_rich_gap(pool, kappa, config.rho) - max(1 - kappa, 0) for kappa in config.task_kappas]
    claim(
        "With rich data, e_ICL - e_IDG is 1 - kappa below kappa = 1 and 0 above (largest difference)",
        np.abs(far).max(),
        high=0.01,
    )

    for d in sorted({config.d, *config.sizes}):  # 10% at d = 16, 5% at d = 32: the finite-size effects fall as 1/d
        run, limit = seeds[f"d{d}"], theory[f"limit_d{d}"]
        where = f"kappa = {config.kappas[-1]:g}, tau = {config.tau:g}, d = {d}"
        claim(
            f"The seeds are near the limit at {where} (relative)", np.abs(_apart(run, limit)[:, -1]).max(), high=1.6 / d
        )
    for d in sorted(
        {config.d, *config.sizes}
    ):  # contexts' leverages vary by 2/d, relatively, which the equivalent neglects
        many = [name for name, run in every.items() if run.d == d and run.tau >= 2]
        gap = max(np.abs(_apart(seeds[name], theory[f"finite_{name}"])).max() for name in many)
        claim(
            f"The seeds follow the equivalent at finite d wherever tau >= 2, d = {d} (relative)",
            gap,
            high=2 / d,
            gap=True,
        )

    for kappa in config.kappas:  # n = d (d + 1) is tau = 1 + 1/d
        errors = [seeds[_name(tau, kappa)].mean("icl")[-1] for tau in config.taus]
        peak = config.taus[int(np.argmax(errors))]
        claim(
            f"Double descent: e_ICL without ridge peaks near n = d (d + 1), tau = {1 + 1 / config.d:.3g}, kappa = {kappa:g}",
            peak,
            low=0.89,
            high=1 + 2 / config.d,
        )

    last = _name(config.tau, config.task_kappas[-1])
    names = [_name(config.tau, kappa) for kappa in config.task_kappas]
    apart = [_gap_task(seeds[name]) / _gap_task(theory[f"finite_{name}"]) - 1 for name in names]
    claim(
        "Transition: e_ICL - e_IDG of the seeds is that of the equivalent for every kappa (relative)",
        np.abs(apart).max(),
        high=2 / config.d,
    )
    ratio = _gap_task(theory[f"memoriser_{last}"]) / _gap_task(seeds[last])
    claim(
        f"The posterior mean over the pool has no transition: its e_ICL - e_IDG over ours at kappa = {config.task_kappas[-1]:g}",
        ratio,
        low=5,
    )
    total = sum(run.finite().size for run in seeds.values())
    claim(f"Seeds without a solution, of {total:,}", sum(run.diverged for run in seeds.values()), high=0)
    return out


def _rich_gap(pool, kappa: float, rho: float) -> float:
    """e_ICL - e_IDG without ridge at tau = 10^8 >> alpha = 10^5 >> 1."""
    icl, idg = pool.ridgeless_errors(1e5, kappa, 1e8, rho)
    return icl - idg


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """Double descent, transition, error against the ridge, finite-size effects."""
    return {
        "double_descent": _figure_double_descent(config, seeds),
        "transition": _figure_transition(config, seeds, theory),
        "ridge": _figure_ridge(config, seeds, theory),
        "finite_size": _figure_finite_size(config, seeds, theory),
    }


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """Double descent of e_ICL."""
    _draw_double_descent(ax, config, seeds, "icl", curves=False)
    ax.set(ylabel=r"$e_\mathrm{ICL}$")


def _plain_ticks(ax, values) -> None:
    """Plain numbers on the logarithmic x axis, those within its limits."""
    low, high = ax.get_xlim()
    kept = [v for v in values if low <= v <= high]
    panels.plain_ticks(ax.xaxis, kept)


def _draw_seeds(ax, x, ends: list, color, label: str) -> None:
    """Median and 5%-95% of the seeds at every x; `ends` holds the values (S,) of each."""
    low, middle, high = np.transpose([np.quantile(e[np.isfinite(e)], (0.05, 0.5, 0.95)) for e in ends])
    ax.errorbar(
        x,
        middle,
        [middle - low, high - middle],
        fmt="o",
        markersize=3.5,
        capsize=2,
        linewidth=1,
        color=color,
        label=label,
    )


def _draw_double_descent(ax, config: Config, seeds: Trajectories, kind: str, curves: bool = True) -> None:
    at = KINDS.index(kind)
    grid = np.geomspace(min(config.taus), max(config.taus), 41)
    for c, kappa in enumerate(config.kappas):
        ends = [seeds[_name(tau, kappa)][kind][:, -1] for tau in config.taus]
        _draw_seeds(ax, config.taus, ends, f"C{c}", rf"$\kappa$ = {kappa:g}")
        if not curves:
            continue
        near = [finite(config, Run(config.d, kappa, tau, SHORT[-1:]))[at, 0] for tau in grid]
        limit = [ic.finite_pool.ridge_errors(config.alpha, kappa, tau, config.rho, SHORT[-1])[at] for tau in grid]
        ax.plot(grid, near, "k--", linewidth=1.1, label=f"equivalent at d = {config.d}" if c == 0 else None)
        ax.plot(grid, limit, "k:", linewidth=1.1, label=r"limit $d \to \infty$" if c == 0 else None)
    ax.set(xscale="log", yscale="log", xlabel=r"contexts over $d^2$, $\tau$")
    _plain_ticks(ax, [0.25, 0.5, 1, 2, 4])
    ax.legend()


def _figure_double_descent(config: Config, seeds: Trajectories) -> Figure:
    figure, axes = panels.row(2, 3.9)
    for ax, kind, letter in zip(axes, KINDS, "ab", strict=True):
        _draw_double_descent(ax, config, seeds, kind)
        what = "new tasks" if kind == "icl" else "the pool's tasks"
        ax.set(
            title=f"({letter}) {what}, {config.seeds} seeds, d = {config.d}", ylabel=rf"$e_\mathrm{{{kind.upper()}}}$"
        )
    return figure


def _figure_transition(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, right) = panels.row(2, 3.9)
    kappas, names = config.task_kappas, [_name(config.tau, kappa) for kappa in config.task_kappas]
    grid = np.geomspace(kappas[0], kappas[-1], 81)
    limit = np.transpose(
        [ic.finite_pool.ridge_errors(config.alpha, k, config.tau, config.rho, SHORT[-1]) for k in grid]
    )
    for c, (kind, what) in enumerate(zip(KINDS, ("ICL, new tasks", "IDG, the pool's tasks"), strict=True)):
        _draw_seeds(left, kappas, [seeds[name][kind][:, -1] for name in names], f"C{c}", what)
        near = [theory[f"finite_{name}"][kind][-1] for name in names]
        left.plot(kappas, near, "k--", linewidth=1.1, label=f"equivalent at d = {config.d}" if c == 0 else None)
        left.plot(grid, limit[c], "k:", linewidth=1.1, label=r"limit $d \to \infty$" if c == 0 else None)
    left.set(title=rf"(a) errors, $\tau$ = {config.tau:g}, {config.seeds} seeds", ylabel=r"$\mathrm{E}\,(y-\hat{y})^2$")
    ends = [seeds[name]["icl"][:, -1] - seeds[name]["idg"][:, -1] for name in names]
    _draw_seeds(right, kappas, ends, "C2", f"ridge, {config.seeds} seeds")
    right.plot(kappas, [_gap_task(theory[f"finite_{name}"]) for name in names], "k--", linewidth=1.1)
    right.plot(grid, limit[0] - limit[1], "k:", linewidth=1.1)
    memoriser = [_gap_task(theory[f"memoriser_{name}"]) for name in names]
    right.plot(kappas, memoriser, "s-", color="C4", markersize=3.5, linewidth=1, label="posterior mean over the pool")
    right.plot(
        grid,
        np.where(grid < 1, 1 - grid, np.nan),
        color="0.7",
        linewidth=3,
        zorder=0,
        label=r"$1 - \kappa$ (rich data)",
    )
    right.set(title="(b) transition", ylabel=r"$e_\mathrm{ICL} - e_\mathrm{IDG}$", yscale="log", ylim=(2e-3, 4))
    for ax in (left, right):
        ax.set(xscale="log", xlabel=r"tasks over $d$, $\kappa$")
        _plain_ticks(ax, [0.25, 0.5, 1, 2, 4, 8])
        ax.legend()
    return figure


def _figure_ridge(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, axes = panels.row(2, 3.9)
    for ax, kind, letter in zip(axes, KINDS, "ab", strict=True):
        for c, tau in enumerate(config.path_taus):
            name = f"path_tau{tau:g}"
            panels.band(ax, PATH, seeds[name].quantile(kind, (0.05, 0.5, 0.95))[:, 1:], f"C{c}", rf"$\tau$ = {tau:g}")
            labels = (f"equivalent at d = {config.d}", r"limit $d \to \infty$") if c == 0 else (None, None)
            for curve, dashes, label in zip(("finite", "limit"), ("k--", "k:"), labels, strict=True):
                ax.plot(PATH, theory[f"{curve}_{name}"][kind][1:], dashes, linewidth=1.1, label=label)
        title = rf"({letter}) $\kappa$ = {config.kappas[0]:g}, {config.seeds} seeds, 5%–95%"
        ax.set(
            title=title, xlabel=r"ridge $\lambda$", ylabel=rf"$e_\mathrm{{{kind.upper()}}}$", xscale="log", yscale="log"
        )
    axes[0].legend()
    return figure


def _figure_finite_size(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (ax,) = panels.row(1, 3.9)
    sizes = np.array(sorted({config.d, *config.sizes}))
    for c, kind in enumerate(KINDS):
        ends = {d: theory[f"limit_d{d}"][kind][-1] for d in sizes}
        mean = [seeds[f"d{d}"].mean(kind)[-1] / ends[d] - 1 for d in sizes]
        error = [seeds[f"d{d}"].standard_error(kind)[-1] / ends[d] for d in sizes]
        ax.errorbar(
            sizes,
            mean,
            error,
            fmt="o",
            markersize=3.5,
            capsize=2,
            color=f"C{c}",
            label=f"{kind.upper()}, mean of the seeds",
        )
        near = [theory[f"finite_d{d}"][kind][-1] / ends[d] - 1 for d in sizes]
        ax.plot(sizes, near, "k--", linewidth=1.1, label="equivalent at finite d" if c == 0 else None)
    ax.plot(sizes, 1.6 / sizes, color="0.7", linewidth=1, label="10% at d = 16, as 1/d")
    title = rf"excess over the limit, $\kappa$ = {config.kappas[-1]:g}, $\tau$ = {config.tau:g}"
    ax.set(title=title, xlabel="dimension d", ylabel=r"$e / e_{d \to \infty} - 1$", xscale="log", yscale="log")
    _plain_ticks(ax, sizes)
    ax.legend()
    return figure


STUDY = Study(
    title="In-context learning of linear attention from a finite pool of tasks: double descent and the transition at kappa = 1",
    paper="Lu, Letey, Zavatone-Veth, Maiti and Pehlevan 2025, arXiv 2405.11751",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
