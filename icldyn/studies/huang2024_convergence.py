"""Huang, Cheng and Liang 2023, "In-context convergence of transformers" (arXiv 2310.05249, ICML 2024).

One softmax head, yhat = sum_i softmax_i(x_i^T Q x_q) y_i, learns a dictionary of K orthonormal tokens from Q = 0. With
A_k = v_k^T Q v_k and B_{k,n} = v_n^T Q v_k the answer to a query v_k takes the share Attn_k of its own labels:

- balanced tokens, p_k = 1/K: in time K^2 attention comes to 1/2, then L_k falls as 1/t, to what prompts without the query leave;
- one dominant token, p_1 = alpha: its own query is learned at once, any other in four phases: B_{k,1} falls (attention leaves the
  dominant token), A_k takes over, attention comes to v_k suddenly, and L_k falls as 1/t.

The paper proves bounds. Here the dynamics are exact (`icldyn.theory.dictionary_attention`): gradient descent on the expected loss
is a recursion of a few numbers, at any N and step size, with a closed form for balanced tokens at N = infinity. Seeds of SGD, at
the recursion's own eta and from drawn counts of tokens (`ic.statistics`), lie on it; the gradient flow is shown beside it.

Conventions: loss 1/2 (yhat - y_q)^2, t = eta x steps, w ~ N(0, I), no noise, the query is not among its keys, Q alone is trained.
The 1/2, the covariance I, the start at 0, the value 1 and the mask were not read in the paper itself but are assumed; the checked
numbers are the project's own. B_{k,1} has no minimum: it falls for ever, late only logarithmically.
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

HALF = {10: 1.438, 50: 1.212, 200: 1.076, 1000: 1.020}  # K -> t / K^2 at attention 1/2, balanced, N = infinity
PHASES = {0.5: (0.722, 2.01, 2.07), 0.3: (0.513, 1.43, 1.48)}  # alpha -> t / K^2 at switch, crossing and half, K = 3000
TABLE = {  # step -> A, B_1, b, L_k, Attn_k and A of the dominant query; K = 10, N = 40, alpha = 0.5, eta = 2
    100: (1.036, -1.011, -0.003, 0.3933, 0.190, 2.378),
    200: (2.485, -1.514, -0.121, 0.1696, 0.502, 2.754),
    400: (3.738, -1.818, -0.240, 0.0777, 0.742, 3.111),
    600: (4.186, -1.923, -0.283, 0.0671, 0.795, 3.313),
}
LATE = 1e4  # t / K^2 at which prompts without the query are nearly all that is left
LARGE = 3000  # K at which limits of K -> infinity are read off
DIMS = {"second": ("entry",), "others": ("entry",)}
NAMES = ("$A_k$", "$B_{k,1}$", "$B_{k,n}$")
TIME = r"time $t$ = $\eta$ $\times$ steps"
QUERIES = {
    "dominant": ("C3", "dominant query"),
    "imbalanced": ("C0", "other query"),
    "balanced": ("C4", "balanced tokens"),
}
PASSED = {"switch": "leading influence switches", "crossing": "$x = z$", "half": "$x = 1/2$"}
ENTRIES = "entries of $Q$, median and 5%–95%"
SHOWN = 128  # seeds whose attention is drawn


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 1000
    """Seeds of every run."""
    K: int = 10
    """Tokens of the dictionary."""
    N: int = 40
    """Pairs of a prompt."""
    alpha: float = 0.5
    """Probability of the dominant token."""
    eta: float = 2.0
    """Learning rate."""
    batch: int = 256
    """Prompts a step; the notes' run had 4096."""
    small_batch: int = 64
    """Prompts a step of the run from which the limit of large batches is extrapolated."""
    steps: int = 600
    """Steps of SGD."""
    sizes: tuple[int, ...] = (10, 50, 200)
    """K of the balanced curves, each for N = 10 K and infinity."""
    wide: tuple[int, ...] = (30, 300, 3000)
    """K of the imbalanced curves, N = infinity."""


