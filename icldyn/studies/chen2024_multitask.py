"""Chen et al. 2024 (arXiv 2402.19442): softmax attention on several tasks at once, where every head picks one.

A prompt holds L tokens (x, y), x ~ N(0, I) in dx dimensions, y in dy: task i reads its own block of d_i coordinates,
y_i = beta_i.x_{J_i} + e_i. From diagonal weights, gradient flow keeps key-query matrices block-scalar, omega_hi, and values
diagonal, mu_hi: a warm-up, in which little happens, the emergence of one head for every task, and convergence.

- Online SGD beside the exact flow of (omega, mu) at finite L (`attention_manifold`), and beside the published approximation
  for long prompts (`attention_spectrum`).
- Random starts: which task each head takes, seed by seed beside its own exact flow. With signs at random, heads share tasks: in
  most seeds every task ends with a positive and a negative head, as He et al. (2025) found for few heads.
- Warm-up: keys, queries, values and outputs apart, balanced and small, take t = d_i / (2 scale mu_0), inversely in their mu_0.
- One head for all tasks is strictly worse.

Conventions: loss 1/2 sum_i (y_qi - yhat_i)^2 with noisy y_q, t = lr x steps; beta_i ~ N(0, I/d_i). The paper has no 1/2, averages
over tasks, and beta_i ~ N(0, I) without noise; its code descends by SGD, as here, though its settings say Adam. Figures show
2 x loss. The query is none of its own keys; logits are divided by (dx + dy)^(1/2) where keys and queries are apart, and merged
matrices have that in themselves. L is N elsewhere. Smaller than in the paper (dx = 50, dy = 3, L = 100): sizes, batch and steps.
Which start made the paper's figures is not known to us; the diagonal one here is like that in its code.
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

START = {"omega": 0.01, "mu": 0.02, "own": 0.01}  # everywhere; head h has `own` more of mu on task h
NOTES = {"sizes": (4, 4, 4), "L": 40, "sigma2": 0.1, "lr": 0.1, "t_end": 80.0}  # of the run `instance`
NOTES_ENDS = {  # step: omega, mu on the diagonal, of the exact and of the published flow
    200: ((0.626, 1.180), (0.561, 1.252)),
    400: ((0.580, 1.429), (0.472, 1.611)),
    800: ((0.363, 1.719), (0.359, 1.929)),
}
NOTES_LOSS = {0: 3.27, 100: 1.70, 300: 1.06, 1200: 0.84}  # step: 2 x exact loss
DUMMY = 0.1  # of the largest |mu|, below which a head does not count
DECIDED = 0.15  # by how much a head prefers a task where its pick is clear: the median gap that is allowed
ERROR = r"$\mathrm{E}\,|y_q-\hat y_q|^2$"
DIMS = {"omega": ("head", "task"), "mu": ("head", "task")}


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 1024
    """Seeds of SGD, from the common start and from random ones."""
    flows: int = 32
    """Random starts whose own exact flow is solved."""
    warm_seeds: int = 16
    """Seeds of one head, and of every start with keys, queries, values and outputs apart."""
    instance_seeds: int = 8
    """Seeds of the run with three tasks of 4 and L = 40; 0 leaves it out."""
    instance_batch: int = 2048
    """Prompts a step of that run: SGD is behind the flow by their inverse, 1% at 2,048."""
    dx: int = 6
    """Input dimension, cut into dy blocks."""
    dy: int = 2
    """Tasks, and heads."""
    L: int = 10
    """Context length."""
    sigma2: float = 0.1
    """Variance of the label noise of every task."""
    lrs: tuple[float, ...] = (0.05, 0.025)
    """Learning rates of SGD from the common start, descending; random starts and one head take the first."""
    batch: int = 128
    """Prompts a step of SGD."""
    t_end: float = 20.0
    """Time lr x steps of SGD."""
    spread: float = 0.05
    """Standard deviation of d_i^(1/2) omega_hi and mu_hi at random starts."""
    warm_starts: tuple[float, ...] = (0.02, 0.04, 0.08, 0.16)
    """mu_0 of the warm-up, ascending."""
    warm_lr: float = 0.1
    """Learning rate of SGD in the warm-up."""
    draws: int = 8192
    """Points of the exact mean, a power of 2."""


SCALES = {
    "smoke": Config(seeds=96, flows=8, warm_seeds=8, instance_seeds=0, t_end=16.0, warm_starts=(0.06, 0.16), draws=2048),
    "laptop": Config(),
    "paper": Config(
        seeds=10_000, flows=128, warm_seeds=512, instance_seeds=64, instance_batch=4096, dx=50, dy=3, L=100,
        lrs=(0.02, 0.01), batch=10_000, t_end=60.0, draws=16_384,
    ),
}  # fmt: skip

SIZES = {
    "seeds": (8, 10**8),
    "flows": (2, 10**4),
    "warm_seeds": (2, 10**8),
    "instance_seeds": (0, 10**6),
    "instance_batch": (1, 2**20),
    "dx": (2, 1000),
    "dy": (2, 16),
    "L": (2, 1000),
    "batch": (1, 2**20),
    "draws": (64, 2**20),
}
REALS: dict[str, dict[str, float]] = {
    "sigma2": {"least": 0, "most": 100},
    "t_end": {"above": 1e-3, "most": 1e6},
    "spread": {"above": 1e-6, "most": 0.3},
    "warm_lr": {"above": 1e-6, "most": 1},
}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def rates() -> None:
        lrs = settings.each("lrs", above=0)
        if len(lrs) < 2 or sorted(set(lrs), reverse=True) != lrs:
            raise checks.refuse("lrs", "hold at least two descending learning rates", config.lrs)
        if 20 * lrs[0] > settings.number("t_end"):
            raise checks.refuse("lrs", "be at most a twentieth of `t_end`", config.lrs)

    def starts() -> None:
        if len(settings.each("warm_starts", ascending=True, least=1e-3, most=0.5)) < 2:
            raise checks.refuse("warm_starts", "hold at least two ascending numbers", config.warm_starts)

    def blocks() -> None:
        if settings.size("dx") < settings.size("dy"):
            raise checks.refuse("dx", "be at least `dy`", config.dx)

    def draws() -> None:
        draws = settings.size("draws")
        if draws & (draws - 1):
            raise checks.refuse("draws", "be a power of 2", draws)

    settings.gather(rates, starts, blocks, draws)


def experiments(config: Config) -> dict[str, Any]:
    """SGD from the common start, from random ones, of one head, in the warm-up, and the instance of the notes."""
    check(config)
    task, H = _task(config), config.dy
    model, one = _merged(task, H), _merged(task, 1)
    objective, common = ic.attended(task, model, config.batch), {"t_end": config.t_end, "dims": DIMS}
    several = {"seeds": config.seeds, "measures": _measures(model, task.blocks)}
    random = ic.softmax_attention.random_manifold(model, task.blocks)
    out = {
        "online": ic.Experiment(objective, _start(model, task.blocks), lr=list(config.lrs), **several, **common),
        "starts": ic.Experiment(objective, random, lr=config.lrs[0], init_scale=config.spread, **several, **common),
        "one": ic.Experiment(
            ic.attended(task, one, config.batch), _start(one, task.blocks), seeds=config.warm_seeds, lr=config.lrs[0],
            measures=_measures(one, task.blocks), **common,
        ),
    }  # fmt: skip
    apart, longest = _apart(task), 2.0 * max(_warm_up(config, mu) for mu in config.warm_starts)
    out["warm"] = ic.Experiment(
        ic.attended(task, apart, config.batch), ic.softmax_attention.manifold(apart, task.blocks, *_factors(config)),
        seeds=config.warm_seeds, lr=config.warm_lr, t_end=max(longest, 20 * config.warm_lr), dims=DIMS,
        init_scale=[mu**0.5 for mu in config.warm_starts], measures=_measures(apart, task.blocks), records=129,
    )  # fmt: skip
    if config.instance_seeds:
        task = ic.block_regression(NOTES["L"], ic.disjoint(NOTES["sizes"]), sigma2=NOTES["sigma2"])
        settings = {name: NOTES[name] for name in ("lr", "t_end")}
        model = _merged(task, len(task.blocks))
        out["instance"] = ic.Experiment(
            ic.attended(task, model, config.instance_batch), _start(model, task.blocks), seeds=config.instance_seeds,
            measures=_measures(model, task.blocks), records=33, dims=DIMS, **settings,
        )  # fmt: skip
    return out


def _blocks(config: Config) -> list[int]:
    """Sizes of the blocks, [int(i dx/dy), int((i+1) dx/dy))."""
    return np.diff([i * config.dx // config.dy for i in range(config.dy + 1)]).tolist()


def _task(config: Config):
    return ic.block_regression(config.L, ic.disjoint(_blocks(config)), sigma2=config.sigma2)


def _merged(task, H: int):
    return ic.softmax_attention.softmax_attention(task.D, H, O=task.O, query_attends_itself=False)


def _apart(task):
    n = task.D + task.O
    settings = {"O": task.O, "scale": n**-0.5, "values_apart": True, "query_attends_itself": False}
    return ic.softmax_attention.softmax_attention(task.D, task.O, n, **settings)


def _common(H: int, tasks: int) -> dict[str, np.ndarray]:
    """omega and mu (H, I) of the common start."""
    return {
        "omega": np.full((H, tasks), START["omega"]), "mu": START["mu"] + START["own"] * np.eye(H, tasks)
    }  # fmt: skip


def _start(model, blocks):
    return ic.softmax_attention.manifold(model, blocks, *_common(model.H, model.O).values())


def _factors(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Entries (H, I) of keys and queries, and of values and outputs, for mu_0 = 1: omega = (scale/d + phi/L) mu."""
    own, scale = np.eye(config.dy), (config.dx + config.dy) ** -0.5
    return own * np.sqrt(1 / np.array(_blocks(config)) + (1 + config.sigma2) / (scale * config.L)), own


