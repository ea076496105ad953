"""Hongru Yang et al. 2024 (arXiv 2410.09605): how a one-layer transformer learns which words occur together, in two phases.

Sentences of L words out of d orthonormal ones all have mu_3; they are positive if mu_1 and mu_2 are both there, and else have one
or none of them. Softmax attention and a linear MLP, all four matrices trained by gradient descent on the logistic loss of n
sentences. First (phase 1) the MLP learns G(mu_1), G(mu_2) > 0 > G(mu_3), which makes all signs right while the loss is still
large and attention where it was; then (phase 2) the loss falls, scores of mu_1 and mu_2 for each other rise and those of mu_3
for them fall, and G_1 + G_2 + G_3 > 0 > G_1 + G_3, G_2 + G_3. Sums of g_i = 1/(1 + e^(y_i F_i)) over the types balance.

Here every seed has weights and a data set of its own:
- `kaiming`: the paper's experiment, sigma0^2 = 2/d, sigma1^2 = 2/m, types in equal parts; G starts at 2 sqrt(m1/d), large;
- `small`: the start of its theory, sigma0^2 = 1/(L m), sigma1^2 = 1/m1, and types drawn;
- `distinct`: all irrelevant words of a data set differ, as its theory assumes;
- `drift`: W^T W - W_V W_V^T and W_K W_K^T - W_Q W_Q^T, which the flow keeps, at rates lr, lr/2 and lr/4.

Exact: the gradient flow of all weights, from the seeds' own, and lr times the first-order drift along it; and the flow closed in
the space of words (`icldyn.word_space`). Its start at m -> infinity gives one curve for all seeds of `distinct`, up to
1/sqrt m. Where training with uniform attention ends is the largest margin in L2: with distinct words the second ratio of
balancing goes to 3/2 for n -> infinity, and G_1 + G_3 < 0 from about 20 sentences on. Attention moves little, and the margin of
a seed's own data says much of whether its sums have the paper's signs, which about half of the seeds of its experiment have.
(1 + C) max(dG_1, dG_2) <= -dG_3 holds from a loss of 0.7 of its start on, not at t = 0, where dG_3 is 0 in the wide limit.

Conventions: loss (1/n) sum log(1 + e^(-yF)), no 1/2; t = lr x steps; scores W_K^T W_Q before the division by sqrt m, keys first;
F sums over the L words of a sentence, without 1/L. The m1 neurons are trained as one, exactly (`icldyn.word_attention`).
Reduced: m and m1 a quarter of the paper's, and rates small enough to stay on the flow, which the paper's 0.01 from the Kaiming
start is not: its first steps are several times above the edge of stability. The paper scale runs it.
"""

from __future__ import annotations

import operator
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

RUNS = {"kaiming": "Kaiming start", "small": "small start", "distinct": "small start, distinct words"}
TYPES = (r"$\mu_1$ and $\mu_2$", r"only $\mu_1$", r"only $\mu_2$", "neither")
SCORES = {(1, 0): 1, (0, 1): 1, (2, 0): -1, (2, 1): -1}  # (key, query): whether phase 2 raises or lowers it
GRAMS = {(0, 1): 1, (0, 2): -1, (1, 2): -1}
MARGINS = 256  # seeds whose data set has its largest margin solved for
DRIFTS = {"value": "W^TW - W_VW_V^T", "key": "W_KW_K^T - W_QW_Q^T"}


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 256
    """Seeds of every run, each with its own weights and data set."""
    flows: int = 32
    """Seeds whose own exact flow is solved, and those of the drift."""
    n: int = 60
    """Sentences."""
    n_distinct: int = 30
    """Sentences whose irrelevant words all differ."""
    L: int = 5
    """Words of a sentence."""
    d: int = 64
    """Words that there are."""
    m: int = 32
    """Width of attention."""
    m1: int = 64
    """Neurons."""
    lr: float = 2e-3
    """Learning rate from the Kaiming start."""
    lr_small: float = 8e-3
    """Learning rate from the small start."""
    steps: int = 2000
    """Steps."""
    steps_drift: int = 250
    """Steps of the drift at `lr_small`; twice and four times as many at a half and a quarter of it."""