SCALES = {
    "smoke": Config(seeds=64, batch=128, small_batch=32, sizes=(10, 50), wide=(30, 300)),
    "laptop": Config(),
    "paper": Config(seeds=10_000, batch=4096, small_batch=256),
}
SIZES = {
    "seeds": (8, 10**8),
    "K": (3, 100),
    "N": (1, 200),
    "batch": (2, 2**20),
    "small_batch": (1, 2**20),
    "steps": (1, 10**6),
}
REALS: dict[str, dict[str, float]] = {"alpha": {"least": 0.05, "most": 0.95}, "eta": {"above": 0, "most": 1e6}}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def batches() -> None:
        if settings.size("small_batch") >= settings.size("batch"):
            raise checks.refuse("small_batch", "be below `batch`", config.small_batch)

    settings.gather(
        lambda: settings.each("sizes", checks.integer, 3, 1000, ascending=True),
        lambda: settings.each("wide", checks.integer, 3, 10**5, ascending=True),
        batches,
    )


def experiments(config: Config) -> dict[str, Any]:
    """SGD with a dominant token, at two batches, and with balanced tokens."""
    check(config)
    from icldyn.models.label_head import label_head, zeros
    from icldyn.tasks.dictionary import dictionary

    K, model = config.K, label_head(config.K)
    imbalanced, balanced = (dictionary(config.N, p) for p in (_p(K, config.alpha), np.full(K, 1 / K)))
    runs = {"imbalanced": (imbalanced, config.batch), "balanced": (balanced, config.batch)}
    runs["small"] = (imbalanced, config.small_batch)
    return {
        name: ic.Experiment(
            ic.statistics(task, model, batch),
            zeros(model),
            seeds=config.seeds,
            lr=config.eta,
            steps=config.steps,
            measures={"second": _second, "others": _others, "dominant": _dominant, "sum": _sum},
            dims=DIMS,
            records=61,
        )
        for name, (task, batch) in runs.items()
    }


def _p(K: int, alpha: float) -> np.ndarray:
    return np.append(alpha, np.full(K - 1, (1 - alpha) / (K - 1)))


def _entries(params):
    """A, B_1 and b, the mean of the other B, of every query but the first, (K-1, 3)."""
    import jax.numpy as jnp

    Q = params["Q"]
    A = Q.diagonal()[1:]
    return jnp.stack([A, Q[0, 1:], (Q[1:, 1:].sum(0) - A) / (len(A) - 1)], axis=1)


def _second(params):
    """Those of the second query, (3,)."""
    return _entries(params)[0]


def _others(params):
    """Their mean over these queries, (3,)."""
    return _entries(params).mean(0)


def _dominant(params):
    """A of the first query."""
    return params["Q"][0, 0]


def _sum(params):
    """The largest |A_k + sum_n B_{k,n}|, 0 throughout."""
    return abs(params["Q"].sum(0)).max()


def _laws(config: Config) -> dict[str, Any]:
    """The queries of the seeds, in the groups k, 1 and the others (of the dominant query: 1, another one and the others)."""
    theory, K, N = ic.dictionary_attention, config.K, config.N
    p, sizes = (1 - config.alpha) / (K - 1), [1, 1, K - 2]
    return {
        "imbalanced": theory.query([p, config.alpha, p], sizes, N),
        "dominant": theory.query([config.alpha, p, p], sizes, N),
        "balanced": theory.query([1 / K] * 3, sizes, N),
    }


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """`descent_QUERY` and `flow_QUERY` of the seeds, `sized_KxN` (balanced) with `closed_K`, `wide_K` (one token dominant)."""
    exact, run, laws = ic.dictionary_attention, seeds["imbalanced"], _laws(config)
    steps = run.coords["step"][1]
    out = {f"descent_{name}": _read(law, run.t, exact.descent(law, config.eta, steps)) for name, law in laws.items()}
    late = np.union1d(np.linspace(0, 6, 241), np.geomspace(1e-3, LATE, 129))  # in units of K^2, as `whole`
    whole = np.linspace(0, 2 / (1 - config.alpha), 321)
    whole = np.union1d(whole, late[late < whole[-1]])
    asked = {f"flow_{name}": (law, config.K, run.t / config.K**2) for name, law in laws.items()}
    for K in config.sizes:
        asked |= {f"sized_{K}x{N}": (exact.balanced(K, N), K, late) for N in (10 * K, None)}
        a = exact.attention_at(late * K**2, K)
        out[f"closed_{K}"] = _curves(late * K**2, Attn=a[:, None], L=exact.limit_loss(a, K))
    asked |= {f"wide_{K}": (exact.underrepresented(K, config.alpha), K, whole) for K in config.wide}
    return out | _flows(asked)


