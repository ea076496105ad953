"""He et al. 2025 (arXiv 2503.12734): what heads of softmax attention do in context, and how they come to do it.

A prompt holds L pairs (x, y), x ~ N(0, I_d), y = beta.x + e, beta ~ N(0, I/d), and a query. One layer with H heads learns
key-query matrices diag(omega_h I, 0) and values (0, mu_h), with heads of both signs whose mu sum to 0: positive heads, negative
heads and dummies. Two of opposite sign together take a step of debiased gradient descent, which one head alone cannot.

- Online SGD on merged matrices beside the exact flow of (omega_h, mu_h) at finite L (`attention_manifold`), and beside the
  published approximation for long prompts with the 1/d that full matrices need (`attention_spectrum`).
- Random starts: a head grows with the sign of z_h = d^(1/2) omega_h + mu_h. Two heads of the same sign act as one first, and
  wait at the loss of a single head until the symmetry between them breaks.
- The paper's training: Adam on keys, queries, values and outputs from the default of PyTorch's layers.
- Two tasks on overlapping blocks of coordinates: of three heads one serves both, of five most serve one (in the paper, all).
- Loss against L of the trained pattern, one head, one-step descent, its debiased form and ridge, beside the authors' Monte Carlo.

Conventions: loss 1/2 (y_q - yhat_q)^2 with a noisy y_q, t = lr x steps; the paper has no 1/2, so its losses are twice ours; its
reduced flow is that of half the loss, so its t is ours. Figures show 2 x loss. The query is none of its own keys; logits are
divided by (d + 1)^(1/2) where keys and queries are apart, and merged matrices have that in themselves. L is N elsewhere. That
every layer of the paper starts with fan-in d + 1 is assumed. Smaller than in the paper: d, L, batch and steps of the runs.
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

START = {"omega": (0.02, -0.015), "mu": (0.03, -0.02)}  # of the two heads of the common start
NOTES = {"d": 5, "L": 20, "sigma2": 0.1, "lr": 0.1, "batch": 4096, "t_end": 150.0}  # of the run `instance`
PAPER = {"d": 5, "sigma2": 0.1, "omega": 0.13, "mu": 3.45, "one": 1.628}  # of the losses against L
AUTHORS = {  # 2 x loss, by 50,000 prompts: two heads, one head, descent, debiased descent, ridge
    10: (0.604, 0.875, 0.643, 0.614, 0.194),
    20: (0.367, 0.586, 0.371, 0.369, 0.135),
    40: (0.243, 0.405, 0.241, 0.243, 0.1146),
    80: (0.176, 0.302, 0.174, 0.176, 0.1056),
}
ANSWERS = ("two heads", "one head", "gradient descent", "debiased descent", "ridge")
ERROR = r"$\mathrm{E}\,(y_q-\hat y_q)^2$"
KINDS = ("positive", "negative", "dummy")
DUMMY = 0.1  # of the largest |mu|, below which a head counts as a dummy
SIGNS = 0.25  # of t_end_starts, when every head has grown, and heads of the same sign still act as one
OVERLAPPING = ((0, 1, 2, 3), (2, 3, 4, 5))  # what the two tasks read
PARTS = ((0, 1), (2, 3), (4, 5))  # of the coordinates: of the first task, of both, of the second
DIMS = {"omega": ("head", "task"), "mu": ("head", "task")}


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 1024
    """Seeds of SGD, from the common start and from random ones."""
    flows: int = 64
    """Random starts whose own exact flow is solved."""
    adam_seeds: int = 128
    """Seeds of the paper's training, for every H."""
    instance_seeds: int = 8
    """Seeds of the run with d = 5, L = 20 and 4,096 prompts a step; 0 leaves it out."""
    H: tuple[int, ...] = (1, 2, 4, 8)
    """Heads of the paper's training, ascending, 1 and 2 among them."""
    d: int = 3
    """Input dimension."""
    L: int = 10
    """Context length."""
    sigma2: float = 0.1
    """Variance of the label noise."""
    lrs: tuple[float, ...] = (0.05, 0.025)
    """Learning rates of SGD from the common start, descending; random starts take the first."""
    batch: int = 128
    """Prompts a step of SGD."""
    t_end: float = 20.0
    """Time lr x steps of SGD from the common start."""
    t_end_starts: float = 40.0
    """Time of SGD from random starts."""
    spread: float = 0.05
    """Standard deviation of d^(1/2) omega_h and mu_h at random starts."""
    adam_lr: float = 3e-3
    """Learning rate of Adam."""
    adam_batch: int = 64
    """Prompts a step of Adam."""
    adam_steps: int = 5000
    """Steps of Adam."""
    tasks_H: tuple[int, ...] = (3, 5)
    """Heads of the training on two tasks: fewer than four, and more."""
    tasks_seeds: int = 32
    """Seeds of it, for every H; Adam, batch and steps are as above."""
    tasks_L: int = 20
    """Context length of it."""
    draws: int = 8192
    """Points of the exact mean, a power of 2."""
    lengths: tuple[int, ...] = (10, 15, 20, 30, 40, 60, 80, 100)
    """Context lengths of the losses against L, ascending."""


