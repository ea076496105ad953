"""Zhang, Singh, Latham and Saxe 2025, "Training dynamics of in-context learning in linear attention" (arXiv 2501.16265).

Linear attention of H heads whose keys and queries have rank R and are trained apart goes from saddle to saddle: at R = 1 one
head after another takes one mode, and the loss rests on a ladder of D + 1 rungs, principal-component regression in context
with ever more components. With R > 1 a head that has escaped takes R modes in quick succession.

Here seeds of online SGD meet these exact theories:

- heads that start on one mode each, |v| = |k| = |q|: the paper's scalar equation mode by mode, with its escape times in closed
  form and what SGD adds to them to first order in lr (`saddles`);
- Gaussian weights: the gradient flow of the expected loss from the seeds' own weights, which also says which head takes which
  mode; and the law of the first escape: heads do not see each other before it, so it is the least of H independent times of
  single heads.

Conventions: loss 1/2 (y_q - yhat_q)^2, t = lr x steps, context sums divided by N, zero blocks; the paper's MSE has no 1/2, so
its losses are twice ours and its events come at half our t, and its code does not divide by N. Gaussian weights have |v_h|,
|K_h| and |Q_h| of root mean square `spread`, for every R. A mode is learned when it is halfway to 1/Gamma_a.
"""

from __future__ import annotations

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

OTHERS = 100_000  # seeds from here on make the law of the first escape
DRAWN = 8  # seeds drawn one by one
DIMS = {
    "strength": ("mode",),
    "by_head": ("head", "mode"),
    "value_key": ("head",),
    "key_query": ("head", "row", "column"),
}


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 256
    """Seeds of every run."""
    flows: int = 64
    """Seeds whose own exact flow is solved, and the number of draws of the first escape."""
    H: int = 5
    """Heads, at least as many as modes."""
    N: int = 31
    """Context length."""
    s: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)
    """Eigenvalues of Sigma, descending."""
    lr: float = 0.15
    """Learning rate of SGD."""
    lrs: tuple[float, ...] = (0.4, 0.25)
    """Learning rates of the conservation sweep, beside `lr`."""
    batch: int = 64
    """Prompts a step."""
    starts: tuple[float, ...] = (0.105, 0.062, 0.0735, 0.139)
    """|v| = |k| = |q| at the start of the head on each mode: far enough apart in time that the loss rests on every rung."""
    t_aligned: float = 900.0
    """Time of the heads on one mode each."""
    spread: float = 0.2
    """Root mean square of the initial |v_h|, |K_h|, |Q_h| of Gaussian weights."""
    t_end: float = 400.0
    """Time of the runs from Gaussian weights."""
    ranks: tuple[int, ...] = (1, 2, 4)
    """Ranks R of key and query, from 1 on."""


SCALES = {
    "smoke": Config(seeds=32, flows=16, lr=0.2, lrs=(0.4,), t_aligned=800.0, t_end=200.0, ranks=(1,)),
    "laptop": Config(),
    "paper": Config(
        seeds=10_000,
        flows=256,
        H=9,
        lr=0.02,
        lrs=(0.16, 0.08, 0.04),
        batch=256,
        spread=0.05,
        t_end=4000.0,
        ranks=(1, 2, 3, 4),
    ),
}