def _read(law, t: np.ndarray, b: np.ndarray):
    """b (T, G) with attention on each group and L_k."""
    theory = ic.dictionary_attention
    return _curves(t, b=b, Attn=theory.attention(b, law), L=theory.loss(b, law))


def _curves(t: np.ndarray, **values: np.ndarray):
    dims = {name: ("time", "group")[: value.ndim] for name, value in values.items()}
    return ic.Trajectory(values, dims, {"t": (("time",), np.asarray(t))})


def _flows(asked: dict[str, tuple]) -> dict[str, Any]:
    """Gradient flow of many queries, {name: (law, K, times in units of K^2)}, as one system."""
    from jax.tree_util import Partial

    laws, clocks = [law for law, _, _ in asked.values()], np.array([float(K**2) for _, K, _ in asked.values()])
    rows = max(len(law.weights) for law in laws)
    stacked = [np.stack(each) for each in zip(*(_padded(law, rows) for law in laws), strict=True)]
    s = np.unique(np.concatenate([times for _, _, times in asked.values()]))
    b = ic.flow(Partial(_field, clocks, stacked), {"b": np.zeros((len(laws), 3))}, s)["b"]
    places = [np.searchsorted(s, times) for _, _, times in asked.values()]
    return {
        name: _read(law, times * K**2, b[at, k, : len(law.sizes)])
        for k, ((name, (law, K, times)), at) in enumerate(zip(asked.items(), places, strict=True))
    }


def _padded(law, rows: int):
    """The law with a third group of no tokens, if it has two, and so many counts, the last of no weight."""
    more, groups = rows - len(law.weights), 3 - len(law.sizes)
    counts, squares = (
        np.pad(np.pad(a, ((0, more), (0, 0)), "edge"), ((0, 0), (0, groups))) for a in (law.counts, law.squares)
    )
    sizes = np.pad(np.asarray(law.sizes, float), (0, groups), constant_values=1)
    return law.q, sizes, counts, squares, np.pad(law.weights, (0, more))


def _field(clocks, laws, params):
    import jax

    exact = ic.dictionary_attention
    rates = jax.vmap(lambda b, *law: exact.rate(b, exact.Query(*law)))(params["b"], *laws)
    return {"b": clocks[:, None] * rates}