SCALES = {
    "smoke": Config(
        seeds=96, flows=8, adam_seeds=64, instance_seeds=0, H=(1, 2), adam_lr=0.01, adam_steps=2500,
        tasks_H=(3,), tasks_seeds=8, tasks_L=10, draws=4096, lengths=(20, 40),
    ),
    "laptop": Config(),
    "paper": Config(
        seeds=10_000, flows=256, adam_seeds=1000, instance_seeds=64, d=5, L=40, lrs=(0.02, 0.01), batch=1024, t_end=60.0,
        t_end_starts=120.0, adam_lr=1e-3, adam_batch=256, adam_steps=500_000, tasks_H=(3, 4, 5, 6), tasks_seeds=256, tasks_L=48,
        draws=32_768,
    ),
}  # fmt: skip

SIZES = {
    "seeds": (8, 10**8),
    "flows": (2, 10**4),
    "adam_seeds": (2, 10**8),
    "instance_seeds": (0, 10**6),
    "d": (1, 100),
    "L": (2, 1000),
    "batch": (1, 2**20),
    "adam_batch": (1, 2**20),
    "adam_steps": (100, 10**9),
    "tasks_seeds": (2, 10**8),
    "tasks_L": (2, 1000),
    "draws": (64, 2**20),
}
REALS: dict[str, dict[str, float]] = {
    "sigma2": {"above": 1e-6, "most": 100},
    "t_end": {"above": 1e-3, "most": 1e6},
    "t_end_starts": {"above": 1e-3, "most": 1e6},
    "spread": {"above": 1e-6, "most": 0.3},
    "adam_lr": {"above": 1e-9, "most": 1},
}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def heads() -> None:
        H = settings.each("H", checks.integer, 1, 64, ascending=True)
        if not {1, 2} <= set(H):
            raise checks.refuse("H", "hold 1 and 2", config.H)

    def tasks_heads() -> None:
        settings.each("tasks_H", checks.integer, 2, 64, ascending=True)

    def rates() -> None:
        lrs = settings.each("lrs", above=0)
        if len(lrs) < 2 or sorted(set(lrs), reverse=True) != lrs:
            raise checks.refuse("lrs", "hold at least two descending learning rates", config.lrs)
        if 20 * lrs[0] > min(settings.number("t_end"), settings.number("t_end_starts")):
            raise checks.refuse("lrs", "be at most a twentieth of `t_end` and `t_end_starts`", config.lrs)

    def draws() -> None:
        draws = settings.size("draws")
        if draws & (draws - 1):
            raise checks.refuse("draws", "be a power of 2", draws)

    def lengths() -> None:
        settings.each("lengths", checks.integer, 2, 1000, ascending=True)

    settings.gather(heads, tasks_heads, rates, draws, lengths)


def experiments(config: Config) -> dict[str, Any]:
    """SGD from the common start and from random ones, Adam for every H, and the instance of the notes."""
    import optax

    check(config)
    task, model = ic.block_regression(config.L, ic.disjoint([config.d]), sigma2=config.sigma2), _merged(config.d)
    objective, common = ic.attended(task, model, config.batch), {"measures": _measures(model), "dims": DIMS}
    start = ic.softmax_attention.manifold(model, task.blocks, *_common().values())
    random = ic.softmax_attention.random_manifold(model, task.blocks)
    out = {
        "online": ic.Experiment(
            objective, start, seeds=config.seeds, lr=list(config.lrs), t_end=config.t_end, **common
        ),
        "starts": ic.Experiment(
            objective, random, seeds=config.seeds, lr=config.lrs[0], t_end=config.t_end_starts, init_scale=config.spread,
            **common,
        ),
    }  # fmt: skip
    adam = {"lr": config.adam_lr, "steps": config.adam_steps, "optimiser": optax.adam}
    two = ic.block_regression(config.tasks_L, OVERLAPPING, sigma2=config.sigma2)
    trained = [(f"heads{H}", H, task, config.adam_seeds) for H in config.H]
    for name, H, task_, count in [*trained, *((f"tasks{H}", H, two, config.tasks_seeds) for H in config.tasks_H)]:
        apart = _apart(task_, H)
        measures, dims = (
            _measures(apart, PARTS if task_ is two else None),
            DIMS | ({"omega": ("head", "part")} if task_ is two else {}),
        )
        out[name] = ic.Experiment(
            ic.attended(task_, apart, config.adam_batch), ic.softmax_attention.uniform(apart), seeds=count,
            measures=measures, dims=dims, **adam,
        )  # fmt: skip
    if config.instance_seeds:
        task, model = ic.block_regression(NOTES["L"], ic.disjoint([NOTES["d"]]), sigma2=NOTES["sigma2"]), _merged(5)
        out["instance"] = ic.Experiment(
            ic.attended(task, model, NOTES["batch"]), ic.softmax_attention.manifold(model, task.blocks, *_common().values()),
            seeds=config.instance_seeds, lr=NOTES["lr"], t_end=NOTES["t_end"], measures=_measures(model), dims=DIMS,
        )  # fmt: skip
    return out