SIZES = {"seeds": (DRAWN, OTHERS), "flows": (DRAWN, 10**4), "H": (1, 10**3), "N": (2, 10**9), "batch": (1, 2**20)}
REALS: dict[str, dict[str, float]] = {
    "lr": {"above": 0},
    "spread": {"above": 1e-6, "most": 1},
    "t_end": {"above": 1e-6, "most": 1e7},
    "t_aligned": {"above": 1e-6, "most": 1e7},
}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def spectrum() -> np.ndarray:
        return checks.eigenvalues("s", settings.each("s", least=1e-6, most=1e6))

    def heads() -> None:
        if settings.size("H") < spectrum().size:
            raise checks.refuse("H", f"be at least the number of eigenvalues in `s`, {spectrum().size}", config.H)

    def starts() -> None:
        s, N, held = spectrum(), settings.size("N"), settings.each("starts", above=1e-6)
        if len(held) != s.size:
            raise checks.refuse("starts", f"hold one number for each eigenvalue in `s`, {s.size}", config.starts)
        for k, (start, end) in enumerate(zip(held, (((N + 1) * s + s.sum()) / N) ** (-1 / 3), strict=True)):
            if start >= end:
                raise checks.refuse(f"starts[{k}]", f"be below {end:.3g}, where its mode ends", start)

    def ranks() -> None:
        if settings.each("ranks", checks.integer, 1, spectrum().size, ascending=True)[0] != 1:
            raise checks.refuse("ranks", "hold ascending ranks, the first of them 1", config.ranks)

    def rates() -> None:
        lrs = [*settings.each("lrs", above=0), settings.number("lr")]
        if len(set(lrs)) < max(2, len(lrs)):
            raise checks.refuse("lrs", "hold at least one learning rate, none of them twice nor `lr`", config.lrs)
        if max(lrs) > min(settings.number("t_end"), settings.number("t_aligned")):
            raise checks.refuse(
                "t_end", "be at least every learning rate, as `t_aligned`, so that each steps", config.t_end
            )

    settings.gather(spectrum, heads, starts, ranks, rates)


def experiments(config: Config) -> dict[str, Any]:
    """Every run of the study, by name: heads on one mode each, Gaussian weights of every rank, the conservation sweep."""
    check(config)
    task, one = _task(config), ic.separate(len(config.s), config.H, 1)
    starts = np.append(config.starts, np.zeros(config.H - len(config.s)))  # heads at zero stay there
    on_modes = starts[:, None, None] * np.eye(config.H, len(config.s))[:, None]

    def online(model, init, lr, scale: float, t_end: float, records: int = 257):
        return ic.Experiment(
            ic.statistics(task, model, config.batch),
            init,
            seeds=config.seeds,
            lr=lr,
            t_end=t_end,
            init_scale=scale,
            measures=_measures(task, model),
            dims=DIMS,
            records=records,
        )

    aligned = ic.heads.given(one, v=starts, K=on_modes, Q=on_modes)
    out = {"aligned": online(one, aligned, config.lr, 1.0, config.t_aligned)}
    for R in config.ranks:
        model = ic.separate(len(config.s), config.H, R)
        out[f"rank{R}"] = online(model, ic.heads.gaussian(model), config.lr, config.spread, config.t_end)
    out["sweep"] = online(one, ic.heads.gaussian(one), list(config.lrs), config.spread, config.t_end, records=9)
    return out


def _task(config: Config):
    return ic.linear_regression(config.N, config.s, family="scalar")


def _measures(task, model) -> dict[str, Any]:
    """What is read off the weights: every head's part in every mode, their sum, the exact loss, what the flow conserves."""
    from jax.tree_util import Partial

    from icldyn.measures import which_mode

    return {
        "strength": Partial(which_mode.strength, np.asarray(task.U)),
        "by_head": Partial(which_mode.by_head, np.asarray(task.U)),
        "loss": ic.population(task, model).loss,
        "value_key": _value_key,
        "key_query": _key_query,
    }


def _value_key(params):
    return ic.heads.conserved(params)["value_key"]


def _key_query(params):
    return ic.heads.conserved(params)["key_query"]


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """The scalar equation (`aligned`), exact flows of the seeds' own weights (`rankR`), of their heads alone, of others'."""
    from jax.tree_util import Partial

    task, s = _task(config), np.asarray(config.s)
    a0 = {"a": np.asarray(config.starts) ** 3}
    measures = {"strength": _entry, "loss": Partial(_modes_loss, s, float(config.N))}
    out = {
        "aligned": ic.flow(
            Partial(_field, s, float(config.N)), a0, seeds["aligned"].t, measures=measures, dims=DIMS, rtol=1e-9
        )
    }
    count = min(config.flows, config.seeds)

    def flow(model, starts, t, measures):
        return ic.flow(ic.gradient_flow(ic.population(task, model)), starts, t, measures=measures, dims=DIMS, many=True)

    for R in config.ranks:
        model, run = ic.separate(s.size, config.H, R), seeds[f"rank{R}"]
        own = ic.initial_params(ic.heads.gaussian(model), seeds=run.num_seeds, init_scale=config.spread)
        measures = {n: f for n, f in _measures(task, model).items() if n in ("strength", "by_head", "loss")}
        out[f"rank{R}"] = flow(model, {n: w[:count] for n, w in own.items()}, run.t, measures)
    one, alone = ic.separate(s.size, config.H, 1), ic.separate(s.size, 1, 1)
    for name, first in (("alone", 0), ("others", OTHERS)):
        ids = list(range(first, first + config.seeds))
        starts = ic.initial_params(ic.heads.gaussian(one), seeds=ids, init_scale=config.spread)
        heads = {n: w[: 4 * count].reshape(-1, 1, *w.shape[2:]) for n, w in starts.items()}
        out[name] = flow(alone, heads, seeds["rank1"].t, {"loss": ic.population(task, alone).loss})
    return out


