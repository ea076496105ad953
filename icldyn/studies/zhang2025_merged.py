"""Zhang, Singh, Latham and Saxe 2025, "Training dynamics of in-context learning in linear attention" (arXiv 2501.16265), merged.

Linear attention of H heads, each with one merged key-query matrix, is a two-layer linear network on cubic features of the
prompt. From small weights it rests at the one saddle A = 0 and then learns all modes in a single drop: no ladder.

Here seeds of online SGD meet three exact theories:

- the gradient flow of the expected loss from their own weights;
- the one curve that all of them follow along the saddle's unstable direction, each shifted in time by log |z|^2 / (2r), which
  turns Gaussian weights into a law of escape times (`saddles`); SGD's own delay and spread are known to first order in lr;
- white inputs: the logistic of the paper, at a rate sqrt(D) times that of one mode.

Conventions: loss 1/2 (y_q - yhat_q)^2, t = lr x steps, context sums divided by N, zero blocks; the paper's MSE has no 1/2, so
its losses are twice ours and its events come at half our t, and its code does not divide by N. Gaussian weights have |v_h| and
|U_h| of root mean square `spread`. A seed escapes when its exact loss is halfway from tr S / 2 to the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import icldyn as ic
from icldyn import checks
from icldyn.study import Claim, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from icldyn.study import Trajectories

NOTES_S = (0.4, 0.3, 0.2, 0.1)
NOTES_LOSS = {80.0: 0.307, 120.0: 0.172, 180.0: 0.146}  # 2L at our t of one flow with H = 8, N = 31 and entries of 1e-6
LATE = 3000.0  # when the flows of the notes' spectrum have ended
SPARSE = 8  # records between those at which the spread is predicted
LINEAR = 0.1  # of shift over spread: above it seeds that leave a saddle are not spread as a Gaussian
DRAWN = 8  # seeds drawn one by one
DIMS = {"strength": ("mode",), "share": ("head",), "conserved": ("head",)}


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 256
    """Seeds of every run."""
    flows: int = 128
    """Seeds whose own exact flow is solved."""
    H: int = 8
    """Heads."""
    N: int = 31
    """Context length."""
    s: tuple[float, ...] = NOTES_S
    """Eigenvalues of Sigma, descending; the white runs have their mean D times."""
    lr: float = 0.04
    """Learning rate of SGD."""
    lrs: tuple[float, ...] = (0.16, 0.12, 0.08)
    """Learning rates of the sweep that shows where the flow stops predicting."""
    batch: int = 64
    """Prompts a step."""
    spread: float = 1e-6
    """Root mean square of the initial |v_h| and |U_h|."""
    t_end: float = 180.0
    """Time lr x steps."""
    white_start: float = 1e-4
    """a(0) of the white runs, A = a I."""


SCALES = {
    "smoke": Config(seeds=64, flows=32, lr=0.08, lrs=(0.16, 0.11), t_end=130.0),
    "laptop": Config(),
    "paper": Config(seeds=10_000, lr=0.01, batch=256),
}

SIZES = {"seeds": (DRAWN, 10**8), "flows": (DRAWN, 10**4), "H": (1, 10**3), "N": (2, 10**9), "batch": (1, 2**20)}
REALS: dict[str, dict[str, float]] = {
    "lr": {"above": 0},
    "spread": {"above": 1e-12, "most": 0.1},  # above it the start is not at the saddle
    "t_end": {"above": 1e-6, "most": 1e9},
    "white_start": {"above": 1e-15},
}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def rates() -> None:
        lrs = settings.each("lrs", above=0)
        if len(set(lrs)) < max(2, len(lrs)):
            raise checks.refuse("lrs", "hold at least two different learning rates", config.lrs)
        if max(*lrs, settings.number("lr")) > settings.number("t_end"):
            raise checks.refuse("t_end", "be at least every learning rate, so that each takes a step", config.t_end)

    def spectrum() -> None:
        s = checks.eigenvalues("s", settings.each("s", least=1e-6, most=1e6))
        end = settings.size("N") / (s.mean() * (settings.size("N") + 1 + s.size))
        if settings.number("white_start") >= end:
            raise checks.refuse("white_start", f"be below {end:.3g}, where the white run ends", config.white_start)

    settings.gather(rates, spectrum)


def experiments(config: Config) -> dict[str, Any]:
    """Every run of the study, by name."""
    check(config)
    D, H = len(config.s), config.H
    model = ic.merged(D, H)
    white = ic.heads.given(model, **_white_start(config))

    def online(s, init, lr, scale: float):
        task = ic.linear_regression(config.N, s, family="scalar")
        return ic.Experiment(
            ic.statistics(task, model, config.batch),
            init,
            seeds=config.seeds,
            lr=lr,
            t_end=config.t_end,
            init_scale=scale,
            measures=_measures(task, model),
            dims=DIMS,
            records=257,
        )

    return {
        "online": online(config.s, ic.heads.gaussian(model), config.lr, config.spread),
        "sweep": online(config.s, ic.heads.gaussian(model), list(config.lrs), config.spread),
        "white": online(_white(config), white, config.lr, 1.0),
    }


def _white(config: Config) -> np.ndarray:
    return np.full(len(config.s), np.mean(config.s))


def _white_start(config: Config) -> dict[str, np.ndarray]:
    """Balanced heads, all alike, with A = white_start I."""
    D, H = len(config.s), config.H
    u = (config.white_start / D**0.5 / H) ** 0.5
    return {"v": np.full(H, D**0.5 * u), "U": np.tile(u * np.eye(D), (H, 1, 1))}


def _measures(task, model) -> dict[str, Any]:
    """What is read off the weights: the modes of A, the exact loss, every head's share of |v|^2 and conserved quantity."""
    from jax.tree_util import Partial

    from icldyn.measures import which_mode

    return {
        "strength": Partial(which_mode.strength, np.asarray(task.U)),
        "loss": ic.population(task, model).loss,
        "share": which_mode.share,
        "conserved": _conserved,
    }