def _total(config: Config, theory: Trajectories, run: str) -> np.ndarray:
    """L = sum_k p_k L_k of the recursion, (T,)."""
    if run == "balanced":
        return theory["descent_balanced"]["L"]
    return config.alpha * theory["descent_dominant"]["L"] + (1 - config.alpha) * theory["descent_imbalanced"]["L"]


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says and what the exact dynamics add, each decided by a number."""
    out: list[Claim] = []

    def claim(sentence: str, measured: float, low: float = -np.inf, high: float = np.inf, gap: bool = False) -> None:
        out.append(Claim(sentence, float(measured), low, high, gap))

    _claims_seeds(claim, config, seeds, theory)
    _claims_balanced(claim, config, theory)
    _claims_imbalanced(claim, config, theory)
    total = sum(run.finite().size for run in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(run.diverged for run in seeds.values()), high=0)
    return out


def _claims_seeds(claim, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    wanted = {name: theory[f"descent_{name}"]["b"] for name in QUERIES}
    pairs = {
        "One dominant token, queries k >= 2: A, B_1 and b": (seeds["imbalanced"].mean("others"), wanted["imbalanced"]),
        "One dominant token, its own query: A": (seeds["imbalanced"].mean("dominant"), wanted["dominant"][:, 0]),
        "Balanced tokens: A, B_1 and b": (seeds["balanced"].mean("others"), wanted["balanced"]),
    }
    for name, (mean, exact) in pairs.items():
        apart = np.abs(mean - exact).max() / exact.max()
        claim(f"{name} of SGD against the exact recursion (gap over the largest A)", apart, high=0.01, gap=True)
    for name in ("imbalanced", "balanced"):
        apart = (seeds[name].mean("loss") - _total(config, theory, name)) / seeds[name].standard_error("loss")
        sentence = f"{name}: mean batch loss is the recursion's (largest of the standard errors)"
        claim(sentence.capitalize(), np.abs(apart).max(), high=4.5)

    large, small = seeds["imbalanced"], seeds["small"]
    r = config.batch / config.small_batch  # the means are off by a term in 1/batch
    limit = (r * large.mean("others") - small.mean("others")) / (r - 1)
    error = np.hypot(r * large.standard_error("others"), small.standard_error("others")) / (r - 1)
    apart = np.abs(limit - wanted["imbalanced"])[1:] / error[1:]
    claim("Extrapolated to large batches, SGD is the recursion (largest of the standard errors)", apart.max(), high=4.5)
    spread = [run.standard_deviation("second")[1:, 0] for run in (small, large)]
    ratio, wide = (spread[0] / spread[1]).mean() / r**0.5, round(4 * config.seeds**-0.5, 2)  # four standard errors
    sentence = "Spread of A over seeds falls as batch^-1/2 (ratio of two batches over that, mean over t)"
    claim(sentence, ratio, 1 - wide, 1 + wide)
    apart = np.abs(theory["flow_imbalanced"]["b"] - wanted["imbalanced"]).max()
    claim(f"Gradient flow against the recursion at eta = {config.eta:g} (largest difference of A, B_1 and b)", apart)
    kept = max(run.quantile("sum", (1.0,)).max() for run in seeds.values())
    claim("A_k + sum_n B_{k,n} of the seeds (largest; round-off of float32)", kept, high=1e-4)


def _claims_balanced(claim, config: Config, theory: Trajectories) -> None:
    exact = ic.dictionary_attention
    apart = [abs(exact.time_to(0.5, K) / K**2 - wanted) for K, wanted in HALF.items()]
    numbers = ", ".join(f"{wanted:g}" for wanted in HALF.values())
    claim(f"K = 10, 50, 200, 1000: t / K^2 at Attn = 1/2 is {numbers} (largest difference)", max(apart), high=5e-4)
    pairs = [(theory[f"sized_{K}xNone"]["Attn"][:, 0], theory[f"closed_{K}"]["Attn"][:, 0]) for K in config.sizes]
    apart = max(np.abs(flow - closed).max() for flow, closed in pairs)
    claim("Balanced tokens, N = infinity: the flow is the closed form (largest difference of Attn)", apart, high=1e-5)
    late = [exact.limit_loss(exact.attention_at(100 * K**2, K), K) * 4 * 99 * K**2 / K for K in (200, 1000)]
    claim("K = 200, 1000, t = 100 K^2: L_k over K / (4 (t - K^2)) (least)", min(late), 0.97, 1.03)
    K = config.sizes[-1]
    ratio = theory[f"sized_{K}x{10 * K}"]["L"][-1] / exact.floor(K, 10 * K)
    claim(f"K = {K}, N = {10 * K}, t = {LATE:g} K^2: L_k over what prompts without the query leave", ratio, 1, 1.1)


def _claims_imbalanced(claim, config: Config, theory: Trajectories) -> None:
    exact = ic.dictionary_attention
    apart = np.abs(_table() - np.array(list(TABLE.values()))).max()
    sentence = "K = 10, N = 40, eta = 2: the recursion's steps 100 to 600 are the table's (largest difference)"
    claim(sentence, apart, high=6e-4)
    for alpha, wanted in PHASES.items():
        passed = exact.phases(exact.underrepresented(LARGE, alpha))
        apart = [abs(passed[name][0] / LARGE**2 - number) for name, number in zip(PASSED, wanted, strict=True)]
        numbers, where = ", ".join(f"{number:g}" for number in wanted), f"K = {LARGE}, alpha = {alpha:g}"
        claim(f"{where}: t / K^2 at switch, x = z and x = 1/2 is {numbers} (largest difference)", max(apart), high=5e-3)
        limit = passed["crossing"][0] / LARGE**2 * (1 - alpha)
        claim(f"{where}: t / K^2 at x = z over its limit 1/(1 - alpha)", limit, 0.98, 1.02)
    B = exact.phases(exact.underrepresented(LARGE, 0.5))["switch"][1][1] / np.log(LARGE)
    claim(f"K = {LARGE}, alpha = 0.5: B_{{k,1}} at the switch, in units of ln K (the paper: -0.5)", B, -0.475, -0.465)

    K = config.wide[-1]
    run, p, s = theory[f"wide_{K}"], (1 - config.alpha) / (K - 1), theory[f"wide_{K}"].t / K**2
    claim(f"K = {K}: B_{{k,1}} never rises (largest step)", np.diff(run["b"][:, 1]).max(), high=0)
    early = (s > 0.05) & (s < 1 / (3 * (1 - config.alpha)))
    fall = run["Attn"][early, 1] * np.sqrt(2 * p * run.t[early])
    claim(f"K = {K}, phase I: attention on token 1 over (2 p t)^(-1/2) (largest)", fall.max(), 1, 1.35)
    apart = np.abs(run["L"][early] - 0.5).max()
    claim(f"K = {K}, phase I: L_k stays near 1/2 (largest distance)", apart, high=0.08)
    first, later = (_half_time(theory[f"descent_{name}"]) for name in ("dominant", "imbalanced"))
    sentence = f"K = {config.K}: the dominant query comes first (time to half its loss over that of others)"
    claim(sentence, first / later, high=0.5)


def _half_time(curve) -> float:
    """When L_k is first below half of its start; infinity if never."""
    below = curve["L"] < curve["L"][0] / 2
    return float(curve.t[np.argmax(below)]) if below.any() else np.inf


def _table() -> np.ndarray:
    """What `TABLE` holds, from the recursion, (4, 6)."""
    exact, steps = ic.dictionary_attention, list(TABLE)
    law, dominant = exact.underrepresented(10, 0.5, 40), exact.dominant(10, 0.5, 40)
    b = exact.descent(law, 2.0, steps)
    A = exact.descent(dominant, 2.0, steps)[:, 0]
    return np.column_stack([b, exact.loss(b, law), exact.attention(b, law)[:, 0], A])


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """Balanced tokens, one dominant token, and the seeds."""
    draws = (_figure_balanced, _figure_imbalanced, _figure_seeds)
    return {draw.__name__.removeprefix("_figure_"): draw(config, seeds, theory) for draw in draws}


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """A, B_1 and b of the seeds where one token is dominant, and A of its own query."""
    run, levels = seeds["imbalanced"], (0.05, 0.5, 0.95)
    bands = [(band, "imbalanced", g) for g, band in enumerate(np.moveaxis(run.quantile("second", levels), 2, 0))]
    bands.append((run.quantile("dominant", levels), "dominant", 0))
    for c, ((band, name, g), label) in enumerate(zip(bands, (*NAMES, "$A_1$, dominant query"), strict=True)):
        panels.band(ax, run.t, band, f"C{c}", label)
        for kind, dashes, exact in (("descent", "--", "exact recursion"), ("flow", ":", "gradient flow")):
            entry = theory[f"{kind}_{name}"]["b"][:, g]
            ax.plot(run.t, entry, f"k{dashes}", linewidth=1.1, label=exact if c == 3 else None)
    ax.set(xlabel=TIME, ylabel="entries of $Q$", xlim=(0, run.t[-1]))


def _figure_seeds(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, middle, right) = panels.row(3, 3.7, 3.2)
    run, dashed = seeds["imbalanced"], {"color": "k", "linestyle": "--", "linewidth": 1.1}
    panel(left, config, seeds, theory)
    left.set(title=rf"(a) {run.coverage}, queries $k$ = 2 and 1, $\alpha$ = {config.alpha:g}", ylabel=ENTRIES)
    left.legend(loc="upper left", bbox_to_anchor=(0.36, 0.71))
    for name, (color, label) in QUERIES.items():
        values = _attention(config, seeds["balanced" if name == "balanced" else "imbalanced"], name)
        panels.band(middle, run.t, np.quantile(values, (0.05, 0.5, 0.95), axis=0), color, label)
        exact = "exact recursion" if name == "balanced" else None
        middle.plot(run.t, theory[f"descent_{name}"]["Attn"][:, 0], label=exact, **dashed)
    middle.set(title="(b) attention on the query's own labels", ylabel=r"$\mathrm{Attn}_k$", ylim=(0, 1))
    for name, color, label in (("imbalanced", "C0", "one dominant token"), ("balanced", "C4", "balanced tokens")):
        low, high = seeds[name].quantile("loss", (0.05, 0.95))
        panels.band(right, run.t, (low, seeds[name].mean("loss"), high), color, label)
        exact = "exact recursion" if name == "balanced" else None
        right.plot(run.t, _total(config, theory, name), label=exact, **dashed)
    right.set(title=f"(c) loss of batches of {config.batch}", ylabel="$L$, mean and 5%–95%", yscale="log")
    for ax in (middle, right):
        ax.set(xlabel=TIME, xlim=(0, run.t[-1]))
        ax.legend(title=f"K = {config.K}, N = {config.N}", title_fontsize=7.5)
    return figure


def _attention(config: Config, run, name: str) -> np.ndarray:
    """Attention on its own labels by A, B_1 and b of one query of some seeds, k = 2, or 1 if dominant, (S, T)."""
    law, some = _laws(config)[name], run.isel(seed=slice(SHOWN))
    A = some["dominant"]
    b = np.stack([A, *2 * [-A / (config.K - 1)]], axis=-1) if name == "dominant" else some["second"]
    b = np.moveaxis(b[some.finite()].astype(float), 1, 0)
    return np.stack([ic.dictionary_attention.attention(now, law)[:, 0] for now in b], axis=1)  # (S, C, 3) at a time


def _figure_balanced(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, axes = panels.row(2, 4.2, 3.2)
    for ax, read in zip(axes, (lambda run: run["Attn"][:, 0], lambda run: run["L"]), strict=True):
        for c, K in enumerate(config.sizes):
            s, last = theory[f"closed_{K}"].t / K**2, K == config.sizes[-1]
            ax.plot(s, read(theory[f"sized_{K}xNone"]), color=f"C{c}", label=rf"K = {K}, $N = \infty$")
            ax.plot(s, read(theory[f"sized_{K}x{10 * K}"]), f"C{c}:", label=f"K = {K}, N = {10 * K}")
            ax.plot(s, read(theory[f"closed_{K}"]), "k--", linewidth=0.9, label="closed form" if last else None)
        ax.set_xlabel("$t / K^2$")
    for K in config.sizes:
        late, last = np.array([4, LATE]), K == config.sizes[-1]
        axes[1].plot(late, 1 / (4 * K * late), label="$K / 4t$" if last else None, color="0.8", linewidth=3, zorder=0)
        floor = 2 * [ic.dictionary_attention.floor(K, 10 * K)]
        axes[1].plot([300, LATE], floor, label="floors" if last else None, color="0.5", linewidth=0.9, zorder=0)
    axes[0].set(title="(a) attention on the query's own labels", ylabel=r"$\mathrm{Attn}_k$", xlim=(0, 6), ylim=(0, 1))
    axes[1].set(title="(b) loss, down to prompts without the query", ylabel="$L_k$", xlim=(0.05, LATE))
    axes[1].set(xscale="log", yscale="log")
    axes[0].legend(loc="lower right")
    axes[1].legend(loc="lower left")
    return figure


def _figure_imbalanced(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(8.4, 6.2))
    _draw_phases(axes[0], config, theory)
    _draw_stages(axes[1, 0], config, theory)
    _draw_times(axes[1, 1], config)
    return figure


def _draw_phases(axes, config: Config, theory: Trajectories) -> None:
    """Q and attention of a query k >= 2 at the largest K, with its phases; thin at the other K."""
    for K in config.wide:
        run, s, thick = theory[f"wide_{K}"], theory[f"wide_{K}"].t / K**2, K == config.wide[-1]
        how = {"linewidth": 1.6} if thick else {"linewidth": 0.8, "alpha": 0.55}
        for g, label in enumerate(("on token $k$: $x$", "on token 1: $z$", "on all others")):
            axes[0].plot(s, run["b"][:, g] / np.log(K), color=f"C{g}", label=NAMES[g] if thick else None, **how)
            axes[1].plot(s, run["Attn"][:, g], color=f"C{g}", label=label if thick else None, **how)
    exact = ic.dictionary_attention
    passed = exact.phases(exact.underrepresented(K, config.alpha))
    for ax in axes:
        for dashes, (name, label) in zip(("-", "--", ":"), PASSED.items(), strict=True):
            if name in passed:
                at = passed[name][0] / K**2
                ax.axvline(at, 0, 0.76, color="0.5", linewidth=0.9, linestyle=dashes, label=label)
        ax.set(xlabel="$t / K^2$", xlim=(0, s[-1]))
        ax.legend(ncols=2, loc="upper left")
    many = ", ".join(str(K) for K in config.wide)
    axes[0].set(title=rf"(a) $\alpha$ = {config.alpha:g}, $N = \infty$, K = {many} (thick)", ylim=(-0.8, 2.4))
    axes[0].set_ylabel(r"entries of $Q$ over $\ln K$")
    axes[1].set(title="(b) attention of a query $k \\geq 2$", ylabel="attention", ylim=(0, 1.32))
    axes[1].set_yticks(np.linspace(0, 1, 6))


def _draw_stages(ax, config: Config, theory: Trajectories) -> None:
    """L_k of the dominant query, in closed form, and of the others."""
    exact, K = ic.dictionary_attention, config.wide[-1]
    t = np.geomspace(0.1, theory[f"wide_{K}"].t[-1], 200)
    label = f"dominant query, K = {K}, closed form"
    ax.plot(t, exact.limit_loss(exact.attention_at(t, K, config.alpha), K), "C3", label=label)
    for c, K in enumerate(config.wide):
        run = theory[f"wide_{K}"]
        ax.plot(run.t[1:], run["L"][1:], color=f"C{(0, 4, 5)[c % 3]}", label=f"other query, K = {K}")
    ax.set(title="(c) one query after the other", xlabel="time $t$", ylabel="$L_k$", xscale="log", yscale="log")
    ax.legend(loc="lower left")


def _draw_times(ax, config: Config) -> None:
    """The phases' times against K, and their limits."""
    exact, sizes = ic.dictionary_attention, np.geomspace(10, 10**5, 13).round().astype(int)
    passed = [exact.phases(exact.underrepresented(int(K), config.alpha)) for K in sizes]
    for (name, label), color in zip(PASSED.items(), ("C1", "C5", "C0"), strict=True):
        times = [each[name][0] if name in each else np.nan for each in passed] / sizes**2.0
        ax.plot(sizes, times, "o-", markersize=3, color=color, label=label)
    for limit, label in zip((1 / 3, 1), (r"$1/(3(1-\alpha))$", r"$1/(1-\alpha)$"), strict=True):
        limit /= 1 - config.alpha
        ax.axhline(limit, color="0.6", linewidth=1, linestyle="--", zorder=0)
        ax.annotate(label, (sizes[0], 0.97 * limit), va="top", fontsize=7.5, color="0.4")
    ax.set(title="(d) times of the phases", xlabel="$K$", ylabel="$t / K^2$", xscale="log", ylim=(0, None))
    ax.legend()


STUDY = Study(
    title="Softmax attention on a dictionary of tokens: exact phases of balanced and imbalanced features",
    paper="Huang, Cheng and Liang 2023, arXiv 2310.05249",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
