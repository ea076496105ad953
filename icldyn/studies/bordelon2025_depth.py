"""Bordelon, Letey and Pehlevan 2025, theory of in-context learning in deep looped linear attention (arXiv 2510.01098).

A context of P = alpha D pairs is answered by one attention layer applied L times, f = x_q^T what_L, that is by L steps of descent
on the context with a learned preconditioner Gamma / L. What depth is good for depends on the structure of the inputs:

- ISO, x ~ N(0, I): deeper is better at every alpha, down to [1 - alpha]_+ of the initial loss;
- FS, one fixed covariance Sigma: Gamma -> L Sigma^-1 is learned and one layer is enough, at the price of breaking on any other;
- RRS, a covariance rotated anew in every context: Gamma = gamma I, and the loss falls as a power of L.

Seeds of sampled SGD meet exact theory: gradient flow on the loss at finite D and P (`looped.wishart`, beside the limit of
Marchenko and Pastur), the recursion of SGD with a full matrix at depth 1, exact at every D, and the mode equations of FS and RRS.

Conventions: loss 1/2 (y - f)^2, averaged over contexts and queries (the paper has no 1/2: its losses and rates are twice ours;
the table of ISO is given in its convention). t = lr x steps. w ~ N(0, I/D) in ISO. FS and RRS have P = infinity, where a
context shows its covariance itself. RRS trains numbers, for which rotating each context changes nothing, so it is not done.
A gap is max over t of |mean loss of the seeds - theory| over the loss at t = 0: steps of rate lr lie O(lr) off the flow.
Power laws are fitted to exact losses over finite ranges, whose next orders leave some percent of an exponent.
"""

from __future__ import annotations

import functools
import math
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