SCALES = {
    "smoke": Config(
        seeds=32, flows=32, n=24, n_distinct=24, L=4, d=43, m=16, m1=32, lr=4e-3, steps=800, steps_drift=100
    ),
    "laptop": Config(),
    "paper": Config(n_distinct=60, m=128, m1=256, lr=0.01, lr_small=2e-3, steps=30_000),
}  # fmt: skip

SIZES = {
    "seeds": (2, 10**6),
    "flows": (2, 10**4),
    "n": (6, 10**4),
    "n_distinct": (6, 10**4),
    "L": (3, 10**3),
    "d": (4, 10**4),
    "m": (1, 10**4),
    "m1": (1, 10**6),
    "steps": (2, 2**31 - 2),
    "steps_drift": (2, 2**28),
}
REALS = {"lr": {"above": 1e-12, "most": 1e3}, "lr_small": {"above": 1e-12, "most": 1e3}}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def sixths(name: str) -> None:
        if settings.size(name) % 6:
            raise checks.refuse(name, "be a multiple of 6, for types in equal parts", getattr(config, name))

    def fewer() -> None:
        if settings.size("flows") > settings.size("seeds"):
            raise checks.refuse("flows", "be at most `seeds`", config.flows)

    settings.gather(lambda: sixths("n"), lambda: sixths("n_distinct"), fewer)


def _start(config: Config, run: str) -> tuple[Any, Any]:
    """Objective and initial weights of a run."""
    n, d = config.n, config.d
    if run == "distinct":
        n = config.n_distinct
        d = 3 + n // 6 * (6 * config.L - 14)  # words there are in all
    model = ic.word_attention(d, config.m, config.m1)
    task = ic.cooccurrence(n, L=config.L, d=d, balanced=run != "small", distinct=run == "distinct")
    return ic.sentences(model), ic.word_start(task, model, *_sigmas(config, run, d))


def _sigmas(config: Config, run: str, d: int) -> tuple[float, float]:
    if run == "kaiming":
        return (2 / d) ** 0.5, (2 / config.m) ** 0.5
    return (config.L * config.m) ** -0.5, config.m1**-0.5


def _curvature(config: Config, run: str) -> float:
    """m1 (m sigma0^2 + m sigma1^2): how fast G moves per slope of the loss, of order of its largest curvature."""
    sigma0, sigma1 = _sigmas(config, run, config.d)
    return config.m1 * config.m * (sigma0**2 + sigma1**2)


def _lr(config: Config, run: str) -> float:
    return config.lr if run == "kaiming" else config.lr_small


def experiments(config: Config) -> dict[str, Any]:
    """A run from every start, and one in double precision for the drift of the invariants."""
    check(config)
    out = {}
    for run in RUNS:
        objective, init = _start(config, run)
        settings = {"seeds": config.seeds, "lr": _lr(config, run), "steps": config.steps, "records": 49}
        out[run] = ic.Experiment(objective, init, measures=_measures(objective), spacing="log", **settings)
    objective, init = _start(config, "small")
    out["drift"] = ic.Experiment(
        objective,
        init,
        seeds=config.flows,
        lr=[config.lr_small / k for k in (1, 2, 4)],
        t_end=config.steps_drift * config.lr_small,
        measures={"value": objective.model.value_invariant, "key": objective.model.key_invariant},
        dtype="float64",
        records=2,
    )
    return out


def _measures(objective) -> dict[str, Any]:
    return {name: getattr(objective, name) for name in ("loss", "by_type", "unsure", "wrong", "G", "S", "V")}


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """The exact flows from the seeds' own start with the drift along them, and the wide limit of `distinct`."""
    out = {}
    for run in RUNS:
        objective, init = _start(config, run)
        out[run] = _flow(config, objective, init, seeds[run].t)
    objective, init = _start(config, "small")
    out["drift"] = _flow(config, objective, init, seeds["small"].t * (config.steps_drift / config.steps), "float64")
    objective, init = _start(config, "distinct")
    sigmas = _sigmas(config, "distinct", objective.model.d)
    start = ic.word_space.wide_start(objective.model.d, config.m, *sigmas)
    start["N"] = ic.initial_params(init, seeds=config.flows)["N"][0]  # the same for all seeds, up to the names of words
    measures = {"loss": objective.loss_in_words, "G": operator.itemgetter("G"), "S": operator.itemgetter("S")}
    out["wide"] = ic.flow(objective.field_in_words, start, seeds["distinct"].t, measures=measures, rtol=1e-6)
    init = _start(config, "small")[1]
    counts = ic.initial_params(init, seeds=min(config.seeds, MARGINS))["N"]
    G = np.stack([ic.word_space.largest_margin(N)[:3] for N in counts])
    out["margin"] = _ends(seeds["small"].t[-1:], {"G": G[:, None]})
    return out