def _merged(d: int):
    return ic.softmax_attention.softmax_attention(d, 2, query_attends_itself=False)


def _apart(task, H: int):
    """The paper's layer: keys and queries apart, values and outputs apart, all of full size."""
    D, O = task.D, task.O  # noqa: E741
    scale = (D + O) ** -0.5
    return ic.softmax_attention.softmax_attention(
        D, H, D + O, O=O, query_attends_itself=False, scale=scale, values_apart=True
    )


def _common() -> dict[str, np.ndarray]:
    """omega and mu (2, 1) of the common start."""
    return {name: np.array(values)[:, None] for name, values in START.items()}


def _measures(model, parts: tuple[tuple[int, ...], ...] | None = None) -> dict[str, Any]:
    """omega of all coordinates, or of every part of them, mu, and what lies off the manifold of one task."""
    from jax.tree_util import Partial

    where = ic.head_coordinates.indicator(parts or (tuple(range(model.D)),))
    measures = {"omega": Partial(ic.head_coordinates.omega, model, where), "mu": Partial(ic.head_coordinates.mu, model)}
    return measures if parts else measures | {"rest": Partial(ic.head_coordinates.rest, model, where)}


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """Exact and published flows from the common start, exact ones from random starts, of one head, and losses against L."""
    exact = ic.attention_manifold.manifold(config.L, [config.d], sigma2=config.sigma2, draws=config.draws)
    t = seeds["online"].isel(lr=0).t
    approximate = ic.attention_spectrum.spectral(config.L, [config.d], config.sigma2)
    out = {"exact": _flow(exact, exact, _common(), t), "spectral": _flow(approximate, exact, _common(), t)}
    few = ic.attention_manifold.manifold(config.L, [config.d], sigma2=config.sigma2, draws=min(1024, config.draws))
    out["own"] = _flow(few, few, _starts(config, min(config.flows, config.seeds)), seeds["starts"].t, many=True)
    omega, mu, _ = ic.attention_spectrum.single_head(config.L, config.d, config.sigma2)
    one = {"omega": np.array([[omega]]), "mu": np.array([[mu]])}
    out["one"] = _flow(exact, exact, one, np.linspace(0, 200, 17))
    if config.instance_seeds:
        settings = (NOTES["L"], [NOTES["d"]])
        exact = ic.attention_manifold.manifold(*settings, sigma2=NOTES["sigma2"], draws=config.draws)
        approximate = ic.attention_spectrum.spectral(*settings, NOTES["sigma2"])
        for name, loss in (("instance", exact), ("instance_spectral", approximate)):
            out[name] = _flow(loss, exact, _common(), seeds["instance"].t)
    out["lengths"] = _lengths(config)
    return out


def _flow(loss, exact, start: dict[str, np.ndarray], t: np.ndarray, **more):
    """The flow of merged matrices; "loss" is the exact one along it."""
    from operator import itemgetter

    from jax.tree_util import Partial

    field = Partial(ic.attention_manifold.merged_rate, loss)
    measures = {"omega": itemgetter("omega"), "mu": itemgetter("mu"), "loss": exact.loss}
    return ic.flow(field, start, t, measures=measures, dims=DIMS, rtol=1e-6, **more)


def _starts(config: Config, seeds: int) -> dict[str, np.ndarray]:
    """omega and mu (S, 2, 1) that so many seeds of `starts` begin with."""
    init = ic.softmax_attention.random_manifold(_merged(config.d), ic.disjoint([config.d]))
    params = ic.initial_params(init, seeds=seeds, init_scale=config.spread)
    return {"omega": params["U"][:, :, :1, 0], "mu": params["v"][:, :, -1:]}