def _warm_up(config: Config, start: float) -> float:
    """Of the largest block."""
    return ic.attention_spectrum.warm_up(max(_blocks(config)), (config.dx + config.dy) ** -0.5, start)


def _measures(model, blocks) -> dict[str, Any]:
    from jax.tree_util import Partial

    where = ic.head_coordinates.indicator(blocks)
    return {"omega": Partial(ic.head_coordinates.omega, model, where), "mu": Partial(ic.head_coordinates.mu, model)}


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """Exact and published flows from the common start, exact ones from random starts, of one head and in the warm-up."""
    sizes, H = _blocks(config), config.dy
    exact = ic.attention_manifold.manifold(config.L, sizes, sigma2=config.sigma2, draws=config.draws)
    approximate = ic.attention_spectrum.spectral(config.L, sizes, config.sigma2)
    t, start = seeds["online"].isel(lr=0).t, _common(H, H)
    out = {"exact": _flow(exact, exact, start, t), "spectral": _flow(approximate, exact, start, t)}
    few = ic.attention_manifold.manifold(config.L, sizes, sigma2=config.sigma2, draws=min(1024, config.draws))
    out["own"] = _flow(few, few, _starts(config, min(config.flows, config.seeds)), seeds["starts"].t, many=True)
    out["one"] = _flow(exact, exact, _common(1, H), seeds["one"].t)
    out["warm"] = _warm(config, few, seeds["warm"].t)
    if config.instance_seeds:
        settings = {"sigma2": NOTES["sigma2"], "draws": config.draws}
        exact = ic.attention_manifold.manifold(NOTES["L"], NOTES["sizes"], **settings)
        approximate = ic.attention_spectrum.spectral(NOTES["L"], NOTES["sizes"], NOTES["sigma2"])
        t = np.append(seeds["instance"].t, 1200 * NOTES["lr"])
        for name, loss in (("instance", exact), ("instance_spectral", approximate)):
            out[name] = _flow(loss, exact, _common(3, 3), t)
    return out