def _ends(t: np.ndarray, values: dict[str, np.ndarray]):
    """Values (S, T, ...) as a trajectory."""
    S = len(next(iter(values.values())))
    coords = {"t": (("time",), t), "seed": (("seed",), np.arange(S))}
    return ic.Trajectory(values, {name: ("seed", "time", "word") for name in values}, coords)


def _flow(config: Config, objective, init, t: np.ndarray, dtype: str = "float32"):
    start = ic.initial_params(init, seeds=config.flows, dtype=dtype)
    start |= dict.fromkeys(("D_V", "D_K"), np.zeros((config.flows, config.m, config.m)))
    measures = _measures(objective) | {"drift": _drift}
    return ic.flow(objective.field, start, t, measures=measures, many=True, rtol=1e-6)


def _drift(params):
    """Norms of D_V and D_K (2,)."""
    import jax.numpy as jnp

    return jnp.stack([jnp.sqrt(jnp.sum(params[name] ** 2)) for name in ("D_V", "D_K")])


def _drifts(seeds: Trajectories, name: str) -> np.ndarray:
    """How far an invariant is from its start at the end, in the Frobenius norm, (rates, S)."""
    held = seeds["drift"][name]
    return np.linalg.norm(held[:, :, -1] - held[:, :, 0], axis=(-2, -1))


def _right(run) -> np.ndarray:
    """The record at which all signs of a seed are right for the first time, (S,); the last if they never are."""
    right = run["wrong"] == 0
    return np.where(right.any(1), right.argmax(1), right.shape[1] - 1)


def _moved(run, name: str, signs: dict[tuple[int, int], int]) -> np.ndarray:
    """How far entries have moved since the start, towards what the paper says, (entries, S, T)."""
    value = run[name]
    return np.stack([sign * (value[:, :, a, b] - value[:, :1, a, b]) for (a, b), sign in signs.items()])


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says and what follows from it, each decided by a number."""
    out: list[Claim] = []

    def claim(sentence: str, measured: Any, **limits) -> None:
        out.append(Claim(sentence, float(measured), **limits))

    _claims_of_flow(config, seeds, theory, claim)
    _claims_of_phases(config, seeds, claim)
    _claims_of_width(config, seeds["distinct"], theory["wide"], claim)
    sums = [_sum(theory["margin"]), _sum(seeds["small"])]
    claim(
        "Small start: correlation of (G_1 + G_3) / G_1 with that of the data's largest margin",
        _correlation(*sums),
        low=0.5,
    )
    claim("Largest margin: share of such data sets with G_1 + G_3 < 0", (sums[0] < 0).mean())
    total = sum(run.finite().size for run in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(run.diverged for run in seeds.values()), high=0)
    return out


def _sum(run) -> np.ndarray:
    """(G_1 + G_3) / G_1 at the end, of the seeds whose data set's largest margin is known."""
    G = run["G"][:MARGINS, -1]
    return (G[:, 0] + G[:, 2]) / G[:, 0]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return np.corrcoef(a, b)[0, 1]


def _claims_of_flow(config: Config, seeds: Trajectories, theory: Trajectories, claim) -> None:
    for name, title in RUNS.items():
        flow = theory[name]["loss"]
        gap = np.abs(np.log(seeds[name]["loss"][: len(flow)] / flow)).max(1)
        limit = {"high": 0.05} if _lr(config, name) * _curvature(config, name) < 0.5 else {}
        sentence = f"{title}: largest gap of log loss to the seed's own exact flow, median over seeds"
        claim(sentence, np.median(gap), gap=True, **limit)
    lr = seeds["drift"].coords["lr"][1]
    for k, (name, title) in enumerate(DRIFTS.items()):
        drift = _drifts(seeds, name)
        power = np.polyfit(np.log(lr), np.log(drift), 1)[0]
        claim(f"Drift of {title}: furthest of its power of lr from 1", np.abs(power - 1).max(), high=0.1)
        ratio = drift[-1] / lr[-1] / theory["drift"]["drift"][:, -1, k]
        claim(f"Drift of {title}, over lr x its integral along the flow, median", np.median(ratio), low=0.95, high=1.05)