def _conserved(params):
    return ic.heads.conserved(params)["value_key_query"]


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """Exact flows of the seeds' own starts (`flow`, `end`) and of a start `along` the unstable direction; the logistic."""
    run, model = seeds["online"], ic.merged(len(config.s), config.H)
    task = ic.linear_regression(config.N, config.s, family="scalar")
    own, along, count = _starts(config, run.num_seeds), _along(config), min(config.flows, run.num_seeds)
    starts = {name: np.concatenate([own[name][:count], along[name][None]]) for name in own}
    t = np.append(run.t, max(LATE, config.t_end))
    field, measures = ic.gradient_flow(ic.population(task, model)), _measures(task, model)
    flow = ic.flow(field, starts, t, measures=measures, dims=DIMS, many=True)
    before = flow.isel(time=slice(run.t.size))
    out = {"flow": before.isel(seed=slice(count)), "along": before.isel(seed=count)}
    out["end"] = flow.isel(time=slice(run.t.size, None))
    t, s = seeds["white"].t, _white(config)
    a = np.asarray(ic.saddles.merged_white(t, config.white_start, s[0], config.N, s.size))
    a = np.repeat(a[:, None], s.size, axis=1)
    values = {"strength": a, "loss": np.asarray(ic.logistic.loss(a, s, config.N))}
    out["spread"] = _spread(config, seeds["white"].t[::SPARSE])
    out["white"] = ic.Trajectory(values, {"strength": ("time", "mode"), "loss": ("time",)}, {"t": (("time",), t)})
    return out


def _spread(config: Config, t: np.ndarray):
    """The flow of the white run with the standard deviation over seeds that SGD adds to it."""
    model, task = ic.merged(len(config.s), config.H), ic.linear_regression(config.N, _white(config), family="scalar")
    measures = {name: f for name, f in _measures(task, model).items() if name in ("strength", "loss")}
    noise = ic.statistics(task, model, config.batch)
    start = _white_start(config)
    return ic.spread(ic.population(task, model), noise, start, t, lr=config.lr, measures=measures, dims=DIMS)


def _starts(config: Config, seeds: int) -> dict[str, np.ndarray]:
    """The weights that so many seeds start from."""
    model = ic.merged(len(config.s), config.H)
    return ic.initial_params(ic.heads.gaussian(model), seeds=seeds, init_scale=config.spread)