def _flow(loss, exact, start: dict[str, np.ndarray], t: np.ndarray, **more):
    """The flow of merged matrices; "loss" is the exact one along it."""
    from operator import itemgetter

    from jax.tree_util import Partial

    field = Partial(ic.attention_manifold.merged_rate, loss)
    measures = {"omega": itemgetter("omega"), "mu": itemgetter("mu"), "loss": exact.loss}
    return ic.flow(field, start, t, measures=measures, dims=DIMS, rtol=1e-4, **more)


def _warm(config: Config, exact, t: np.ndarray):
    """The exact flow of keys, queries, values and outputs from every start of the warm-up ("seed")."""
    from jax.tree_util import Partial

    scale, size = (config.dx + config.dy) ** -0.5, np.sqrt(config.warm_starts)[:, None, None]
    keys, values = (size * a for a in _factors(config))
    start = {"k": keys, "q": keys.copy(), "o": values, "v": values.copy()}
    field = Partial(ic.attention_manifold.separate_rate, exact, np.float64(scale))
    measures = {"omega": Partial(_omega, np.float64(scale)), "mu": _mu}
    return ic.flow(field, start, t, measures=measures, dims=DIMS, rtol=1e-5, many=True)


def _omega(scale, params):
    return ic.attention_manifold.products(scale, params)["omega"]