def _claims_of_phases(config: Config, seeds: Trajectories, claim) -> None:
    """What holds from every start is decided where it holds least."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: Any) -> None:
        found.setdefault(name, []).append(float(value))

    for name, title in RUNS.items():
        run, first, seed = seeds[name], _right(seeds[name]), np.arange(config.seeds)
        G, loss, moved = run["G"][:, -1], run["loss"], _moved(run, "S", SCORES)
        note("right", (run["wrong"][:, -1] == 0).mean())
        note("signs", ((G[:, 0] > 0) & (G[:, 1] > 0) & (G[:, 2] < 0)).mean())
        note("loss", np.median(loss[seed, first]))
        note("scores then", np.median(np.abs(moved[:, seed, first]).mean(0) / np.abs(moved[:, :, -1]).mean(0)))
        note("fall", np.median(loss[:, -1] / loss[seed, first]))
        note("scores", np.median(moved[:, :, -1], axis=1).min())
        note("scores share", (moved[:, :, -1] > 0).mean())
        note("grams", np.median(_moved(run, "V", GRAMS)[:, :, -1], axis=1).min())
        note("neither", np.median(run["by_type"][:, -1, 3] / loss[:, -1]))
        kept = (G.sum(1) > 0) & (G[:, 0] + G[:, 2] < 0) & (G[:, 1] + G[:, 2] < 0)
        limit = {"low": 0.6} if name == "distinct" else {}
        claim(f"{title}: share of seeds with G_1 + G_2 + G_3 > 0 > G_1 + G_3, G_2 + G_3", kept.mean(), **limit)
        ratios = ic.word_space.balance(run["unsure"][:, -1])
        claim(f"{title}: |sum_2 g - sum_3 g| / min at the end, median", np.median(ratios[0]), high=0.5)
        claim(f"{title}: second ratio of balancing at the end, median", np.median(ratios[1]), low=0.7, high=1.6)
        note("second", ((ratios[1] > 0) & (ratios[1] < 2)).mean())
    least, most = ({name: f(values) for name, values in found.items()} for f in (min, max))
    claim("Share of seeds with all signs right at the end", least["right"], low=0.99)
    claim("Share of seeds with G_1, G_2 > 0 > G_3 at the end", least["signs"], low=0.9)
    claim("Phase 1: loss when all signs are right first, median", least["loss"], low=0.05)
    claim("Phase 1: share of the scores' motion done by then, median", most["scores then"], high=0.5)
    claim("Phase 2: loss at the end over that, median", most["fall"], high=0.3)
    claim("Phase 2: least median motion of the four scores, towards the paper's signs", least["scores"], low=0)
    claim("Phase 2: share of scores that moved so", least["scores share"], low=0.8)
    claim("Phase 2: the same of the entries of W_V^T W_V", least["grams"], low=0)
    claim("Loss on sentences with neither word over that on all, at the end, median", most["neither"], high=0.5)
    claim("Share of seeds with the second ratio of balancing between 0 and 2", least["second"], low=0.9)


def _claims_of_width(config: Config, run, wide, claim) -> None:
    late = wide["loss"] < 0.5 * wide["loss"][0]
    gap = np.abs(run.mean("G")[late] / wide["G"][late, :3] - 1).max()
    sentence = "Distinct words: largest gap of the mean G to the wide limit, below half the loss"
    claim(sentence, gap, high=0.6 / config.m**0.5, gap=True)
    motion = run.mean("S") - run.mean("S")[0]
    ends = [np.mean([sign * S[-1, a, b] for (a, b), sign in SCORES.items()]) for S in (motion, wide["S"])]
    claim(
        "Distinct words: motion of the scores, mean over that of the wide limit", ends[0] / ends[1], low=0.8, high=1.25
    )
    speed = np.diff(wide["G"], axis=0)
    with np.errstate(invalid="ignore"):  # the first steps may be recorded twice
        ratio = -speed[:, 2] / speed[:, 0]
    begun = wide["loss"][1:][ratio > 1].max(initial=0) / wide["loss"][0]
    claim("Wide limit: -dG_3 passes dG_1, which it cannot at t = 0, where the loss over its start is", begun, high=0.9)
    claim("Wide limit: least -dG_3 / dG_1 below half the loss", ratio[late[1:]].min(), low=1)
    claim("Wide limit: largest", ratio[late[1:]].max(), high=2)
    speed = np.diff(run["G"], axis=1)[run["loss"][:, 1:] < 0.5 * np.log(2)]
    kept = (speed[:, :2].max(1) < -speed[:, 2]) & (-speed[:, 2] < speed[:, :2].sum(1))
    sentence = "Distinct words: share of seeds and times below half of log 2 with max(dG_1, dG_2) < -dG_3 < dG_1 + dG_2"
    claim(sentence, kept.mean(), low=0.8)
    second = np.median(ic.word_space.balance(run["unsure"][:, -1])[1])
    claim(
        "Distinct words: second ratio over that of the largest margin", second / _limit(config)[1], low=0.85, high=1.15
    )


def _limit(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The ratios of balancing at the largest margin of `distinct`."""
    n = config.n_distinct // 6
    return ic.word_space.balance(ic.word_space.margin((3 * n, n, n, n), config.L))


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """The two phases from every start, and what limits say of them."""
    import matplotlib.pyplot as plt

    out = {}
    figure, axes = plt.subplots(3, 3, figsize=(11.1, 8.4))
    for k, (row, name) in enumerate(zip(axes, RUNS, strict=True)):
        _draw_phases(row, name, seeds[name], theory, legend=k == 0)
    out["phases"] = figure
    figure, ((drift, balance), (sums, margin)) = plt.subplots(2, 2, figsize=(7.8, 6.0))
    _draw_drift(drift, config, seeds, theory)
    _draw_balance(balance, config, seeds)
    _draw_sums(sums, config, seeds)
    _draw_margin(margin, seeds, theory)
    out["balance"] = figure
    return out


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """The loss by type from the small start."""
    _draw_types(ax, seeds["small"], theory["small"])
    ax.legend(fontsize=7)