def _along(config: Config) -> dict[str, np.ndarray]:
    """Weights along the unstable direction, with the |z|^2 that is typical of the seeds."""
    T = np.diag(np.asarray(config.s) ** 2 / ic.saddles.growth_rate(config.s))
    size = (_typical(config) / 2 / config.H) ** 0.5
    return {"v": np.full(config.H, size), "U": np.tile(size * T, (config.H, 1, 1))}


def _typical(config: Config) -> float:
    """exp E log |z|^2 of Gaussian weights."""
    mean, _ = ic.saddles.escape_spread(config.s, config.H)
    variance = config.spread**2 * (1 + 1 / len(config.s) ** 2) / 2  # of z_h
    return float(variance * np.exp(2 * ic.saddles.growth_rate(config.s) * mean))


def _escape(config: Config, run) -> np.ndarray:
    """When the exact loss is halfway down, ([lr], [S])."""
    from icldyn.measures import which_mode

    rungs, t = ic.saddles.ladder(config.s, config.N), run.t
    return which_mode.crossing(t[:, None] if t.ndim == 2 else t, run["loss"], (rungs[0] + rungs[-1]) / 2)


def _own_escape(config: Config, theory: Trajectories, seeds: int) -> np.ndarray:
    """The escape times (S,) that the unstable amplitudes of the initial weights predict, by gradient flow."""
    own = _starts(config, seeds)
    z = ic.saddles.unstable_amplitude(own["v"], own["U"], np.diag(config.s))
    early = np.log((z**2).sum(1) / _typical(config)) / (2 * ic.saddles.growth_rate(config.s))
    return _escape(config, theory["along"]) - early