def _mu(params):
    return params["o"] * params["v"]


def _starts(config: Config, seeds: int) -> dict[str, np.ndarray]:
    """omega and mu (S, H, I) that so many seeds of `starts` begin with."""
    task = _task(config)
    init = ic.softmax_attention.random_manifold(_merged(task, config.dy), task.blocks)
    params, first = ic.initial_params(init, seeds=seeds, init_scale=config.spread), [block[0] for block in task.blocks]
    value = params["v"].reshape(seeds, config.dy, task.O, -1)[..., task.D :]
    return {"omega": params["U"][:, :, first, first], "mu": np.diagonal(value, axis1=2, axis2=3).copy()}


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says and what follows from it, each decided by a number."""
    out: list[Claim] = []

    def claim(sentence: str, measured: float, *limits: float, **more) -> None:
        out.append(Claim(sentence, float(measured), *limits, **more))

    online, exact = seeds["online"], theory["exact"]
    grown = [
        {n: ic.head_coordinates.at_times(online.isel(lr=k).t, online.isel(lr=k).mean(n), exact.t) for n in DIMS}
        for k in range(2)
    ]
    for lr, run in zip(config.lrs, grown, strict=False):
        claim(
            f"Heads of SGD follow the exact flow at lr = {lr:g} (gap)",
            ic.head_coordinates.gap(run, exact),
            high=_allowed(config, lr),
            gap=True,
        )
    a, b = config.lrs[:2]
    limit = {name: (a * grown[1][name] - b * grown[0][name]) / (a - b) for name in DIMS}
    claim(
        "The same as lr -> 0, from two rates (gap)",
        ic.head_coordinates.gap(limit, exact),
        high=_allowed(config, 0),
        gap=True,
    )
    away = ic.head_coordinates.gap({name: theory["spectral"][name] for name in DIMS}, exact)
    claim(f"The same gap of the published approximation at L = {config.L}", away, low=0.05, gap=True)
    own, other = _parts(exact["mu"])
    claim("Exact flow: a head's mu on other tasks over that on its own, at the end", other[-1] / own[-1], high=0)
    if config.instance_seeds:
        _instance_claims(seeds, theory, claim)
    _allocation_claims(config, seeds, theory, claim)
    _warm_claims(config, seeds, theory, claim)
    one = seeds["one"]
    ends = [run.mean("loss")[-(run.t.size // 4) :].mean() for run in (one, online.isel(lr=0))]
    limit = theory["one"]["loss"][-(one.t.size // 4) :].mean()
    claim("One head: late loss over that of its exact flow", ends[0] / limit, 0.94, 1.06)
    claim(
        "One head for all tasks is strictly worse: its late loss over that of a head for each",
        ends[0] / ends[1],
        low=1.1,
    )
    total = sum(run.finite().size for run in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(run.diverged for run in seeds.values()), high=0)
    return out


def _allowed(config: Config, lr: float) -> float:
    """What Euler steps of lr add to a logistic of the early rate r, four standard errors and the error of the draws."""
    r, ready = min(_blocks(config)) ** -0.5, 4.0  # units of log size from the start to the end
    return r * lr * ready / 4 + 4 * 0.05 / config.seeds**0.5 + 0.01


def _parts(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of the diagonal and of the rest, of (..., H, I) with H = I."""
    own = np.eye(value.shape[-1], dtype=bool)
    return value[..., own].mean(-1), value[..., ~own].mean(-1)