def _draw_phases(axes, name: str, run, theory, legend: bool) -> None:
    """Loss by type, G and motion of the scores; a vertical line where all signs are right first."""
    left, middle, right = axes
    flow = theory[name]
    _draw_types(left, run, flow)
    left.set_title(RUNS[name])
    curves = run.quantile("G", (0.05, 0.5, 0.95))
    for k in range(3):
        panels.band(middle, run.t, curves[..., k], f"C{k}", rf"$G(\mu_{k + 1})$")
        middle.plot(flow.t, np.median(flow["G"][..., k], 0), "k--", linewidth=1)
    scores, exact = (_moved(one, "S", dict.fromkeys(SCORES, 1)) for one in (run, flow))
    for k, (key, query) in enumerate(SCORES):
        label = rf"$\mu_{key + 1}^TW_K^TW_Q\,\mu_{query + 1}$"
        panels.band(right, run.t, np.quantile(scores[k], (0.05, 0.5, 0.95), axis=0), f"C{k}", label)
        right.plot(flow.t, np.median(exact[k], 0), "k--", linewidth=1)
    middle.set_ylabel("$G$")
    right.set_ylabel("score, less its start")
    for ax in axes:
        ax.axvline(np.median(run.t[_right(run)]), color="0.6", linewidth=0.8, zorder=0)
        ax.set(xlabel="time $t$", xscale="log", xlim=(run.t[1], run.t[-1]))
    if legend:
        left.plot([], [], "k--", label=f"exact flow of {flow.num_seeds} seeds")
        left.plot([], [], color="0.6", linewidth=0.8, label="all signs right")
        left.legend(fontsize=7, loc="lower left")
        middle.set_ylim(None, 1.4 * curves[..., :2].max())
        middle.legend(fontsize=7, loc="upper left", ncol=3)
        right.legend(fontsize=7, loc="upper left")
    if name == "distinct":
        wide = theory["wide"]
        lines = [middle.plot(wide.t, wide["G"][:, k], "k:", linewidth=1.4)[0] for k in range(3)]
        for key, query in SCORES:
            right.plot(wide.t, wide["S"][:, key, query], "k:", linewidth=1.4)
        middle.legend(lines[:1], [r"$m\to\infty$"], loc="upper left")