def _field(s, N, w):
    return {"a": ic.saddles.separate_mode(w["a"], s, N)}


def _entry(w):
    return w["a"]


def _modes_loss(s, N, w):
    return ic.logistic.loss(w["a"], s, N)


def _ends(config: Config) -> np.ndarray:
    """1 / Gamma_a, (D,)."""
    return 1 / np.asarray(ic.saddles.inverse_strength(np.asarray(config.s), config.N))


def _learned(config: Config, run) -> np.ndarray:
    """When each mode is halfway to 1 / Gamma_a, ([S], D); inf if it is not."""
    from icldyn.measures import which_mode

    left = np.moveaxis(1 - np.asarray(run["strength"]) / _ends(config), -1, -2)  # ([S], D, T)
    return which_mode.crossing(run.t, left, 0.5)


def _first(config: Config, run) -> np.ndarray:
    """When the exact loss is halfway to the first rung, (S,)."""
    from icldyn.measures import which_mode

    return which_mode.crossing(run.t, run["loss"], ic.saddles.ladder(config.s, config.N)[:2].mean())


def _taken(config: Config, run) -> np.ndarray:
    """The head that holds most of each mode at the end, (S, D); -1 where the mode is not learned."""
    last = np.asarray(run["by_head"])[:, -1]
    return np.where(last.sum(1) > _ends(config) / 2, np.abs(last).argmax(1), -1)


def _late(config: Config, t: np.ndarray, starts: Any, seeds: int) -> np.ndarray:
    """How much later than the flow's t (D,) the mean of so many seeds may learn a mode: SGD's delay and 4 standard errors."""
    starts = np.broadcast_to(np.asarray(starts, float), t.shape) ** 3
    delay, spread = ic.saddles.separate_delay(config.lr, t, starts, config.s, config.N, config.batch)
    return delay + 4 * spread / seeds**0.5