def _instance_claims(seeds: Trajectories, theory: Trajectories, claim) -> None:
    run, exact, spectral = seeds["instance"], theory["instance"], theory["instance_spectral"]
    mean = {name: _parts(run.mean(name))[0] for name in DIMS}
    apart: dict[str, list[float]] = {"SGD against the exact flow": [], "exact flow against the notes": []}
    apart["published flow against the notes"] = []
    for step, rows in NOTES_ENDS.items():
        k = int(np.argmin(np.abs(exact.t - step * NOTES["lr"])))
        for name, wanted, published in zip(DIMS, *rows, strict=True):
            flow = _parts(exact[name][k])[0]
            found = (mean[name][k] / flow, flow / wanted, _parts(spectral[name][k])[0] / published)
            for held, ratio in zip(apart.values(), found, strict=True):
                held.append(abs(ratio - 1))
    for (sentence, held), high in zip(
        apart.items(), (0.04, 0.03, 8e-3), strict=True
    ):  # of draws; the notes take Euler steps
        claim(f"Instance at steps 200, 400 and 800: {sentence} (relative, diagonal)", max(held), high=high, gap=True)
    other = _parts(exact["mu"])[1]
    k = int(np.argmax((other[:-1] > 0) & (other[1:] <= 0)))
    cross = np.interp(0, -other[k : k + 2], exact.t[k : k + 2]) / NOTES["lr"]
    claim("Instance: step at which mu off the diagonal changes sign, exact flow", cross, 215, 245)
    losses = [
        2 * np.interp(step * NOTES["lr"], exact.t, exact["loss"]) / value - 1 for step, value in NOTES_LOSS.items()
    ]
    claim(
        "Instance: exact loss at steps 0, 100, 300 and 1200 against the notes (relative)",
        np.abs(losses).max(),
        high=0.01,
    )


def _picks(mu: np.ndarray) -> np.ndarray:
    """The task on which each head has its largest |mu|, (..., H)."""
    return np.abs(mu).argmax(-1)


def _all_taken(picks: np.ndarray) -> np.ndarray:
    """Whether every task is picked by a head."""
    return (np.sort(picks, axis=-1) == np.arange(picks.shape[-1])).all(-1)


def _allocation_claims(config: Config, seeds: Trajectories, theory: Trajectories, claim) -> None:
    run, own = seeds["starts"], theory["own"]
    count, ends, flows = own.num_seeds, run["mu"][:, -1], own["mu"][:, -1]
    picks = _picks(ends)
    claim("Random starts: seeds in which every task has a head of its own (share)", _all_taken(picks).mean(), low=0.5)
    agree = (picks[:count] == _picks(flows)).all(1)
    claim("Seeds whose heads pick the tasks of their own exact flow (share)", agree.mean())
    first, second = np.sort(np.abs(flows), axis=2)[:, :, :-3:-1].transpose(2, 0, 1)
    decided = (second < (1 - DECIDED) * first).all(1)  # others are so near a tie that the noise of SGD decides
    sentence = f"The same of seeds whose flow prefers them by more than {DECIDED:.0%}"
    claim(sentence, agree[decided].mean() if decided.any() else 1.0, low=0.95)
    share, some = (picks[:, 0] == 0).mean(), 4 * 0.5 / config.seeds**0.5
    claim(
        "Seeds whose first head picks the first task (share; 1/dy by symmetry)",
        share,
        1 / config.dy - some,
        1 / config.dy + some,
    )
    apart = np.abs(ends[:count] - flows).max((1, 2)) / np.abs(flows).max()
    claim("mu at the end, seed against its own exact flow (median gap)", np.median(apart), high=0.15)
    largest = np.abs(ends).max(2)
    rest = (np.abs(ends).sum(2) - largest) / (config.dy - 1) / largest
    claim("A head's |mu| on other tasks over that on its own, from random starts (median)", np.median(rest))
    weak = DUMMY * np.abs(ends).max((1, 2))[:, None]
    signs = (ends.min(1) < -weak).all(1) & (ends.max(1) > weak).all(1)
    claim("Random starts: seeds in which every task has heads of both signs (share)", signs.mean(), low=0.5)