def _draw_types(ax, run, flow) -> None:
    curves = run.quantile("by_type", (0.05, 0.5, 0.95))
    for k, label in enumerate(TYPES):
        panels.band(ax, run.t, curves[..., k], f"C{k}", label)
        ax.plot(flow.t, np.median(flow["by_type"][..., k], 0), "k--", linewidth=1)
    ax.set(yscale="log", xscale="log", xlim=(run.t[1], run.t[-1]), xlabel="time $t$", ylabel="loss by type of sentence")


def _draw_drift(ax, config: Config, seeds, theory) -> None:
    lr = seeds["drift"].coords["lr"][1]
    for k, (name, title) in enumerate(DRIFTS.items()):
        norm = np.linalg.norm(seeds["drift"][name][:, :, 0], axis=(-2, -1))
        share = _drifts(seeds, name) / norm
        panels.band(ax, lr, np.quantile(share, (0.05, 0.5, 0.95), axis=1), f"C{k}", f"${title}$")
        ax.plot(lr, lr * np.median(theory["drift"]["drift"][:, -1, k] / norm[0]), "k--", linewidth=1)
    ax.plot([], [], "k--", label="lr x integral along the flow")
    ax.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="drift of invariants, relative")
    panels.plain_ticks(ax.xaxis, lr)
    ax.set_title(f"(a) drift to t = {config.steps_drift * config.lr_small:g}")
    ax.legend(fontsize=7)


def _draw_balance(ax, config: Config, seeds) -> None:
    for k, (name, label) in enumerate(RUNS.items()):
        run = seeds[name]
        late = run.mean("loss") < 0.6 * run.mean("loss")[0]  # before, the denominator passes 0
        ratio = ic.word_space.balance(run["unsure"][:, late])[1]
        panels.band(ax, run.t[late], np.quantile(ratio, (0.05, 0.5, 0.95), axis=0), f"C{k}", label)
    ax.axhline(_limit(config)[1], color="k", linestyle="--", linewidth=1, label="largest margin, distinct words")
    ax.set(xscale="log", xlabel="time $t$", ylim=(-0.5, 3.6))
    ax.set_ylabel(r"$(-\Sigma_1+\Sigma_2+\Sigma_3+\Sigma_4)\,/\,(\Sigma_1-\Sigma_2)$")
    ax.set_title("(b) automatic balancing")
    ax.legend(fontsize=7, loc="upper left")


def _draw_sums(ax, config: Config, seeds) -> None:
    n = 6 * np.unique(np.logspace(0, 3, 60).astype(int))
    alpha = np.array([ic.word_space.margin((k // 2, k // 6, k // 6, k // 6), config.L) for k in n])
    G = np.array([ic.word_space.margin_values(a) for a in alpha])
    ax.plot(n, G.sum(1) / G[:, 0], "k--", label="$G_1+G_2+G_3$")
    ax.plot(n, (G[:, 0] + G[:, 2]) / G[:, 0], "k-.", label="$G_1+G_3$")
    end = seeds["distinct"]["G"][:, -1]
    for k, sums in enumerate((end.sum(1), end[:, 0] + end[:, 2])):
        middle, ends = np.median(sums / end[:, 0]), np.quantile(sums / end[:, 0], (0.05, 0.95))
        error = np.abs(ends - middle)[:, None]
        ax.errorbar(
            config.n_distinct, middle, error, fmt="o", color=f"C{k}", label="seeds at the end" if not k else None
        )
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set(xscale="log", xlabel="sentences $n$, distinct words", ylabel="sum over $G_1$, largest margin")
    ax.set_title("(c) signs of the sums")
    ax.legend(fontsize=7)


def _draw_margin(ax, seeds, theory) -> None:
    wanted, found = _sum(theory["margin"]), _sum(seeds["small"])
    ax.plot(wanted, found, "o", markersize=3, alpha=0.6, label=f"{RUNS['small']}, a point a seed")
    ends = np.array([wanted.min(), wanted.max()])
    ax.plot(ends, ends, "k--", label="$t\\to\\infty$ with uniform attention")
    for line in (ax.axhline, ax.axvline):
        line(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xlabel="$(G_1+G_3)/G_1$, largest margin of its data", ylabel="$(G_1+G_3)/G_1$ of the seed, end")
    ax.set_title("(d) which seeds have the sign")
    ax.legend(fontsize=7, loc="lower right")


STUDY = Study(
    title="Word co-occurrence in a one-layer transformer: two phases and automatic balancing",
    paper="Hongru Yang et al. 2024, arXiv 2410.09605",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