TABLE = {  # loss without 1/2 at the best gamma, by alpha, at L = 1, 2, 4, 16, with the digits of the notes
    0.5: (0.6667, 0.5926, 0.5414, 0.5024),
    1.0: (0.5, 0.375, 0.2734, 0.13995),
    2.0: (1 / 3, 0.1852, 0.08276, 0.00486),
    4.0: (0.2, 0.072, 0.01466, 1e-5),
}
QUIET = {"alpha": 2.0, "kappa": 1.0, "tau": 1.0}  # SGD at depth 1: P = alpha D, K = kappa D queries, B = tau D contexts
NOISY = {"alpha": 1.0, "kappa": 0.5, "tau": 2.0, "sigma2": 0.25, "noisy_queries": True}
LOSS = r"$\frac{1}{2}\,\mathrm{E}\,(y-f)^2$"
POWERS = (1, 5)  # RRS trains Gamma = w I, and w^5 I for the five matrices of a layer
FASTER = 50  # how much sooner w^5 is done, and by how much its rate is lower
START = 0.1  # gamma of RRS at t = 0
MODES, DEPTHS = 20_000, (128, 256, 512, 1024)  # of the power laws, which need many modes and depths
WIDTHS, BUDGETS = np.unique(np.geomspace(8, 400, 64).round().astype(int)), np.geomspace(1e11, 1e15, 25)


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 256
    """Seeds of every run."""
    D: int = 32
    """Input dimension of ISO."""
    alpha: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Pairs of a context over D, ascending."""
    L: tuple[int, ...] = (1, 2, 4)
    """Depths, ascending."""
    contexts: int = 8
    """Contexts a step in ISO; FS and RRS have four times as many."""
    lr: float = 0.05
    """Learning rate of ISO, twice that of FS and RRS."""
    t_end: float = 60.0
    """Time of ISO."""
    sgd_D: tuple[int, ...] = (16, 32, 64)
    """Dimensions in which a full matrix is trained at depth 1, ascending."""
    sgd_steps: int = 40
    """Steps of these runs."""
    eta: float = 0.2
    """Their learning rate, over D."""
    modes: int = 8
    """Modes of FS and RRS."""
    nu: float = 1.5
    """Their eigenvalues lambda_k = k^-nu."""
    beta: float = 1.0
    """Their tasks: omega_k lambda_k proportional to k^(-nu beta - 1)."""
    structured_L: int = 4
    """Their depth."""
    structured_t: float = 200.0
    """Their time, lr x steps; that of w^5 is a fiftieth."""


SCALES = {
    "smoke": Config(seeds=48, D=16, alpha=(1.0, 2.0), L=(1, 2), t_end=8.0, sgd_D=(16,), structured_t=40.0),
    "laptop": Config(),
    "paper": Config(seeds=4096, L=(1, 2, 4, 8), lr=0.02, t_end=200.0, sgd_D=(16, 32, 64, 128), structured_t=1000.0),
}
SIZES = {"seeds": (8, 10**8), "D": (2, 4096), "contexts": (1, 10**6), "sgd_steps": (1, 10**6), "modes": (4, 4096)}
SIZES |= {"structured_L": (2, 64)}
REALS: dict[str, dict[str, float]] = {name: {"above": 1e-6, "most": 1e6} for name in ("lr", "t_end", "structured_t")}
REALS |= {name: {"above": 0, "most": 1e3} for name in ("eta", "nu", "beta")}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def pairs() -> None:
        D, depth = settings.size("D"), settings.each("L", checks.integer, 1, 12, ascending=True)[-1]
        least = 2 * depth
        if D < least:
            raise checks.refuse("D", f"be at least {least}, twice the largest of `L`", D)
        for k, alpha in enumerate(settings.each("alpha", ascending=True, above=0, most=1e6)):
            if alpha * D < least or abs(alpha * D - round(alpha * D)) > 1e-9:
                raise checks.refuse(f"alpha[{k}]", f"make alpha D, D = {D}, a whole number of at least {least}", alpha)

    def sizes_of_sgd() -> None:
        for k, D in enumerate(settings.each("sgd_D", checks.integer, 4, 4096, ascending=True)):
            if D % 2:
                raise checks.refuse(f"sgd_D[{k}]", "be even, for D / 2 queries", D)

    def takes_steps() -> None:
        for name, rate in (("t_end", settings.number("lr")), ("structured_t", 2 * settings.number("lr"))):
            if not 1 <= settings.number(name) / rate < 2**31 - 2:
                raise checks.refuse(name, f"be 1 to 2**31 steps of {rate:g}", settings.number(name))

    settings.gather(pairs, sizes_of_sgd, takes_steps)


def experiments(config: Config) -> dict[str, Any]:
    """Every run of the study, by name."""
    from jax.tree_util import Partial

    check(config)
    out, D, looped, constant = {}, config.D, ic.looped_attention.looped, ic.looped_attention.constant
    for alpha, L in _iso_runs(config):
        model = looped(D, L)
        data = {"P": round(alpha * D), "contexts": config.contexts, "queries": D}
        loss = Partial(_iso_loss, np.float64(L), ic.looped.wishart(max(config.L), D, data["P"]))
        out[_iso_name(alpha, L)] = ic.Experiment(
            ic.queries.revealed(model, np.ones(D), np.full(D, 1 / D), **data),
            constant(model),
            measures={"gamma": Partial(_gamma, 1.0), "loss": loss},
            seeds=config.seeds,
            lr=config.lr,
            t_end=config.t_end,
            spacing="log",
        )
    for name, (D, settings) in _sgd_runs(config).items():
        model, s = looped(D, 1, "matrix"), ic.looped.sgd_recursion(config.eta, **settings, D=D)[0]
        noise = {"sigma2": settings.get("sigma2", 0.0), "noisy_queries": settings.get("noisy_queries", False)}
        sizes = {k: round(settings[r] * D) for k, r in (("P", "alpha"), ("queries", "kappa"), ("contexts", "tau"))}
        out[name] = ic.Experiment(
            ic.queries.revealed(model, np.ones(D), np.full(D, 1 / D), **sizes, **noise),
            constant(model),
            measures={"distance": Partial(_distance, s), "loss": Partial(_matrix_loss, s)},
            seeds=config.seeds,
            lr=config.eta * D,
            steps=config.sgd_steps,
            records=config.sgd_steps + 1,
        )
    lam, omega = ic.looped.power_law(config.modes, config.nu, config.beta)
    for name, power in {"FS": 1, "RRS1": 1, "RRS5": 5}.items():
        model = looped(config.modes, config.structured_L, "diagonal" if name == "FS" else "scalar", power)
        faster = FASTER if power > 1 else 1
        out[name] = ic.Experiment(
            ic.queries.revealed(model, lam, omega, P=None, contexts=4 * config.contexts, queries=32),
            constant(model, 0.0 if name == "FS" else START ** (1 / power)),
            measures=_structured_measures(config, power),
            dims={"gamma": ("mode",) if name == "FS" else ()},
            seeds=config.seeds,
            lr=2 * config.lr / faster,
            t_end=config.structured_t / faster,
            records=49,
            spacing="log",
        )
    return out


def _iso_runs(config: Config) -> list[tuple[float, int]]:
    return [(alpha, L) for alpha in config.alpha for L in config.L]


def _iso_name(alpha: float, L: int) -> str:
    return f"ISO_alpha{alpha:g}_L{L}"


def _sgd_runs(config: Config) -> dict[str, tuple[int, dict[str, Any]]]:
    """Name -> (D, settings of `looped.sgd_recursion`)."""
    return {f"SGD_D{D}": (D, QUIET) for D in config.sgd_D} | {"SGD_noisy": (max(config.sgd_D), NOISY)}


def _structured_measures(config: Config, power: int) -> dict[str, Any]:
    """Gamma and the exact loss."""
    from jax.tree_util import Partial

    lam, omega = ic.looped.power_law(config.modes, config.nu, config.beta)
    depth, power = np.float64(config.structured_L), np.float64(power)
    return {"gamma": Partial(_gamma, power), "loss": Partial(_modes_loss, lam, omega, depth, power)}


def _gamma(power, params):
    return params["w"] ** power


def _modes_loss(lam, omega, L, power, params):
    return ic.looped.modes_loss(params["w"] ** power, lam, omega, L)


def _iso_loss(L, spectrum, params):
    return ic.looped.iso_loss(params["w"], L, spectrum)


def _distance(s, params):
    w = params["w"]
    return ((w**2).sum() - 2 * w.trace() / s) / w.shape[0] + 1 / s**2


def _matrix_loss(s, params):
    return 0.5 * (1 - 1 / s + s * _distance(s, params))


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """`exact_RUN` for every run, and `limit_RUN`, D -> infinity, for ISO and SGD, on the record times of the seeds."""
    out = _iso_flows(config, seeds[_iso_name(*_iso_runs(config)[0])].t)
    for name, (D, settings) in _sgd_runs(config).items():
        (_, steps), t = seeds[name].coords["step"], seeds[name].t
        for kind, size in (("exact", D), ("limit", None)):
            s, _ = ic.looped.sgd_recursion(config.eta, **settings, D=size)
            loss = ic.looped.sgd_loss(steps, config.eta, **settings, D=size)
            out[f"{kind}_{name}"] = _curves(t, loss=loss, distance=(2 * loss - 1 + 1 / s) / s)
    return out | _structured_flows(config, seeds)


def _curves(t: np.ndarray, **values: np.ndarray):
    return ic.Trajectory(
        values,
        {name: ("time", "mode")[: value.ndim] for name, value in values.items()},
        {"t": (("time",), np.asarray(t))},
    )


def _iso_flows(config: Config, t: np.ndarray) -> dict[str, Any]:
    """Gradient flow of all ISO runs at once, at their own D and P and in the limit."""
    from jax.tree_util import Partial

    runs, n = _iso_runs(config), max(config.L)
    kinds = {"exact": lambda alpha: ic.looped.wishart(n, config.D, round(alpha * config.D))}
    kinds["limit"] = functools.partial(ic.looped.marchenko_pastur, n)
    spectra = [spectrum(alpha) for spectrum in kinds.values() for alpha, _ in runs]
    held = (np.array(2 * [float(L) for _, L in runs]), tuple(map(np.stack, zip(*spectra, strict=True))))
    start = {"w": np.zeros(len(spectra))}
    flow = ic.flow(
        Partial(_iso_field, *held),
        start,
        t,
        measures={"gamma": Partial(_gamma, 1.0), "loss": Partial(_iso_losses, *held)},
    )
    names = [f"{kind}_{_iso_name(*run)}" for kind in kinds for run in runs]
    return {name: _curves(t, gamma=flow["gamma"][:, k], loss=flow["loss"][:, k]) for k, name in enumerate(names)}


def _iso_field(L, spectra, params):
    import jax

    return {"w": jax.vmap(ic.looped.iso_rate)(params["w"], L, spectra)}


def _iso_losses(L, spectra, params):
    import jax

    return jax.vmap(ic.looped.iso_loss)(params["w"], L, spectra)


def _structured_flows(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """The closed form of FS and its ODE, and the flow of RRS; both solved as one system, w^5 on a slower clock."""
    from jax.tree_util import Partial

    lam, omega = ic.looped.power_law(config.modes, config.nu, config.beta)
    field = Partial(_structured_field, lam, omega, np.float64(config.structured_L), np.array(POWERS, float))
    start = {"FS": np.zeros(config.modes), "RRS": START ** (1 / np.array(POWERS, float))}
    flow = ic.flow(field, start, seeds["FS"].t, rtol=1e-10)
    gammas = {"FS": ic.looped.fs_gamma(seeds["FS"].t, lam, omega, config.structured_L)}
    gammas |= {f"RRS{power}": w**power for w, power in zip(flow["RRS"].T, POWERS, strict=True)}
    out = {"ode_FS": _curves(seeds["FS"].t, gamma=flow["FS"])}
    for name, gamma in gammas.items():
        loss = np.array([float(ic.looped.modes_loss(g, lam, omega, config.structured_L)) for g in gamma])
        out[f"exact_{name}"] = _curves(seeds[name].t, gamma=gamma, loss=loss)
    return out


def _structured_field(lam, omega, L, powers, params):
    import jax

    rates = jax.vmap(ic.looped.rrs_rate, (0, None, None, None, 0))(params["RRS"], lam, omega, L, powers)
    clock = jax.numpy.where(powers > 1, 1 / FASTER, 1.0)
    return {"FS": ic.looped.fs_rate(params["FS"], lam, omega, L), "RRS": rates * clock}


def _gap(run, theory) -> float:
    """max over t of |mean loss of the seeds - theory| over the loss at t = 0."""
    return float(np.abs(run.mean("loss") - theory["loss"]).max() / theory["loss"][0])


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _best_iso(alpha: float, L: int) -> float:
    """Loss without 1/2 at the best gamma, L alpha / (1 + alpha), as D -> infinity."""
    return 2 * float(ic.looped.iso_loss(L * alpha / (1 + alpha), L, ic.looped.marchenko_pastur(L, alpha)))


@functools.cache
def _power_laws(nu: float, beta: float) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Title -> (x, y, exponent) of every power law, from exact losses of so many modes."""
    lam, omega = ic.looped.power_law(MODES, nu, beta)
    best = [float(ic.looped.modes_loss(ic.looped.rrs_optimum(L, lam, omega), lam, omega, L)) for L in DEPTHS]
    out = {"RRS, depth": (np.array(DEPTHS), np.array(best), -beta)}
    gamma = np.geomspace(0.01, 3e3 ** min(nu, 2), 240)
    for power in POWERS:
        t, loss = ic.looped.rrs_curve(gamma, lam, omega, math.inf, power)
        out[f"RRS{power}, time"] = (t[120:], loss[120:], -ic.looped.rrs_time_exponent(beta, power))
    t = np.geomspace(1e6, 1e12, 25)
    loss = [np.sum(omega * lam / (1 + 2 * omega * lam**3 * at)) / 2 for at in t]
    out["FS, time"] = (t, np.array(loss), -ic.looped.fs_time_exponent(nu, beta))
    loss, N, L = ic.looped.compute_optimal(BUDGETS, lam, omega, WIDTHS, np.unique(np.geomspace(4, 1000, 48).round()))
    out["RRS, compute"] = (BUDGETS, loss, -ic.looped.compute_exponent(nu, beta))
    out["RRS, best depth"] = (N, L, nu)
    return out


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says, each decided by a number."""
    out: list[Claim] = []

    def claim(sentence: str, measured: float, **limits) -> None:
        out.append(Claim(sentence, float(measured), **limits))

    for alpha, row in TABLE.items():
        apart = [abs(_best_iso(alpha, L) - wanted) for L, wanted in zip((1, 2, 4, 16), row, strict=True)]
        claim(
            f"ISO, alpha = {alpha:g}: losses at the best gamma, L = 1, 2, 4, 16 (off the notes)", max(apart), high=1e-4
        )
    for alpha, L in _iso_runs(config):
        name = _iso_name(alpha, L)
        gap = _gap(seeds[name], theory[f"exact_{name}"])
        claim(
            f"ISO, alpha = {alpha:g}, L = {L}: seeds follow the exact flow at D = {config.D} (gap)",
            gap,
            high=0.02,
            gap=True,
        )
    names = [_iso_name(*run) for run in _iso_runs(config)]
    for kind, high in (
        ("exact", 0.01),
        ("limit", math.inf),
    ):  # SGD adds lr/4 times the variance of its gradient: below 1%
        apart = [abs(seeds[name].mean("loss")[-1] / theory[f"{kind}_{name}"]["loss"][-1] - 1) for name in names]
        size = f"D = {config.D}" if kind == "exact" else "D -> infinity"
        claim(
            f"ISO: final loss of the seeds against the exact flow at {size} (largest, relative)", max(apart), high=high
        )
    for name in _sgd_runs(config):
        run, exact = seeds[name], theory[f"exact_{name}"]
        apart = np.abs(run.mean("loss") - exact["loss"])[1:] / run.standard_error("loss")[1:]
        claim(
            f"{name}: mean loss of every step is the recursion's (largest of the standard errors)",
            apart.max(),
            high=4.5,
        )
    for label, settings, a, floor in (("noiseless", QUIET, 0.67, 0.121), ("noisy queries", NOISY, 0.606, 0.248)):
        found = ic.looped.sgd_floor(0.2, **settings)
        claim(f"SGD at L = 1, D -> infinity, {label}: contraction a", found[0], low=a - 1e-3, high=a + 1e-3)
        claim(f"SGD at L = 1, D -> infinity, {label}: floor", found[1], low=floor - 1e-3, high=floor + 1e-3)
    apart = np.abs(theory["ode_FS"]["gamma"] / np.maximum(theory["exact_FS"]["gamma"], 1e-300) - 1)[1:]
    claim("FS: the ODE of the modes ends at its closed form (relative)", apart.max(), high=1e-6)
    for name in ("FS", *(f"RRS{power}" for power in POWERS)):
        gap = _gap(seeds[name], theory[f"exact_{name}"])
        claim(f"{name}: seeds follow the exact flow at L = {config.structured_L} (gap)", gap, high=0.02, gap=True)
    for title, (x, y, exponent) in _power_laws(config.nu, config.beta).items():
        claim(f"Exponent of {title} over {exponent:.4g}", _slope(x, y) / exponent, low=0.9, high=1.1)
    total = sum(run.finite().size for run in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(run.diverged for run in seeds.values()), high=0)
    return out


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """The figures (a) to (j)."""
    draws = (_figure_iso, _figure_sgd, _figure_structure, _figure_power_laws)
    return {draw.__name__.removeprefix("_figure_"): draw(config, seeds, theory) for draw in draws}


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """Loss over time in ISO, at the middle alpha, at every depth."""
    alpha = config.alpha[len(config.alpha) // 2]
    for k, L in enumerate(config.L):
        name = _iso_name(alpha, L)
        _band(ax, seeds[name], "loss", f"C{k}", f"L = {L}")
        for kind, dashes in (("exact", "--"), ("limit", ":")):
            ax.plot(seeds[name].t, theory[f"{kind}_{name}"]["loss"], f"k{dashes}", linewidth=1.1)
    ax.plot([], [], "k--", label=f"exact flow, D = {config.D}")
    ax.plot([], [], "k:", label=r"$D \to \infty$")
    ax.set(xlabel="time $t$", ylabel=LOSS, yscale="log", xlim=(0, seeds[name].t[-1]))


def _band(ax, run, name: str, color: str, label: str, x=None) -> None:
    """Mean of the seeds, which the theories predict, and the band of 5% to 95%."""
    low, high = run.quantile(name, (0.05, 0.95))
    panels.band(ax, run.t if x is None else x, (low, run.mean(name), high), color, label)


def _legend(ax, run, **where) -> None:
    ax.legend(title=f"{run.coverage}, mean and 5%–95%", title_fontsize=7.5, **where)


def _figure_iso(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, right) = panels.row(2, 4.2, 3.2)
    panel(left, config, seeds, theory)
    left.set_title(rf"(a) ISO, $\alpha$ = {config.alpha[len(config.alpha) // 2]:g}")
    _legend(left, next(iter(seeds.values())))
    depths = np.unique(np.geomspace(1, 64, 40).round().astype(int)).tolist()
    for k, alpha in enumerate(config.alpha):
        names = [_iso_name(alpha, L) for L in config.L]
        ends = [seeds[name].mean("loss")[-1] for name in names]
        right.plot(config.L, ends, "o", color=f"C{k}", markersize=5, label=rf"seeds, $\alpha$ = {alpha:g}")
        right.plot(config.L, [theory[f"exact_{name}"]["loss"][-1] for name in names], "k_", markersize=12)
        right.plot(depths, [_best_iso(alpha, L) / 2 for L in depths], "k--", linewidth=1)
    right.plot([], [], "k_", markersize=9, label=f"exact flow, D = {config.D}")
    right.plot([], [], "k--", label=r"best $\gamma$, $D \to \infty$")
    right.set(title=f"(b) loss against depth at t = {config.t_end:g}", xlabel="depth $L$", ylabel=LOSS)
    right.set(xscale="log", yscale="log", ylim=(1e-3, 0.6))
    panels.plain_ticks(right.xaxis, (1, 2, 4, 8, 16, 32, 64))
    right.legend(loc="lower right")
    return figure


def _figure_sgd(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, right) = panels.row(2, 4.2, 3.2)
    for k, D in enumerate(config.sgd_D):
        name = f"SGD_D{D}"
        steps = seeds[name].coords["step"][1]
        _band(left, seeds[name], "distance", f"C{k}", f"D = {D}", steps)
        left.plot(steps, theory[f"exact_{name}"]["distance"], "k--", linewidth=1.1)
    left.plot([], [], "k--", label="exact recursion")
    left.plot(steps, theory[f"limit_{name}"]["distance"], "k:", linewidth=1.1, label=r"$D \to \infty$")
    left.set(title=rf"(c) SGD, $L$ = 1, $\alpha$ = {QUIET['alpha']:g}, $\eta$ = {config.eta:g}", xlabel="step")
    left.set(ylabel=r"$\|\Gamma - \Gamma^*\|_F^2\,/\,D$", ylim=(0, None), xlim=(0, config.sgd_steps))
    _legend(left, seeds[name])
    grid = np.array([14, 16, 18, 20, 24, 28, 32, 40, 48, 64, 96, 128, 256, 1024])
    groups = {"noiseless queries": (QUIET, {D: f"SGD_D{D}" for D in config.sgd_D})}
    groups["noisy queries"] = (NOISY, {max(config.sgd_D): "SGD_noisy"})
    for k, (label, (settings, names)) in enumerate(groups.items()):
        ends = [(seeds[n].mean("distance")[-1], 2 * seeds[n].standard_error("distance")[-1]) for n in names.values()]
        x = 1 / np.array(list(names))
        right.errorbar(x, *np.transpose(ends), fmt="o", color=f"C{k}", markersize=4, label=f"{label}, mean ± 2 s.e.")
        exact = [(1 / D, ic.looped.sgd_floor(config.eta, **settings, D=int(D))[1]) for D in grid]
        right.plot(*np.transpose(exact), "k--", linewidth=1.1, label=None if k else "exact")
        limit = ic.looped.sgd_floor(config.eta, **settings)[1]
        right.plot(0, limit, "ks", markersize=4, clip_on=False, label=None if k else r"$D \to \infty$")
    right.set(title=f"(d) floor, seeds at step {config.sgd_steps}", xlabel="$1/D$", ylabel=left.get_ylabel())
    right.set(xlim=(0, 1 / 14), ylim=(0, 0.6))
    right.legend(loc="upper left")
    return figure


def _figure_structure(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, middle, right) = panels.row(3, 3.7, 3.1)
    run, L, lam = seeds["FS"], config.structured_L, ic.looped.power_law(config.modes, config.nu, config.beta)[0]
    for k in range(4):
        scale = lam[k] / L
        low, high = run.quantile("gamma", (0.05, 0.95))[..., k] * scale
        panels.band(left, run.t, (low, run.mean("gamma")[:, k] * scale, high), f"C{k}", f"mode {k + 1}")
        left.plot(run.t, theory["exact_FS"]["gamma"][:, k] * scale, "k--", linewidth=1.1)
    left.plot([], [], "k--", label="closed form")
    left.set(title=f"(e) FS, $L$ = {L}", ylabel=r"$\lambda_k \gamma_k / L$")
    _legend(left, run)
    labels = {"FS": r"FS, $\Gamma$ diagonal", "RRS1": r"RRS, $\Gamma = w I$", "RRS5": r"RRS, $\Gamma = w^5 I$"}
    for k, (name, label) in enumerate(labels.items()):
        _band(middle, seeds[name], "loss", f"C{k}", label)
        middle.plot(seeds[name].t, theory[f"exact_{name}"]["loss"], "k--", linewidth=1.1)
    middle.plot([], [], "k--", label="exact")
    middle.set(title=f"(f) loss over time, $L$ = {L}", ylabel=LOSS, yscale="log")
    middle.legend()
    for ax in (left, middle):
        ax.set(xlabel="time $t$", xscale="log", xlim=(run.t[1], run.t[-1]))
    _brittleness(right, config)
    return figure


def _brittleness(ax, config: Config) -> None:
    """Loss of what FS and RRS end with when the covariance turns, with its tasks, in the plane of modes 1 and 4."""
    lam, omega = ic.looped.power_law(config.modes, config.nu, config.beta)
    angles = np.linspace(0, math.pi / 4, 46)
    for k, L in enumerate((1, 2, 4)):
        ends = {"-": np.diag(L / lam), ":": ic.looped.rrs_optimum(L, lam, omega) * np.eye(lam.size)}
        for dashes, Gamma in ends.items():
            losses = []
            for angle in angles:
                turn = np.eye(lam.size)
                turn[np.ix_((0, 3), (0, 3))] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
                losses.append(float(ic.looped.ood_loss(Gamma, (turn * lam) @ turn.T, (turn * omega) @ turn.T, L)))
            ax.plot(angles, losses, f"C{k}{dashes}", label=f"{'FS' if dashes == '-' else 'RRS'}, L = {L}")
    ax.set(
        title="(g) trained to the end, then turned", xlabel="angle (rad)", ylabel=LOSS, yscale="log", ylim=(1e-5, 1e2)
    )
    ax.legend(ncol=2, loc="lower right")


def _figure_power_laws(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, axes = panels.row(3, 3.7, 3.1)
    laws, names = _power_laws(config.nu, config.beta), {"RRS1": r"RRS, $\Gamma = wI$", "RRS5": r"RRS, $\Gamma = w^5 I$"}
    groups = (("RRS, depth",), ("FS, time", "RRS1, time", "RRS5, time"), ("RRS, best depth",))
    for ax, titles in zip(axes, groups, strict=True):
        for k, title in enumerate(titles):
            x, y, exponent = laws[title]
            label = f"{names.get(title[:4], title.split(',')[0])}: slope {_slope(x, y):.3f}, theory {exponent:.3f}"
            ax.plot(x, y, "o", color=f"C{k}", markersize=3, label=label)
            middle = np.exp([np.log(x).mean(), np.log(y).mean()])
            ax.plot(x, middle[1] * (x / middle[0]) ** exponent, "k--", linewidth=1)
        ax.set(xscale="log", yscale="log", ylabel=LOSS)
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** 0.3)
        ax.legend(loc="upper left")
    spectrum = rf"$\nu$ = {config.nu:g}, $\beta$ = {config.beta:g}"
    axes[0].set(title=f"(h) RRS, best loss; {spectrum}", xlabel="depth $L$")
    panels.plain_ticks(axes[0].xaxis, DEPTHS)
    axes[1].set(title=r"(i) loss over time, $L \to \infty$", xlabel="time $t$")
    axes[2].set(title="(j) RRS, best at given compute", xlabel="width $N$", ylabel="depth $L$")
    panels.plain_ticks(axes[2].xaxis, (50, 100, 150))
    panels.plain_ticks(axes[2].yaxis, (50, 100, 200, 400))
    return figure


STUDY = Study(
    title="Looped linear attention: what depth is good for, by the structure of the inputs",
    paper="Bordelon, Letey and Pehlevan 2025, arXiv 2510.01098",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