def _gap(config: Config, run, flow, starts: Any, seeds: int) -> tuple[float, float]:
    """max over t and modes of |mean over seeds of a - theory| Gamma_a, and its limit.

    Gamma a moves by at most max_x 3 s^2 Gamma^{-1/3} x^{4/3} (1 - x) = .609 s^2 Gamma^{-1/3} times the delay.
    """
    theory = flow.mean("strength") if flow.num_seeds else flow["strength"]
    gap = float((np.abs(run.isel(seed=slice(seeds)).mean("strength") - theory) / _ends(config)).max())
    times = np.minimum(np.median(np.atleast_2d(_learned(config, flow)), axis=0), run.t[-1])
    fastest = 0.609 * np.asarray(config.s) ** 2 * _ends(config) ** (1 / 3)
    return gap, float((fastest * _late(config, times, starts, seeds)).max())


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says and what follows from it, each decided by a number."""
    from icldyn.measures import which_mode

    out: list[Claim] = []

    def claim(sentence: str, measured: float, *limits: float, **more) -> None:
        out.append(Claim(sentence, float(measured), *limits, **more))

    run, flow, rungs = seeds["aligned"], theory["aligned"], ic.saddles.ladder(config.s, config.N)
    gap, high = _gap(config, run, flow, config.starts, run.num_seeds)
    claim("One head a mode: mean modes of SGD follow the scalar equation (gap)", gap, high=high, gap=True)
    rests = which_mode.plateaus(flow.t, flow["loss"], 0.01)
    claim("Its drops", rests.size - 1, len(config.s), len(config.s))
    if rests.size == rungs.size:
        apart = 2 * np.abs(flow["loss"][rests] - rungs).max()
        claim("Where its loss rests, against the ladder (largest difference, without the 1/2)", apart, high=1e-3)
        apart = 2 * np.abs(run.mean("loss")[rests] - rungs).max() / sum(config.s)
        claim(
            "The mean loss of SGD there (over tr S; learned modes fluctuate at order lr)", apart, high=0.05 * config.lr
        )
    closed = np.asarray(
        ic.saddles.separate_time(_ends(config) / 2, np.power(config.starts, 3), np.asarray(config.s), config.N)
    )
    later = np.abs(_learned(config, run).mean(0) - closed) / _late(config, closed, config.starts, run.num_seeds)
    claim(
        "Mean escapes of SGD from the closed form, over its delay to first order and 4 standard errors",
        later.max(),
        high=1,
    )

    for R in config.ranks:
        gap, high = _gap(config, seeds[f"rank{R}"], theory[f"rank{R}"], config.spread, theory[f"rank{R}"].num_seeds)
        claim(
            f"Gaussian weights, R = {R}: mean modes of SGD follow the flows of the same weights (gap)",
            gap,
            high=high,
            gap=True,
        )
    _head_claims(config, seeds, theory, claim)
    three = min(3, len(config.s)) - 1
    times = [np.median(np.sort(_learned(config, seeds[f"rank{R}"]), axis=1)[:, three]) for R in config.ranks]
    if len(times) > 1:
        sentence = (
            f"The higher the rank, the sooner {three + 1} modes are learned (largest ratio of medians over seeds)"
        )
        claim(sentence, np.max(np.divide(times[1:], times[:-1])), high=1)
    for name, text in (("value_key", "v_h^2 - |K_h|^2"), ("key_query", "K_h K_h^T - Q_h Q_h^T")):
        lrs, drifts = zip(*_drifts(config, seeds, name), strict=True)
        slope = np.polyfit(np.log(lrs), np.log(drifts), 1)[0]
        claim(f"Conserved {text} drifts in proportion to lr (slope)", slope, low=0.85, high=1.15)
    total = sum(one.finite().size for one in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(one.diverged for one in seeds.values()), high=0)
    return out


def _drifts(config: Config, seeds: Trajectories, name: str) -> list[tuple[float, float]]:
    """(lr, mean |drift|) of a conserved quantity from start to end, over seeds and entries."""
    runs = [(config.lr, seeds["rank1"])] + [(lr, seeds["sweep"].isel(lr=k)) for k, lr in enumerate(config.lrs)]
    return [(lr, float(np.abs(run[name][:, -1] - run[name][:, 0]).mean())) for lr, run in runs]


def _head_claims(config: Config, seeds: Trajectories, theory: Trajectories, claim) -> None:
    from scipy.stats import chisquare, ks_2samp

    run, flow, H = seeds["rank1"], theory["rank1"], config.H
    mine, theirs = _taken(config, run), _taken(config, flow)
    both = (mine[: len(theirs)] >= 0) & (theirs >= 0)
    same = (mine[: len(theirs)] == theirs)[both].mean()
    # SGD decides close races, of heads whose escapes are nearer than its spread: a few per cent of their times
    claim(
        f"Modes taken by the head that takes them in the seed's own flow (share, R = 1; chance: {1 / H:g})",
        same,
        low=0.8,
    )
    different = np.mean([len(set(one[one >= 0])) == (one >= 0).sum() for one in mine])
    claim("Seeds in which every learned mode has a head of its own (share, R = 1)", different, low=0.9)
    counts = np.bincount(mine[:, 0][mine[:, 0] >= 0], minlength=H)
    claim("Every head takes the first mode equally often over seeds (p of chi^2)", chisquare(counts).pvalue, low=1e-3)
    alone = _first(config, theory["alone"]).reshape(-1, H).min(1)
    found, exact = _first(config, run), _first(config, flow)
    apart = np.median(np.abs(exact - alone[: len(exact)]) / exact)
    claim("First escape of the flows against that of the fastest head alone (median, relative)", apart, high=0.05)
    law = _first(config, theory["others"]).reshape(-1, H).min(1)
    p = ks_2samp(found, law).pvalue
    claim(
        "First escapes of SGD against the least of H single heads of other seeds (p, Kolmogorov-Smirnov)", p, low=1e-3
    )


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """The figures (a) to (f)."""
    return {"ladder": _figure_ladder(config, seeds, theory), "heads": _figure_heads(config, seeds, theory)}


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """Loss of heads that start on one mode each, the scalar equation, and the rungs."""
    _rungs(ax, config)
    ic.overlay(seeds["aligned"], {"scalar equation": theory["aligned"]}, "loss", ax)
    ax.set(ylabel="loss", xlim=(0, config.t_aligned))


def _rungs(ax, config: Config) -> None:
    for k, rung in enumerate(ic.saddles.ladder(config.s, config.N)):
        ax.axhline(rung, color="0.75", linewidth=0.8, label=None if k else "rungs")


def _figure_ladder(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.6, 3.1))
    panel(left, config, seeds, theory)
    left.set(title="(a) one head a mode: the ladder", ylabel=r"$\frac{1}{2}\,\mathrm{E}\,(y_q-\hat{y}_q)^2$")
    labels = [f"$s_{k + 1}$ = {value:g}" for k, value in enumerate(config.s)]
    curves = {"scalar equation": theory["aligned"]}
    ic.overlay(seeds["aligned"], curves, "strength", middle, labels=labels, legend={"loc": "upper left"})
    middle.set(
        title="(b) modes of $A$", ylabel=r"$u_\alpha^\top A\,u_\alpha$", xlim=(0, config.t_aligned), ylim=(0, None)
    )
    _rungs(right, config)
    run, flow = seeds["rank1"], theory["rank1"]
    for k in range(DRAWN):
        right.plot(run.t, run["loss"][k], color=f"C{k}", linewidth=1.2, label=None if k else f"SGD, {DRAWN} seeds")
        right.plot(flow.t, flow["loss"][k], "k--", linewidth=0.7, label=None if k else "their exact flows")
    right.set(title="(c) Gaussian weights, $R$ = 1", xlabel="time $t$", ylabel="loss", xlim=(0, config.t_end))
    right.legend()
    return figure


def _figure_heads(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.6, 3.1))
    run, H = seeds["rank1"], config.H
    taken = _taken(config, run)
    counts = np.stack([np.bincount(one[one >= 0], minlength=H) for one in taken.T], axis=1)  # (H, D)
    left.imshow(counts, cmap="Blues", vmin=0, aspect="auto")
    for (h, mode), count in np.ndenumerate(counts):
        left.text(mode, h, count, ha="center", va="center", color="white" if count > counts.max() / 2 else "black")
    left.set(title=f"(d) heads that took a mode, {run.num_seeds:,} seeds", xlabel="mode", ylabel="head")
    left.set_xticks(range(len(config.s)), [f"{k + 1}" for k in range(len(config.s))])
    left.set_yticks(range(H), [f"{h + 1}" for h in range(H)])
    left.tick_params(length=0)
    law = _first(config, theory["others"])
    levels = np.linspace(0.005, 0.995, 199)
    middle.ecdf(_first(config, run), color="C0", label=f"SGD, {run.num_seeds:,} seeds")
    middle.plot(ic.saddles.first_of(law, H, levels), levels, "k--", label=f"least of {H} single heads")
    middle.set(title="(e) first escape", xlabel="time $t$", ylabel="share of seeds", xlim=(0, config.t_end / 2))
    middle.legend(loc="lower right")
    _rungs(right, config)
    for k, R in enumerate(config.ranks):
        run, flow = seeds[f"rank{R}"], theory[f"rank{R}"]
        panels.band(
            right,
            run.t,
            run.isel(seed=slice(flow.num_seeds)).quantile("loss", (0.25, 0.5, 0.75)),
            f"C{k}",
            f"SGD, $R$ = {R}",
        )
        label = "exact flows" if k == len(config.ranks) - 1 else None
        right.plot(flow.t, flow.quantile("loss", (0.5,))[0], "k--", linewidth=1, label=label)
    right.set(title="(f) rank of key and query", xlabel="time $t$", ylabel="loss, median", xlim=(0, config.t_end))
    right.legend(title="band: 25%–75%", title_fontsize=7.5)
    return figure


STUDY = Study(
    title="Separate key and query: from saddle to saddle, one head and one mode at a time",
    paper="Zhang, Singh, Latham and Saxe 2025, arXiv 2501.16265",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