def _largest_gap(config: Config, s: np.ndarray, t: float, seeds: int) -> float:
    """How far the mean of so many seeds may lie from a flow that escapes at t, as a share of the end of a mode.

    A logistic of rate 2r moves by at most r/2 times the delay of its escape; four standard errors of the delay are allowed.
    """
    delay, spread = ic.saddles.sgd_delay(config.lr, t, s, config.N, config.batch)
    return ic.saddles.growth_rate(s) / 2 * (delay + 4 * spread / seeds**0.5)


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says and what follows from it, each decided by a number."""
    from icldyn.measures import which_mode

    out: list[Claim] = []

    def claim(sentence: str, measured: float, *limits: float, **more) -> None:
        out.append(Claim(sentence, float(measured), *limits, **more))

    run, flow, s = seeds["online"], theory["flow"], np.asarray(config.s)
    count, centre = flow.num_seeds, float(_escape(config, theory["along"]))
    ends = 1 / np.asarray(ic.saddles.inverse_strength(s, config.N))
    apart = np.abs((run.isel(seed=slice(count)).mean("strength") - flow.mean("strength")) / ends).max()
    high = _largest_gap(config, s, centre, count)
    claim("Modes of A follow the exact flows of the same starts (gap of means)", apart, high=high, gap=True)
    white, logistic = seeds["white"].mean("strength").mean(1), theory["white"]["strength"][:, 0]
    end, rate = logistic[-1], ic.saddles.growth_rate(_white(config))
    time = np.log(end / config.white_start) / (2 * rate)
    high = _largest_gap(config, _white(config), time, seeds["white"].num_seeds)
    sentence = "White inputs: mean a of SGD follows the sqrt(D) logistic (gap)"
    claim(sentence, np.abs(white - logistic).max() / end, high=high, gap=True)

    claim("Seeds whose exact flow drops once (share)", np.mean(which_mode.drops(flow.t, flow["loss"]) == 1), low=1)
    every = slice(None, None, 8)  # SGD's noise is averaged out between these records, a drop is not
    share = np.mean(which_mode.drops(run.t[every], run["loss"][:, every]) == 1)
    claim("Seeds of SGD whose exact loss drops once (share)", share, low=0.95)
    if tuple(config.s) == NOTES_S:
        excess = theory["end"]["loss"].max() / ic.saddles.ladder(s, config.N)[-1] - 1
        claim(f"All flows are at the least loss at t = {LATE:g} (relative excess)", excess, -1e-6, 1e-5)
    spread, white = theory["spread"], seeds["white"]
    ratio = spread["strength_sd"][1:] / white.standard_deviation("strength")[::SPARSE][1:]
    reach = np.abs(spread["strength_shift"][1:] / spread["strength_sd"][1:]).max()
    some = max(0.1, 4 / (2 * white.num_seeds) ** 0.5)  # 10%, or four standard errors of a standard deviation
    sentence = (
        "White: standard deviation of the modes over seeds, predicted over measured (mean log over t, worst mode)"
    )
    claim(sentence, np.abs(np.log(ratio).mean(0)).max(), **({"high": some} if reach < LINEAR else {}))
    claim(f"Its linearisation: largest shift of a mean by noise over the spread (holds below {LINEAR})", reach)
    _escape_claims(config, seeds, theory, claim)
    total = sum(one.finite().size for one in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(one.diverged for one in seeds.values()), high=0)
    return out


def _escape_claims(config: Config, seeds: Trajectories, theory: Trajectories, claim) -> None:
    from scipy.stats import kstest

    run, flow, sweep, s = seeds["online"], theory["flow"], seeds["sweep"], np.asarray(config.s)
    r, centre = ic.saddles.growth_rate(s), float(_escape(config, theory["along"]))
    _, law = ic.saddles.escape_spread(s, config.H)
    delay, spread = ic.saddles.sgd_delay(config.lr, centre, s, config.N, config.batch)
    if (tuple(config.s), config.N, config.H, config.spread) == (NOTES_S, 31, 8, 1e-6):
        curve, first = 2 * theory["along"]["loss"], min(NOTES_LOSS)
        shift = np.interp(-NOTES_LOSS[first], -curve, run.t) - first
        claim(
            "A recorded flow of the notes: where its escape lies in the law (standard deviations)", shift / law, -3, 3
        )
        rest = [np.interp(t + shift, run.t, curve) - x for t, x in NOTES_LOSS.items() if t + shift <= run.t[-1]]
        # recorded to 5e-4, the first number too, which sets the shift
        claim(
            "Its losses, so shifted, against ours (largest difference, without the 1/2)", np.abs(rest).max(), high=1e-3
        )
    early = (run.t > 10) & (run.t < centre - 20)  # after what does not grow, before A counts
    rate = np.polyfit(run.t[early], np.log(np.linalg.norm(run.mean("strength"), axis=1)[early]), 1)[0]
    claim("Early growth rate of the seeds' mean A over 2 ||S^2||_F", rate / (2 * r), low=0.98, high=1.02)

    escapes, own = _escape(config, run), _own_escape(config, theory, run.num_seeds)
    apart = np.abs(_escape(config, flow) - own[: flow.num_seeds]).max()
    claim(
        "Escapes of the exact flows against z of their initial weights (in spreads of the law)", apart / law, high=0.05
    )
    distance = kstest(escapes, ic.saddles.escape_law, (centre, s, config.H, delay, spread)).statistic
    sentence = "Escapes of SGD over seeds against their law (Kolmogorov distance x sqrt S; p = .001 at 1.95)"
    claim(sentence, distance * run.num_seeds**0.5, high=1.95)
    some = 4 / (2 * run.num_seeds) ** 0.5  # four standard errors of a standard deviation
    ratio = (escapes - own).std() / spread
    claim("Scatter of SGD around the seeds' own predictions, over that of its noise", ratio, 1 - some, 1 + some)
    last = np.abs(run["share"][: flow.num_seeds, -1] - flow["share"][:, -1]).max()
    claim("Heads' shares of |v|^2 at the end: seed against its own flow (largest difference)", last, high=0.05)

    lr = max(config.lrs)
    delay, spread = ic.saddles.sgd_delay(lr, centre, s, config.N, config.batch)
    late = (_escape(config, sweep)[config.lrs.index(lr)] - own).mean()
    some = 4 * spread / run.num_seeds**0.5
    # the noise acts until A is no longer small, which is the last tenth of the way
    claim(
        f"Mean delay by SGD at lr = {lr:g} against first order (difference)", late - delay, -some - 0.15 * delay, some
    )
    drift = np.abs(sweep["conserved"][..., -1, :] - sweep["conserved"][..., 0, :]).mean((1, 2))
    slope = np.polyfit(np.log(config.lrs), np.log(drift), 1)[0]
    claim("Conserved v_h^2 - |U_h|^2 drifts in proportion to lr (slope)", slope, low=0.85, high=1.15)


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """The figures (a) to (f)."""
    return {"single_drop": _figure_drop(config, seeds, theory), "escape_times": _figure_escape(config, seeds, theory)}


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """Loss of the seeds and the flow along the unstable direction."""
    ic.overlay(seeds["online"], {"exact flow, typical start": theory["along"]}, "loss", ax)
    ax.set(ylabel="loss", xlim=(0, config.t_end))


def _figure_drop(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.6, 3.1))
    s, run, flow = np.asarray(config.s), seeds["online"], theory["flow"]
    for k, rung in enumerate(ic.saddles.ladder(s, config.N)):
        left.axhline(rung, color="0.75", linewidth=0.8, label=None if k else "rungs of separate heads")
    for k in range(DRAWN):
        left.plot(run.t, run["loss"][k], color="C0", linewidth=1.4, label=None if k else f"SGD, {DRAWN} seeds")
        left.plot(flow.t, flow["loss"][k], "k--", linewidth=0.8, label=None if k else "their exact flows")
    clock = r"time $t$ = learning rate $\times$ steps"
    left.set(title="(a) one drop, no ladder", xlabel=clock, ylabel=r"$\frac{1}{2}\,\mathrm{E}\,(y_q-\hat{y}_q)^2$")
    left.legend()
    labels = [f"$s_{k + 1}$ = {value:g}" for k, value in enumerate(s)]
    ic.overlay(run, {"exact, typical start": theory["along"]}, "strength", middle, labels=labels)
    middle.set(title="(b) modes of $A$", ylabel=r"$u_\alpha^\top A\,u_\alpha$")
    labels = [f"$A_{{{k + 1}{k + 1}}}$" for k in range(s.size)]
    ic.overlay(seeds["white"], {r"$\sqrt{D}$ logistic": theory["white"]}, "strength", right, labels=labels)
    right.set(title="(c) white inputs", ylabel=r"$A_{\alpha\alpha}$")
    for ax in (left, middle, right):
        ax.set_xlim(0, config.t_end)
    return figure


def _figure_escape(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.6, 3.1))
    run, s, k = seeds["online"], np.asarray(config.s), int(np.argmax(config.lrs))
    centre, swept = float(_escape(config, theory["along"])), _escape(config, seeds["sweep"])
    escapes, own = _escape(config, run), _own_escape(config, theory, run.num_seeds)

    def sgd(lr):
        return ic.saddles.sgd_delay(lr, centre, s, config.N, config.batch)

    t = np.linspace(escapes.min() - 2, escapes.max() + 2, 200)
    density = np.gradient(ic.saddles.escape_law(t, centre, s, config.H, *sgd(config.lr)), t)
    left.hist(escapes, bins=20, density=True, color="C0", alpha=0.5, label=f"SGD, {run.num_seeds:,} seeds")
    left.plot(t, density, "k--", label=r"law: $\log\chi^2_H$ and SGD's noise")
    left.set(title="(d) escape times", xlabel="time $t$", ylabel="density over seeds", ylim=(0, 1.6 * density.max()))
    left.legend()
    for color, lr, found in (("C0", config.lr, escapes), ("C1", config.lrs[k], swept[k])):
        middle.plot(own, found, "o", markersize=2, alpha=0.5, color=color, label=f"SGD, lr = {lr:g}")
    middle.plot([own.min(), own.max()], [own.min(), own.max()], "k--", label="gradient flow")
    middle.set(title="(e) each seed", xlabel="escape predicted from initial $|z|^2$", ylabel="escape time $t$")
    middle.legend()
    grid, rates = np.linspace(0, 1.05 * max(config.lrs), 50), [config.lr, *config.lrs]
    apart = [found - own for found in (escapes, *swept)]
    right.plot(rates, [a.mean() for a in apart], "o", color="C0", label="mean delay")
    right.plot(rates, [a.std() for a in apart], "o", color="C1", label="scatter")
    for value, label in zip(sgd(grid), ("first order in lr", None), strict=True):
        right.plot(grid, value, "k--", label=label)
    right.set(title="(f) what SGD adds to the flow", xlabel="learning rate", ylabel="time $t$", xlim=(0, grid[-1]))
    right.legend()
    return figure


STUDY = Study(
    title="Merged key and query: one saddle, one drop, and the law of its escape times",
    paper="Zhang, Singh, Latham and Saxe 2025, arXiv 2501.16265",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