def _warm_claims(config: Config, seeds: Trajectories, theory: Trajectories, claim) -> None:
    starts, times = np.array(config.warm_starts), _warm_times(config, seeds, theory)
    for name, found in times.items():
        slope = np.polyfit(1 / starts, found, 1)[0] / _warm_up(config, 1.0)
        claim(f"Warm-up time of {name} against 1/mu_0 (slope over d / (2 scale), 1 as L grows)", slope, 0.9, 1.3)
    apart = np.abs(times["SGD"] / times["exact flow"] - 1).max()
    claim("Warm-up of SGD against that of the exact flow (largest relative difference)", apart, high=0.1, gap=True)


def _warm_times(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, np.ndarray]:
    """When the mean mu of the heads on their own tasks is first half of the least end, for every start."""
    t, flow = seeds["warm"].t, _parts(theory["warm"]["mu"])[0]
    run = _parts(np.stack([seeds["warm"].isel(init_scale=k).mean("mu") for k in range(len(config.warm_starts))]))[0]
    level = flow.max(1).min() / 2
    crossing = ic.which_mode.crossing
    return {"SGD": crossing(t, -run, -level), "exact flow": crossing(t, -flow, -level)}


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """Dynamics (a) to (d), allocation and warm-up (e) to (g)."""
    return {
        "dynamics": _figure_dynamics(config, seeds, theory),
        "allocation": _figure_allocation(config, seeds, theory),
    }


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """mu on and off the diagonal, from the common start."""
    run = seeds["online"].isel(lr=len(config.lrs) - 1)
    _curves(ax, run, theory["exact"], theory["spectral"], "mu")


def _curves(ax, run, exact, spectral, name: str) -> None:
    """The first head on its own task and on another: seeds, exact flow and published flow."""
    curves = run.quantile(name, (0.05, 0.5, 0.95))
    for k, label in enumerate(("own task", "another task")):
        panels.band(ax, run.t, curves[:, :, 0, k], f"C{k}", f"head 1, {label}")
        for flow, dashes, title in ((exact, "--", "exact flow"), (spectral, ":", "published flow")):
            shown = flow.t <= run.t[-1]
            ax.plot(
                flow.t[shown], flow[name][shown, 0, k], "k", linestyle=dashes, linewidth=1.1, label=None if k else title
            )
    ax.set(xlabel=r"time $t$ = learning rate $\times$ steps", ylabel=rf"$\{name}_{{hi}}$")
    ax.legend(title=f"{run.coverage}, 5%–95% band", title_fontsize=7.5)