def _lengths(config: Config):
    """2 x loss of every answer against L, which stands in for the time."""
    d, sigma2, w, m = (PAPER[name] for name in ("d", "sigma2", "omega", "mu"))
    weights = {"omega": [[w, -w], [d**-0.5, 0]], "mu": [[m, -m], [PAPER["one"], 0]]}  # two heads, one head
    rows = []
    for L in config.lengths:
        exact = ic.attention_manifold.manifold(L, [d], sigma2=sigma2, draws=min(4096, config.draws))
        losses = _exact_losses(exact, weights)
        for name in ("descent_loss", "debiased_loss"):
            losses.append(getattr(ic.context_regression, name)(2 * w * m, L, d, sigma2))
        rows.append([2 * loss for loss in (*losses, ic.context_regression.ridge_loss(L, d, sigma2))])
    clock = {"t": (("time",), np.array(config.lengths, float))}
    return ic.Trajectory({"loss": np.array(rows)}, {"loss": ("time", "answer")}, clock)


def _exact_losses(exact, weights: dict[str, list[list[float]]]) -> list[float]:
    """Losses (M,) at omega and mu (M, H) of one task."""
    import jax

    with jax.enable_x64(True):
        stacked = {name: np.array(values, float)[:, :, None] for name, values in weights.items()}
        return np.asarray(jax.jit(lambda loss, w: jax.vmap(loss.loss)(w))(exact, stacked)).tolist()


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says and what follows from it, each decided by a number."""
    out: list[Claim] = []

    def claim(sentence: str, measured: float, *limits: float, **more) -> None:
        out.append(Claim(sentence, float(measured), *limits, **more))

    online, exact = seeds["online"], theory["exact"]
    runs = [{name: online.isel(lr=k).mean(name) for name in DIMS} for k in range(len(config.lrs))]
    grown = [
        {name: ic.head_coordinates.at_times(online.isel(lr=k).t, run[name], exact.t) for name in DIMS}
        for k, run in enumerate(runs)
    ]
    for lr, run in zip(config.lrs, grown, strict=True):
        # SGD is behind by r lr/2 of a unit of log size, r the rate of growth, and moves at most r/2 of its range in one
        claim(
            f"Heads of SGD follow the exact flow at lr = {lr:g} (gap)",
            ic.head_coordinates.gap(run, exact),
            high=_allowed(config, lr),
            gap=True,
        )
    a, b = config.lrs[0], config.lrs[1]
    limit = {name: (a * grown[1][name] - b * grown[0][name]) / (a - b) for name in DIMS}
    claim(
        "The same as lr -> 0, from two rates (gap)",
        ic.head_coordinates.gap(limit, exact),
        high=_allowed(config, 0),
        gap=True,
    )
    away = ic.head_coordinates.gap({name: theory["spectral"][name] for name in DIMS}, exact)
    claim(f"The same gap of the published approximation at L = {config.L}, d = {config.d}", away, low=0.05, gap=True)
    if config.instance_seeds:
        _instance_claims(seeds, theory, claim)
    _start_claims(config, seeds, theory, claim)
    _heads_claims(config, seeds, theory, claim)
    _tasks_claims(config, seeds, claim)
    _length_claims(config, theory, claim)
    total = sum(one.finite().size for one in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(one.diverged for one in seeds.values()), high=0)
    return out


def _allowed(config: Config, lr: float) -> float:
    """What Euler steps of lr add to a logistic of the early rate r, four standard errors and the error of the draws."""
    r, ready = config.d**-0.5, 4.0  # units of log size from the start to the end
    return r * lr * ready / 4 + 4 * 0.05 / config.seeds**0.5 + 0.006


def _instance_claims(seeds: Trajectories, theory: Trajectories, claim) -> None:
    run, exact, spectral = seeds["instance"], theory["instance"], theory["instance_spectral"]
    ends = {name: np.abs(run.mean(name)[-1, :, 0]) for name in DIMS}
    flows = {name: np.abs(exact[name][-1, :, 0]) for name in DIMS}
    worst = max(np.abs(ends[name] / flows[name] - 1).max() for name in DIMS)
    claim(
        "d = 5, L = 20, 4,096 prompts a step: ends of SGD against the exact flow (relative)",
        worst,
        high=0.025,
        gap=True,
    )
    notes = max(np.abs(flows["omega"] / (0.309, 0.305) - 1).max(), np.abs(flows["mu"] / (1.318, 1.316) - 1).max())
    claim("The exact flow's ends against those of the notes (relative)", notes, high=0.02)  # their draws and ours
    wrong = max(
        np.abs(np.abs(spectral["omega"][-1]) / 0.262 - 1).max(), np.abs(np.abs(spectral["mu"][-1]) / 1.480 - 1).max()
    )
    claim("The published flow's ends against those of the notes (relative)", wrong, high=2e-3)  # of three digits
    far = max(np.abs(np.abs(spectral[name][-1, :, 0]) / flows[name] - 1).max() for name in DIMS)
    claim("The published flow's ends against the exact ones (relative)", far, low=0.1)


def _start_claims(config: Config, seeds: Trajectories, theory: Trajectories, claim) -> None:
    run, own = seeds["starts"], theory["own"]
    count, z = own.num_seeds, _amplitudes(config, run.num_seeds)
    low, high = np.sort(np.abs(z), axis=1).T
    clear = np.where(
        z.prod(1) < 0, low > 0.2 * config.spread, low > 0.7 * high
    )  # the first head to grow turns a weak one
    k = int(np.searchsorted(run.t, SIGNS * run.t[-1]))
    same = (np.sign(run["mu"][:, k, :, 0]) == np.sign(z)).all(1)
    sentence = "Random starts: heads grow with the signs of z (share of seeds with opposite or nearly equal z)"
    claim(sentence, same[clear].mean(), low=0.9)
    opposite = _opposite(run["mu"][:, k])
    claim("Seeds with heads of both signs after their growth (share)", opposite.mean(), low=0.5)
    claim("Seeds with heads of both signs at the end (share)", _opposite(run["mu"][:, -1]).mean(), low=opposite.mean())
    agree = (np.sign(run["mu"][:count, k]) == np.sign(own["mu"][:, k])).all((1, 2)).mean()
    claim("Seeds whose heads have the signs of their own exact flow after their growth (share)", agree, low=0.9)
    apart = [np.abs(run[n][:count] - own[n]).max((1, 2, 3)) / np.abs(own[n]).max() for n in DIMS]
    middle = np.median(np.maximum(*apart)[_opposite(own["mu"][:, k])])
    claim("Heads of seeds with both signs against their own exact flow (median gap)", middle, high=0.15)


def _amplitudes(config: Config, seeds: int) -> np.ndarray:
    """z_h = d^(1/2) omega_h + mu_h of random starts, (S, 2): what grows at first."""
    start = _starts(config, seeds)
    return (config.d**0.5 * start["omega"] + start["mu"])[:, :, 0]


def _opposite(mu: np.ndarray) -> np.ndarray:
    """Whether two heads have mu (S, 2, 1) of opposite signs, neither of them a dummy."""
    low, high = mu[:, :, 0].min(1), mu[:, :, 0].max(1)
    return (low < 0) & (high > 0) & (np.minimum(-low, high) > DUMMY * np.maximum(-low, high))


def _heads_claims(config: Config, seeds: Trajectories, theory: Trajectories, claim) -> None:
    ends = {H: _late(seeds[f"heads{H}"]) for H in config.H}
    one, two = (theory[name]["loss"][-1] for name in ("one", "exact"))
    claim("Adam, one head: late loss over the exact minimum of the manifold", ends[1] / one, 0.97, 1.06)
    claim("Adam, two heads: late loss over that of the exact flow", ends[2] / two, 0.95, 1.06)
    claim("One head is strictly worse: its late loss over that of two", ends[1] / ends[2], low=1.15)
    for H in config.H[2:]:
        claim(f"{H} heads are as good as two: late loss over theirs", ends[H] / ends[2], 0.9, 1.03)
    both = _opposite(seeds["heads2"]["mu"][:, -1]).mean()
    claim("Adam, two heads: one positive and one negative (share of seeds)", both, low=0.9)
    for H in config.H[1:]:
        omega, mu = (seeds[f"heads{H}"][name][:, -1, :, 0] for name in DIMS)
        balance = np.abs(mu.sum(1)) / np.abs(mu).sum(1)
        claim(f"{H} heads: |sum_h mu_h| over sum_h |mu_h| (median over seeds)", np.median(balance), high=0.1)
        alive = _alive(mu)
        agree = (omega * mu > 0)[alive].mean()
        claim(f"{H} heads: omega_h and mu_h have the same sign (share of heads that are no dummies)", agree, low=0.9)
        claim(f"{H} heads: dummies, |mu_h| below {DUMMY:g} of the largest (share of heads)", 1 - alive.mean())


def _tasks_claims(config: Config, seeds: Trajectories, claim) -> None:
    for H in config.tasks_H:
        omega, mu = (seeds[f"tasks{H}"][name][:, -1] for name in DIMS)
        alive, both = _served(mu)
        if H < 4:
            sentence = f"Two tasks, {H} heads: a head serves both (share of seeds)"
            claim(sentence, (both & alive).any(1).mean(), low=0.9)
        else:
            claim(f"Two tasks, {H} heads: heads that serve one of them (share)", 1 - both[alive].mean(), low=2 / 3)
        signs = np.sign(omega[:, :, [0, 2]]) == np.sign(mu)
        strong = np.abs(mu) > 0.5 * np.abs(mu).max((1, 2), keepdims=True)
        sentence = f"Two tasks, {H} heads: omega has the sign of mu on the coordinates of that task alone (share)"
        claim(sentence, signs[strong].mean(), low=0.9)


def _served(mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which heads are no dummies, and which have at least half their larger |mu| on either task, (S, H), for mu (S, H, 2)."""
    size = np.abs(mu)
    return _alive(size.max(2)), size.min(2) > 0.5 * size.max(2)


def _alive(mu: np.ndarray) -> np.ndarray:
    """Which heads are no dummies, for mu (S, H)."""
    return np.abs(mu) > DUMMY * np.abs(mu).max(1, keepdims=True)


def _late(run) -> float:
    """Mean loss over seeds and the last quarter of the records."""
    return float(run.mean("loss")[-(run.t.size // 4) :].mean())


def _length_claims(config: Config, theory: Trajectories, claim) -> None:
    lengths, loss = theory["lengths"].t, theory["lengths"]["loss"]
    for k, answer in enumerate(ANSWERS):
        apart = [loss[lengths == L, k][0] / row[k] - 1 for L, row in AUTHORS.items() if L in lengths]
        sentence = f"Loss of {answer} against L beside the authors' Monte Carlo (largest relative difference)"
        claim(sentence, np.abs(apart).max(initial=0), high=0.025)  # 50,000 prompts: a standard error of 1%, long tails
    w, d, L, sigma2 = 0.01, config.d, config.L, config.sigma2
    eta, best = ic.context_regression.best_debiased(L, d, sigma2)
    exact = ic.attention_manifold.manifold(L, [d], sigma2=sigma2, draws=config.draws)
    (loss,) = _exact_losses(exact, {"omega": [[w, -w]], "mu": [[eta / (2 * w), -eta / (2 * w)]]})
    sentence = "Two weak heads of opposite sign: exact loss over that of debiased descent"
    claim(sentence, loss / best, 0.998, 1.002)


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """Dynamics (a) to (d), random starts (e) to (g), heads (h) to (k), loss against L (l) and (m), two tasks (n) on."""
    return {
        "dynamics": _figure_dynamics(config, seeds, theory),
        "starts": _figure_starts(config, seeds, theory),
        "heads": _figure_heads(config, seeds, theory),
        "tasks": _figure_tasks(config, seeds),
        "lengths": _figure_lengths(theory),
    }


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """mu of the two heads from the common start."""
    _curves(ax, config, seeds, theory, "mu")


def _curves(ax, config: Config, seeds: Trajectories, theory: Trajectories, name: str) -> None:
    labels = ["positive head", "negative head"]
    flows = {"exact flow": theory["exact"], "published flow": theory["spectral"]}
    run = seeds["online"].isel(lr=len(config.lrs) - 1)
    ic.overlay(run, flows, name, ax, labels=labels, legend={"loc": "center right"})
    ax.set(ylabel=rf"$\{name}_h$")


def _figure_dynamics(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, middle, right, last) = panels.row(4, width=3.5)
    for ax, name, title in ((left, "omega", "(a) key-query"), (middle, "mu", "(b) output-value")):
        _curves(ax, config, seeds, theory, name)
        ax.set_title(title)
    run, exact = seeds["online"].isel(lr=len(config.lrs) - 1), theory["exact"]
    right.plot(run.t, 2 * run.mean("loss"), color="C0", label=f"SGD, mean of {run.num_seeds:,} seeds")
    for label, name, dashes in (("exact flow", "exact", "--"), ("published flow", "spectral", ":")):
        right.plot(theory[name].t, 2 * theory[name]["loss"], "k", linestyle=dashes, linewidth=1.1, label=label)
    _one_head(right, theory)
    right.set(title="(c) loss", xlabel="time $t$", ylabel=ERROR, ylim=(0, None))
    right.legend(loc="lower left")
    for k, lr in enumerate(config.lrs):
        run = seeds["online"].isel(lr=k)
        apart = _distance(ic.head_coordinates.at_times(exact.t, exact["mu"], run.t), run.mean("mu"), exact)
        last.plot(run.t, apart, color=f"C{k}", label=f"SGD, lr = {lr:g}")
    last.plot(exact.t, _distance(exact["mu"], theory["spectral"]["mu"], exact), "k:", label="published flow")
    last.set(
        title=r"(d) distance of $\mu$ from the exact flow", xlabel="time $t$", ylabel=r"share of the largest $\mu$"
    )
    last.set(yscale="log", ylim=(1e-4, 1))
    last.legend(loc="lower right")
    return figure


def _one_head(ax, theory: Trajectories) -> None:
    loss = 2 * theory["one"]["loss"][-1]
    ax.axhline(loss, color="0.5", linewidth=0.9, linestyle="-.", label="one head, exact minimum")


def _distance(a: np.ndarray, b: np.ndarray, exact) -> np.ndarray:
    return np.abs(a - b).max((1, 2)) / np.abs(exact["mu"]).max()


def _figure_starts(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, middle, right) = panels.row(3)
    run, own = seeds["starts"], theory["own"]
    k, z = int(np.searchsorted(run.t, SIGNS * run.t[-1])), _amplitudes(config, run.num_seeds) / config.spread
    both = _opposite(run["mu"][:, k])
    for color, kind, label in (("C0", both, "both signs"), ("C1", ~both, "the same sign")):
        middle.plot(*z[kind].T, "o", markersize=1.8, alpha=0.6, color=color, label=label)
        if kind.any():
            curves = 2 * np.quantile(_smooth(run["loss"][kind]), (0.05, 0.5, 0.95), axis=0)
            panels.band(left, run.t, curves, color, f"SGD, {label} at t = {run.t[k]:g}")
    left.plot(own.t, 2 * own["loss"].T, "k--", linewidth=0.4, alpha=0.6)
    left.plot([], [], "k--", linewidth=0.6, label=f"exact flows of {own.num_seeds} seeds")
    _one_head(left, theory)
    left.set(title="(e) two heads, random starts", xlabel="time $t$", ylabel=ERROR, ylim=(0, 1.9))
    left.legend(loc="upper right")
    middle.axhline(0, color="0.6", linewidth=0.8)
    middle.axvline(0, color="0.6", linewidth=0.8)
    middle.set(title=f"(f) signs of $\\mu$ at t = {run.t[k]:g}, by the start", ylim=(-5, 6.5))
    middle.set(xlabel="$z_1$ / spread", ylabel="$z_2$ / spread")
    middle.legend(loc="upper center", ncol=2)
    for n, marker in ((k, "o"), (run.t.size - 1, "s")):
        pairs = own["mu"][:, n].ravel(), run["mu"][: own.num_seeds, n].ravel()
        right.plot(*pairs, marker, markersize=2.5, alpha=0.6, label=f"t = {run.t[n]:g}")
    right.axline((0, 0), slope=1, color="k", linestyle="--", linewidth=0.9)
    right.set(title="(g) every head beside its own flow", xlabel=r"$\mu_h$, exact flow", ylabel=r"$\mu_h$, SGD")
    right.legend()
    return figure


def _smooth(loss: np.ndarray) -> np.ndarray:
    """Mean over five records next to each other, (S, T): the loss is that of a batch."""
    padded = np.pad(loss, ((0, 0), (2, 2)), mode="edge")
    return np.mean([padded[:, k : k + loss.shape[1]] for k in range(5)], axis=0)


def _figure_heads(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, middle, right, last) = panels.row(4, width=3.5)
    for k, H in enumerate(config.H):
        run = seeds[f"heads{H}"]
        left.plot(run.coords["step"][1], 2 * run.mean("loss"), color=f"C{k}", label=f"H = {H}")
    _one_head(left, theory)
    settings = config.L, config.d, config.sigma2
    debiased, ridge = ic.context_regression.best_debiased(*settings)[1], ic.context_regression.ridge_loss(*settings)
    for value, dashes, label in ((debiased, "--", "debiased descent"), (ridge, ":", "ridge")):
        left.axhline(2 * value, color="k", linewidth=1, linestyle=dashes, label=label)
    left.set(title="(h) the paper's training (Adam)", xlabel="step", ylabel=ERROR, ylim=(0, 2.2))
    left.legend(ncol=2, loc="upper right")
    bins = np.linspace(-1, 1, 41)
    for k, H in reversed(list(enumerate(config.H))):
        omega, mu = (seeds[f"heads{H}"][name][:, -1, :, 0] for name in DIMS)
        middle.plot(omega.ravel(), mu.ravel(), "o", markersize=2, alpha=0.5, color=f"C{k}", label=f"H = {H}")
        if H > 1:
            balance = mu.sum(1) / np.abs(mu).sum(1)
            weights = np.full(balance.size, 1 / balance.size)
            right.hist(balance, bins, weights=weights, histtype="step", color=f"C{k}", label=f"H = {H}")
    middle.set(title="(i) every head at the end", xlabel=r"$\omega_h$", ylabel=r"$\mu_h$")
    middle.legend(loc="upper left")
    right.set(title="(j) the values cancel", xlabel=r"$\Sigma_h\,\mu_h\;/\;\Sigma_h\,|\mu_h|$", ylabel="share of seeds")
    right.legend()
    shares, bottom = (
        np.array([_kinds(seeds[f"heads{H}"]["mu"][:, -1, :, 0]) for H in config.H]),
        np.zeros(len(config.H)),
    )
    for kind, share, color in zip(KINDS, shares.T, ("C0", "C1", "0.75"), strict=True):
        last.bar([str(H) for H in config.H], share, bottom=bottom, color=color, label=kind)
        bottom = bottom + share
    last.set(title="(k) kinds of heads", xlabel="heads $H$", ylabel="heads, mean over seeds")
    last.legend(loc="upper left")
    return figure


def _kinds(mu: np.ndarray) -> list[float]:
    """Mean numbers of positive, negative and dummy heads, for mu (S, H)."""
    alive = _alive(mu)
    return [float(kind.sum(1).mean()) for kind in ((mu > 0) & alive, (mu < 0) & alive, ~alive)]


def _figure_tasks(config: Config, seeds: Trajectories) -> Figure:
    figure, (left, *rest) = panels.row(1 + len(config.tasks_H), width=3.3)
    for k, (H, ax) in enumerate(zip(config.tasks_H, rest, strict=True)):
        run = seeds[f"tasks{H}"]
        left.plot(run.coords["step"][1], 2 * run.mean("loss"), color=f"C{k}", label=f"H = {H}")
        mu = run["mu"][:, -1]
        alive, both = _served(mu)
        for kind, color, label in (
            (alive & both, "C1", "both tasks"),
            (alive & ~both, "C0", "one"),
            (~alive, "0.6", "dummy"),
        ):
            ax.plot(*mu[kind].T, "o", markersize=2.5, alpha=0.6, color=color, label=label)
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.axvline(0, color="0.6", linewidth=0.8)
        title, most = f"({chr(ord('o') + k)}) every head at the end, H = {H}", np.abs(mu).max()
        ax.set(
            title=title,
            xlabel=r"$\mu_h$ of the first task",
            ylabel=r"$\mu_h$ of the second",
            ylim=(-1.2 * most, 1.6 * most),
        )
        ax.legend(loc="upper center", ncol=3)
    left.set(title="(n) two tasks on overlapping inputs", xlabel="step", ylabel=ERROR + ", both tasks", ylim=(0, None))
    left.legend()
    return figure


def _figure_lengths(theory: Trajectories) -> Figure:
    figure, (left, right) = panels.row(2, width=4.2, height=3.4)
    lengths, loss = theory["lengths"].t, theory["lengths"]["loss"]
    style = {"markersize": 4, "markeredgecolor": "k"}
    for k, (answer, marker, dashes) in enumerate(zip(ANSWERS, "osv^D", ("-", "-", "--", ":", "-"), strict=True)):
        left.plot(lengths, loss[:, k], color=f"C{k}", linestyle=dashes, label=answer)
        left.plot(list(AUTHORS), [row[k] for row in AUTHORS.values()], marker, color=f"C{k}", **style)
        if k in (0, 2, 3):
            right.plot(lengths, loss[:, k] / loss[:, 3], color=f"C{k}", linestyle=dashes, label=answer)
            shown = {L: row[k] / loss[lengths == L, 3][0] for L, row in AUTHORS.items() if L in lengths}
            right.plot(list(shown), list(shown.values()), marker, color=f"C{k}", **style)
    left.plot([], [], "o", color="w", markeredgecolor="k", markersize=4, label="the authors' Monte Carlo")
    title = rf"(l) $d={PAPER['d']}$, $\sigma^2={PAPER['sigma2']:g}$, $\omega=\pm{PAPER['omega']:g}$, $\mu=\pm{PAPER['mu']:g}$"
    left.set(title=title, xlabel="context length $L$", ylabel=ERROR, yscale="log")
    panels.plain_ticks(left.yaxis, (0.1, 0.2, 0.4, 0.8))
    left.legend()
    right.set(
        title="(m) two heads are debiased descent",
        xlabel="context length $L$",
        ylabel="loss / that of debiased descent",
    )
    right.legend()
    return figure


STUDY = Study(
    title="Heads of softmax attention: positive, negative and dummy, and debiased gradient descent",
    paper="He et al. 2025, arXiv 2503.12734",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