def _figure_dynamics(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, middle, right, last) = panels.row(4, width=3.5)
    run = seeds["online"].isel(lr=len(config.lrs) - 1)
    for ax, name, title in ((left, "omega", "(a) key-query"), (middle, "mu", "(b) output-value")):
        _curves(ax, run, theory["exact"], theory["spectral"], name)
        low, high = ax.get_ylim()
        ax.set(title=title, ylim=(low, high + 0.7 * (high - low)))
    for color, key, label in (("C0", "online", f"{config.dy} heads"), ("C1", "one", "one head")):
        one = run if key == "online" else seeds["one"]
        right.plot(one.t, 2 * one.mean("loss"), color=color, label=f"SGD, {label}")
    for key, dashes, label in (
        ("exact", "--", "exact flows"),
        ("one", "--", None),
        ("spectral", ":", "published flow"),
    ):
        right.plot(theory[key].t, 2 * theory[key]["loss"], "k", linestyle=dashes, linewidth=1.1, label=label)
    right.set(title="(c) loss", xlabel="time $t$", ylabel=ERROR, ylim=(0, None))
    right.legend(loc="lower left")
    if config.instance_seeds:
        _curves(last, seeds["instance"], theory["instance"], theory["instance_spectral"], "mu")
        low, high = last.get_ylim()
        last.set(title="(d) three tasks of 4, $L=40$", ylim=(low, high + 0.5 * (high - low)))
        return figure
    for k, lr in enumerate(config.lrs):
        one = seeds["online"].isel(lr=k)
        apart = np.abs(
            ic.head_coordinates.at_times(theory["exact"].t, theory["exact"]["mu"], one.t) - one.mean("mu")
        ).max((1, 2))
        last.plot(one.t, apart, color=f"C{k}", label=f"SGD, lr = {lr:g}")
    last.plot(
        theory["exact"].t,
        np.abs(theory["exact"]["mu"] - theory["spectral"]["mu"]).max((1, 2)),
        "k:",
        label="published flow",
    )
    last.set(title=r"(d) distance of $\mu$ from the exact flow", xlabel="time $t$", yscale="log", ylim=(1e-4, 1))
    last.legend()
    return figure


def _figure_allocation(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, middle, right) = panels.row(3)
    run, own = seeds["starts"], theory["own"]
    ends, flows = run["mu"][:, -1], own["mu"][:, -1]
    for h in range(min(config.dy, 2)):
        left.plot(*ends[:, h, :2].T, "o", markersize=2, alpha=0.4, color=f"C{h}", label=f"head {h + 1}, SGD")
        left.plot(*flows[:, h, :2].T, "kx", markersize=4, markeredgewidth=0.8, label=None if h else "exact flows")
    low, high = left.get_ylim()
    left.set(
        title="(e) heads at the end", xlabel=r"$\mu_{h1}$", ylabel=r"$\mu_{h2}$", ylim=(low, high + 0.35 * (high - low))
    )
    left.legend(loc="upper center", ncol=3, columnspacing=0.8, handletextpad=0.2)
    codes, some = _codes(config.dy), len(flows)
    picks = {f"SGD, {len(ends):,} seeds": ends, f"SGD, first {some}": ends[:some], "their exact flows": flows}
    for k, (name, mu) in enumerate(picks.items()):
        shares = [(_picks(mu) == code).all(1).mean() for code in codes]
        middle.bar(np.arange(len(codes)) + 0.28 * (k - 1), shares, 0.26, color=("C0", "C2", "0.3")[k], label=name)
    names = ["".join(str(i + 1) for i in code) for code in codes]
    middle.set_xticks(range(len(codes)), names)
    middle.set(
        title="(f) which task each head picks", xlabel="task of head 1, 2, ...", ylabel="share of seeds", ylim=(0, 1)
    )
    middle.legend()
    starts, times = np.array(config.warm_starts), _warm_times(config, seeds, theory)
    right.plot(1 / starts, times["SGD"], "o", color="C0", label="SGD, keys to outputs apart")
    right.plot(1 / starts, times["exact flow"], "k--", label="exact flow")
    right.plot(1 / starts, [_warm_up(config, mu) for mu in starts], "k:", label=r"$d\,/\,(2\,c\,\mu_0)$")
    right.set(
        title="(g) warm-up", xlabel=r"$1/\mu_0$", ylabel="time to half of the end", xlim=(0, None), ylim=(0, None)
    )
    right.legend()
    return figure


def _codes(tasks: int) -> np.ndarray:
    """Every way in which as many heads pick tasks, those first in which all are taken; at most 16 of them."""
    codes = np.stack(np.meshgrid(*[np.arange(tasks)] * tasks, indexing="ij"), -1).reshape(-1, tasks)
    return codes[np.argsort(~_all_taken(codes), kind="stable")][:16]


STUDY = Study(
    title="Softmax attention on several tasks at once: every head picks one",
    paper="Chen et al. 2024, arXiv 2402.19442",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
