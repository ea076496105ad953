"""Yang, Huang, Liang and Chi 2024 (arXiv 2408.10147): contextual generalisation of multi-head softmax attention.

A dictionary of K tokens has representations z_k = f(v_k) in R^m; labels are linear in them, y_k = lambda^T (z_k + eps_k). From
the labels of the first N tokens the attention of H heads, with value weights of its own for every token, answers all K. Training
converges to copying these labels and to ridge regression over f with penalty m tau elsewhere; the best predictor has N tau. So
the gap to the best is 0 at N = m, and the answer is regularised too much below and too little above (`icldyn.ridge_inference`).

Here every seed has a dictionary, a representation and initial key-query matrices of its own: bands, where the paper has one run.
- Training (figure 2a): loss, and error to ridge regression for tasks of the training law and of lambda ~ N(1, 4 I), exactly.
- Heads (figure 4): Adam from H < N to H > N, with Gaussian tokens, as in the paper, and with tokens of length 1, as in its
  theory. Dashed: the floors of the initial attention, which training leaves with unit tokens. (With Gaussian ones attention is
  nearly one-hot and the floors depend on where singular values are cut, here at 1e-10 of the largest.)
- Prompt length (figure 3): the gap in closed form and from trained seeds; over N/m and tau as a phase diagram.
- Rate (theorem 1): descent with two rates, keys gamma^2 slower than values, against the closed form of frozen attention, whose
  slowest mode has rate 2 zeta_0^2/K per unit t; the same by SGD on sampled tasks.
- Representations: a lookup table, random features, a polynomial, a network.
- Four layers (figures 2b and 5): a transformer (`icldyn.models.encoder`) on fresh tasks. The paper leaves its input and read-out
  open; here token k is (v_k, y_k, 1), or (v_k, 0, 0) without its label, embedded and read linearly, and all attend to the
  labelled tokens. Heads split a given width, so that equal steps are equal operations: more heads take longer only where an
  implementation makes them.

Conventions: loss (1/2K) E sum_k (yhat_k - y_k)^2 over all K tokens, exact unless said; errors are (1/K) E |yhat - yhat*|^2, so
2 (L - L*) in domain. t = lr x steps of the value weights. Keys and values are the N labelled tokens: a labelled token attends to
itself too. w = 0 and Q ~ N(0, 1) at the start.
Reduced: sizes a quarter of the paper's at the same ratios, and ten times its rate of Adam; four layers smaller still, 32 seeds.
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

TOKENS = {"gauss": "Gaussian tokens", "unit": "tokens of length 1"}
KINDS = {"lookup": "lookup table", "random_features": "random features", "polynomial": "polynomial", "mlp": "network"}
OUT = (1.0, 2.0)  # mean and deviation of the tasks out of domain
HELD_OUT = 200  # tasks that four layers are measured on, as in the paper
DRAWS = 256  # dictionaries of the closed forms


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 256
    """Seeds of every run, each with its own dictionary."""
    N: int = 8
    """Labelled tokens."""
    K: int = 48
    """Tokens."""
    d: int = 24
    """Dimension of tokens."""
    m: int = 5
    """Dimension of representations."""
    tau: float = 0.01
    """Label noise."""
    heads: tuple[int, ...] = (3, 5, 8, 16, 32)
    """Numbers of heads, ascending; the last but one is that of figure 2."""
    lr: float = 1e-3
    """Rate of Adam with different numbers of heads."""
    steps: int = 1500
    """Its steps."""
    lengths: tuple[int, ...] = (2, 3, 4, 5, 6, 8, 12)
    """Prompt lengths of trained seeds, ascending."""
    tau_length: float = 0.1
    """Label noise there, and of the representations."""
    H_length: int = 24
    """Heads there."""
    lr_length: float = 0.03
    """Rate of Adam there, at the start of a cosine decay to 0."""
    steps_length: int = 500
    """Steps there."""
    kinds: tuple[str, ...] = ("lookup", "random_features", "polynomial", "mlp")
    """Representations f that are trained so."""
    N_rate: int = 4
    """Labelled tokens of the descent with two rates."""
    H_rate: int = 32
    """Heads there."""
    lr_rate: float = 0.3
    """Rate of the value weights there."""
    gamma: float = 30.0
    """Root of the ratio of rates, values over key-query matrices."""
    steps_rate: int = 2000
    """Steps there."""
    batch: int = 64
    """Sampled tasks a step there."""
    deep_seeds: int = 32
    """Seeds of the four-layer transformers."""
    deep_sizes: tuple[int, ...] = (4, 24, 12, 3)
    """N, K, d and m there."""
    deep_heads: tuple[int, ...] = (1, 2, 4, 8)
    """Their numbers of heads, ascending divisors of `width`."""
    width: int = 16
    """Their width; the hidden layers have twice as many units."""
    deep_lr: float = 3e-3
    """Rate of Adam there, at the start of a cosine decay to 0."""
    deep_steps: int = 800
    """Steps there."""
    deep_batch: int = 8
    """Tasks a step there."""


SCALES = {
    "smoke": Config(
        seeds=16, heads=(3, 16), lr=3e-3, steps=500, lengths=(5, 8), H_length=16, steps_length=500,
        kinds=("mlp",), steps_rate=500, deep_seeds=8, deep_heads=(4,), deep_steps=300,
    ),
    "laptop": Config(),
    "paper": Config(
        seeds=256, N=30, K=200, d=100, m=20, heads=(10, 20, 30, 64, 400), lr=1e-4, steps=8000,
        lengths=(10, 15, 18, 20, 22, 25, 30), H_length=64, N_rate=10, H_rate=64, steps_rate=20_000, batch=256,
        deep_sizes=(30, 200, 100, 20), deep_heads=(1, 2, 4, 8, 16, 32, 64), width=256, deep_lr=1e-4, deep_steps=20_000,
        deep_batch=256,
    ),
}  # fmt: skip

SIZES = {
    "seeds": (2, 10**6),
    "N": (1, 10**3),
    "K": (2, 10**4),
    "d": (1, 10**4),
    "m": (1, 10**4),
    "steps": (2, 2**31 - 2),
    "H_length": (1, 10**4),
    "steps_length": (2, 2**31 - 2),
    "N_rate": (1, 10**3),
    "H_rate": (1, 10**4),
    "steps_rate": (2, 2**31 - 2),
    "batch": (1, 2**20),
    "deep_seeds": (2, 10**6),
    "width": (1, 10**4),
    "deep_steps": (2, 2**31 - 2),
    "deep_batch": (1, 2**20),
}
REALS = {
    "tau": {"above": 1e-12, "most": 1e6},
    "tau_length": {"above": 1e-12, "most": 1e6},
    "lr": {"above": 1e-12, "most": 1e3},
    "lr_length": {"above": 1e-12, "most": 1e3},
    "lr_rate": {"above": 1e-12, "most": 1e6},
    "gamma": {"least": 1, "most": 1e6},
    "deep_lr": {"above": 1e-12, "most": 1e3},
}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def fewer(name: str, value: Any) -> None:
        if checks.integer(name, value, 1) >= checks.integer("K", config.K, 2):
            raise checks.refuse(name, "be below `K`, so that there is something to answer", value)

    def heads() -> None:
        if len(settings.each("heads", checks.integer, 1, 10**4, ascending=True)) < 2:
            raise checks.refuse("heads", "hold at least two ascending numbers", config.heads)

    def lengths() -> None:
        for k, N in enumerate(settings.each("lengths", checks.integer, 1, 10**3, ascending=True)):
            fewer(f"lengths[{k}]", N)

    def enough() -> None:
        if checks.integer("H_rate", config.H_rate, 1) < checks.integer("N_rate", config.N_rate, 1):
            raise checks.refuse("H_rate", "be at least `N_rate`, for the loss to reach its least value", config.H_rate)

    def kinds() -> None:
        for k, name in enumerate(checks.entries("kinds", config.kinds)):
            checks.one_of(f"kinds[{k}]", name, KINDS)

    def deep() -> None:
        sizes = settings.each("deep_sizes", checks.integer, 1, 10**4)
        if len(sizes) != 4 or sizes[0] >= sizes[1]:
            raise checks.refuse("deep_sizes", "be N, K, d and m, with N below K", config.deep_sizes)
        for k, H in enumerate(settings.each("deep_heads", checks.integer, 1, 10**4, ascending=True)):
            if checks.integer("width", config.width, 1) % H:
                raise checks.refuse(f"deep_heads[{k}]", f"divide `width`, {config.width}", H)

    settings.gather(
        *(heads, lengths, kinds, enough, deep), lambda: fewer("N", config.N), lambda: fewer("N_rate", config.N_rate)
    )


def _objective(config: Config, N: int, H: int, tau: float, tokens: str = "unit", f: str = "lookup"):
    task = ic.representations(N, K=config.K, d=config.d, m=config.m, tau=tau, f=f, unit=tokens == "unit")
    return ic.token_population(task, H)


def _laws(config: Config) -> dict[str, dict[str, Any]]:
    """What `_objective` takes, for every run."""
    out: dict[str, dict[str, Any]] = {}
    for tokens in TOKENS:
        out |= {f"{tokens}_H{H}": {"N": config.N, "H": H, "tau": config.tau, "tokens": tokens} for H in config.heads}
    long = {"H": config.H_length, "tau": config.tau_length}
    out |= {f"N{N}": {"N": N} | long for N in config.lengths}
    out |= {f: {"N": config.N, "f": f} | long for f in config.kinds}
    return out | dict.fromkeys(("rate", "rate_sampled"), {"N": config.N_rate, "H": config.H_rate, "tau": config.tau})


def experiments(config: Config) -> dict[str, Any]:
    """Runs by number of heads, prompt length and representation, and the descent with two rates."""
    import optax

    check(config)
    two = functools.partial(_two_rates, gamma=config.gamma)
    decayed = functools.partial(_decayed_adam, steps=config.steps_length)
    rules = {
        "heads": {"lr": config.lr, "steps": config.steps, "optimiser": optax.adam, "records": 65},
        "rate": {"lr": config.lr_rate, "steps": config.steps_rate, "optimiser": two, "records": 65},
        "length": {"lr": config.lr_length, "steps": config.steps_length, "optimiser": decayed, "records": 33},
    }
    out = {}
    for name, law in _laws(config).items():
        kind = "heads" if "tokens" in law else "rate" if "rate" in name else "length"
        # tokens and f only matter for the start: the objective of the others is the same, and so is its program
        objective = _objective(config, law["N"], law["H"], law["tau"])
        descended = ic.token_sampled(objective.task, law["H"], config.batch) if name == "rate_sampled" else objective
        init = _objective(config, **law).start
        out[name] = ic.Experiment(
            descended, init, seeds=config.seeds, measures=_measures(objective), block=16, **rules[kind]
        )
    return out | {f"layers_H{H}": _deep(config, H) for H in config.deep_heads}


def _deep(config: Config, H: int):
    """A transformer of four layers on fresh tasks."""
    objective = _encoder(config, H)
    return ic.Experiment(
        objective,
        objective.start,
        seeds=config.deep_seeds,
        lr=config.deep_lr,
        steps=config.deep_steps,
        optimiser=functools.partial(_decayed_adam, steps=config.deep_steps),
        measures=_deep_measures(config, objective),
        records=33,
        block=8,
    )


def _encoder(config: Config, H: int):
    N, K, d, m = config.deep_sizes
    net = ic.encoder(N, H=H, width=config.width, hidden=2 * config.width)
    return ic.token_encoder(ic.representations(N, K=K, d=d, m=m, tau=config.tau), net, config.deep_batch)


def _deep_measures(config: Config, objective) -> dict[str, Any]:
    """Errors to ridge regression on held-out tasks, in and out of domain: (1/K) mean |yhat - yhat*|^2."""
    from jax.tree_util import Partial

    rng, (_, K, _, m) = np.random.default_rng(2024), config.deep_sizes
    lam, noise = rng.normal(size=(HELD_OUT, m)), rng.normal(size=(HELD_OUT, K))
    error = type(objective).inference_error
    return {
        "in_domain": Partial(error, objective, lam=lam, noise=noise),
        "out": Partial(error, objective, lam=OUT[0] + OUT[1] * lam, noise=noise),
    }


def _decayed_adam(lr, steps: int):
    import optax

    return optax.adam(optax.cosine_decay_schedule(lr, steps))


def _two_rates(lr, gamma: float):
    """Gradient descent at lr for the value weights and lr / gamma^2 for the key-query matrices; dictionaries stay."""
    import optax

    rules = {"w": optax.sgd(lr), "Q": optax.sgd(lr / gamma**2), "held": optax.set_to_zero()}
    return optax.partition(rules, {"w": "w", "Q": "Q"} | dict.fromkeys(("V", "z", "A"), "held"))


def _measures(objective) -> dict[str, Any]:
    from jax.tree_util import Partial

    return {
        "loss": objective.loss,
        "excess": objective.excess,
        "out": Partial(_out_of_domain, objective),
        "best": objective.best_error,
    }


def _out_of_domain(objective, params):
    return objective.inference_error(params, *OUT)


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """The closed form of frozen attention from the seeds' own starts, its floors, and the gap of their dictionaries."""
    ri, out = ic.ridge_inference, {}
    for name, law in _laws(config).items():
        t, objective = seeds[name].t, _objective(config, **law)
        start = ic.initial_params(objective.start, seeds=config.seeds)
        if name.startswith("N"):
            out[name] = _constant(t, {"best": ri.gap(start["z"], law["N"], law["tau"])})
        elif "tokens" in law:
            s = _attention(law["N"], start)
            out[name] = _constant(t, {"excess": ri.frozen_floor(s, start["z"], law["tau"])})
        elif name == "rate":
            s, lr = _attention(law["N"], start), config.lr_rate
            zeta2 = ri.zeta_square(s, start["z"], law["tau"])
            excess = ri.frozen_excess(t, s, start["z"], law["tau"], lr)
            bound = excess[:, :1] * ri.rate_bound(seeds[name].coords["step"][1], lr, zeta2, config.K)
            slowest = np.repeat(2 * zeta2[:, None] / config.K, t.size, 1)
            out[name] = _over_seeds(t, {"excess": excess, "bound": bound, "slowest": slowest})
    return out


def _attention(N: int, start: dict[str, np.ndarray]) -> np.ndarray:
    """Attention s (S, N, H, K) of initial weights, in float64."""
    out = []
    for V, Q in zip(*(start[name].astype(np.float64) for name in ("V", "Q")), strict=True):
        scores = np.einsum("di,hde->ihe", V[:, :N], Q) @ V
        weights = np.exp(scores - scores.max(0))
        out.append(weights / weights.sum(0))
    return np.stack(out)


def _over_seeds(t: np.ndarray, values: dict[str, np.ndarray]):
    """Values (S, T) as a trajectory."""
    S = len(next(iter(values.values())))
    coords = {"t": (("time",), t), "seed": (("seed",), np.arange(S))}
    return ic.Trajectory(values, dict.fromkeys(values, ("seed", "time")), coords)


def _constant(t: np.ndarray, values: dict[str, np.ndarray]):
    return _over_seeds(t, {name: np.repeat(value[:, None], t.size, 1) for name, value in values.items()})


@functools.cache
def _gaps(N: int, K: int, m: int, tau: float, draws: int = DRAWS) -> np.ndarray:
    """The gap to the best predictor of lookup tables, in closed form, (draws,)."""
    z = np.random.default_rng(N).normal(size=(draws, m, K))
    return ic.ridge_inference.gap(z, N, tau)


def _slope(t: np.ndarray, excess: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """-d log(excess) / dt of every seed, by least squares over the last third of the times that are kept, (S,)."""
    out = []
    for curve, count in zip(excess, kept.sum(1), strict=True):
        late = slice(2 * count // 3, count)
        out.append(-np.polyfit(t[late], np.log(curve[late]), 1)[0])
    return np.array(out)


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says and what follows from it, each decided by a number."""
    out: list[Claim] = []

    def claim(sentence: str, measured: Any, **limits) -> None:
        out.append(Claim(sentence, float(measured), **limits))

    _claims_of_training(config, seeds, theory, claim)
    _claims_of_rate(config, seeds, theory, claim)
    for N in config.lengths:
        trained, wanted = seeds[f"N{N}"].mean("best")[-1], theory[f"N{N}"].mean("best")[-1]
        typical = max(theory[f"N{n}"].mean("best")[-1] for n in config.lengths)
        claim(
            f"N = {N}: gap of trained seeds to the best predictor, less that of ridge regression with m tau, "
            "over the largest gap",
            abs(trained - wanted) / typical,
            high=0.01,
            gap=True,
        )
    if config.m in config.lengths:
        claim("N = m: the gap of ridge regression is zero", _gaps(config.m, config.K, config.m, 0.1).max(), high=1e-20)
    for f in config.kinds:
        run = seeds[f].mean("excess")
        claim(f"f a {KINDS[f]}: L - L*, end over start", run[-1] / run[0], high=1e-3)
    _claims_of_layers(config, seeds, claim)
    total = sum(run.finite().size for run in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(run.diverged for run in seeds.values()), high=0)
    return out


def _claims_of_training(config: Config, seeds: Trajectories, theory: Trajectories, claim) -> None:
    H = config.heads[-2]
    for tokens, name in TOKENS.items():
        run = seeds[f"{tokens}_H{H}"]
        ratio = run.mean("out") / (2 * run.mean("excess"))
        claim(f"{name}, H = {H}: error out of domain over in domain, start", ratio[0], low=4.75, high=5.25)
        claim(f"{name}, H = {H}: the same, largest over training", ratio.max(), high=7)
        ends = [seeds[f"{tokens}_H{h}"].mean("excess")[-1] for h in config.heads]
        claim(
            f"{name}: more heads, lower loss: largest ratio of final L - L*",
            np.divide(ends[1:], ends[:-1]).max(),
            high=1,
        )
    few = [h for h in config.heads if h < config.N]
    for h in few:
        for tokens, limits in (("unit", {"high": 1}), ("gauss", {})):
            floor = theory[f"{tokens}_H{h}"].mean("excess")[-1]
            claim(
                f"{TOKENS[tokens]}, H = {h} < N: final L - L* over the floor of the initial attention",
                seeds[f"{tokens}_H{h}"].mean("excess")[-1] / floor,
                **limits,
            )


def _claims_of_rate(config: Config, seeds: Trajectories, theory: Trajectories, claim) -> None:
    flow, run = theory["rate"], seeds["rate"]["excess"]
    kept = flow["excess"] > 1e-9 * flow["excess"][:, :1]  # a descending curve; what follows is single precision
    gap = np.where(kept, np.abs(np.log(np.where(kept, run / flow["excess"], 1))), 0).max(1)
    sentence = "Two rates: largest gap of log(L - L*) to frozen attention, median over seeds"
    claim(sentence, np.median(gap), high=0.05, gap=True)
    claim("Two rates: L - L* over the bound of theorem 1, worst seed", (run / flow["bound"])[:, 1:].max(), high=1)
    ratio = _slope(flow.t, run, kept) / flow["slowest"][:, 0]
    claim("Two rates: late slope of log(L - L*) over 2 zeta_0^2 / K, slowest seed", ratio.min(), low=0.98)
    claim("Two rates: the same, median over seeds", np.median(ratio), low=0.98, high=2)
    exact, sampled = (seeds[name].mean("excess") for name in ("rate", "rate_sampled"))
    early = exact > exact[0] / 10
    sentence = (
        f"Sampled tasks, {config.batch} a step: mean L - L* over that of the exact loss, down to a tenth (furthest)"
    )
    ratio = sampled[early] / exact[early]
    claim(sentence, ratio[np.abs(np.log(ratio)).argmax()], low=0.95, high=1.1)


def _claims_of_layers(config: Config, seeds: Trajectories, claim) -> None:
    ends = {}
    for H in config.deep_heads:
        run = seeds[f"layers_H{H}"]
        within, out = (run.mean(name) for name in ("in_domain", "out"))
        ends[H] = within[-1]
        claim(f"Four layers, H = {H}: error to ridge regression, end over start", within[-1] / within[0], high=0.2)
        claim(f"Four layers, H = {H}: the same out of domain", out[-1] / out[0], high=0.5)
    if len(ends) > 1:
        claim("Four layers: number of heads of least error at equal operations", min(ends, key=ends.__getitem__))


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """Training, heads, prompt length, and rate."""
    draws = {
        "training": (_draw_training, 2),
        "heads": (_draw_heads, 2),
        "prompt_length": (_draw_lengths, 3),
        "rate": (_draw_rate, 2),
        "four_layers": (_draw_layers, 2),
    }
    return panels.rows(draws, config, seeds, theory, width=3.9, height=3.1)


def _draw_training(axes, config, seeds, theory) -> None:
    H = config.heads[-2]
    for ax, letter, (tokens, title) in zip(axes, "ab", TOKENS.items(), strict=True):
        run = seeds[f"{tokens}_H{H}"]
        step = run.coords["step"][1]
        curves = {
            "loss $L$": run.quantile("loss", (0.05, 0.5, 0.95)),
            "error in domain": 2 * run.quantile("excess", (0.05, 0.5, 0.95)),
            r"error for $\lambda\sim N(1, 4I)$": run.quantile("out", (0.05, 0.5, 0.95)),
        }
        for k, (label, curve) in enumerate(curves.items()):
            panels.band(ax, step, curve, f"C{k}", label)
        ax.set(title=f"({letter}) {title}, H = {H}", xlabel="step of Adam", yscale="log", xlim=(0, config.steps))
    axes[0].set_ylabel("median and 5%–95% of the seeds")
    axes[1].legend(loc="upper right")


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """L - L* for every number of heads, Gaussian tokens."""
    _heads(ax, config, seeds, theory, "gauss")
    ax.legend()


def _heads(ax, config: Config, seeds: Trajectories, theory: Trajectories, tokens: str) -> None:
    import matplotlib.pyplot as plt

    colors = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, len(config.heads)))
    for color, H in zip(colors, config.heads, strict=True):
        run = seeds[f"{tokens}_H{H}"]
        panels.band(ax, run.coords["step"][1], run.quantile("excess", (0.05, 0.5, 0.95)), color, f"H = {H}")
        floor = theory[f"{tokens}_H{H}"].mean("excess")[-1]
        if floor > 0:
            ax.axhline(floor, color=color, linestyle="--", linewidth=0.9)
    ax.set(title=TOKENS[tokens], xlabel="step of Adam", yscale="log", xlim=(0, config.steps))
    ax.set_ylabel("$L - L^*$")


def _draw_heads(axes, config, seeds, theory) -> None:
    for ax, letter, tokens in zip(axes, "ab", TOKENS, strict=True):
        _heads(ax, config, seeds, theory, tokens)
        ax.set_title(f"({letter}) {TOKENS[tokens]}, N = {config.N}")
    low = min(ax.get_ylim()[0] for ax in axes)
    for ax in axes:
        ax.set_ylim(max(low, 1e-4), None)
    axes[1].plot([], [], "k--", linewidth=0.9, label="floor at the start")
    axes[1].legend(ncol=2, loc="lower left")


def _draw_lengths(axes, config, seeds, theory) -> None:
    left, middle, right = axes
    N = np.arange(1, min(3 * config.m, config.K - 1) + 1)
    gaps = np.stack([_gaps(int(n), config.K, config.m, config.tau_length) for n in N])
    left.fill_between(N, *np.quantile(gaps, (0.05, 0.95), axis=1), color="C0", alpha=0.25, linewidth=0)
    left.plot(N, gaps.mean(1), "k--", label=f"closed form, mean of {DRAWS} dictionaries, 5%–95%")
    ends = [seeds[f"N{n}"].mean("best")[-1] for n in config.lengths]
    left.plot(config.lengths, ends, "o", color="C1", label=f"trained, mean of {config.seeds} seeds")
    left.set_xticks(np.arange(0, N[-1] + 1, config.m))
    left.set(title=f"(a) m = {config.m}, K = {config.K}, $\\tau$ = {config.tau_length:g}")
    N = np.unique(np.concatenate([np.arange(50, 151, 5), [99, 100, 101]]))
    large = np.stack([_gaps(int(n), 200, 100, 0.01, 20) for n in N])
    middle.fill_between(N, *np.quantile(large, (0.05, 0.95), axis=1), color="C0", alpha=0.25, linewidth=0)
    middle.plot(N, large.mean(1), "k--")
    middle.set(title=r"(b) the paper's m = 100, K = 200, $\tau$ = 0.01", ylim=(0, None))
    for ax in (left, middle):
        ax.set(xlabel="labelled tokens N", ylabel=r"$(1/K)\,\mathrm{E}\,|\hat y^* - y_{best}|^2$")
    left.set_ylim(0, 1.3 * left.get_ylim()[1])
    left.legend(loc="upper left", fontsize=7)
    _draw_phases(right, config)


def _draw_phases(ax, config: Config) -> None:
    """log10 of the mean gap over N/m and tau, over the mean square of a noiseless label, m."""
    N, tau = np.arange(1, min(4 * config.m, config.K - 1) + 1), np.logspace(-3, 1, 33)
    gap = np.array([[_gaps(int(n), config.K, config.m, float(u), 32).mean() / config.m for n in N] for u in tau])
    mesh = ax.pcolormesh(N / config.m, tau, np.log10(np.maximum(gap, 1e-6)), cmap="viridis", vmin=-6, rasterized=True)
    ax.figure.colorbar(mesh, ax=ax, label=r"$\log_{10}$ gap / m")
    ax.set(title="(c) gap to the best predictor", xlabel="N / m", ylabel=r"label noise $\tau$", yscale="log")


def _draw_rate(axes, config, seeds, theory) -> None:
    left, right = axes
    run, flow = seeds["rate"], theory["rate"]
    for k, (name, label) in enumerate({"rate": "exact loss", "rate_sampled": f"{config.batch} tasks a step"}.items()):
        panels.band(left, run.t, seeds[name].quantile("excess", (0.05, 0.5, 0.95)), f"C{k}", label)
    left.plot(flow.t, np.median(flow["excess"], 0), "k--", label="frozen attention, closed form")
    left.plot(flow.t, np.median(flow["bound"], 0), "k:", label="bound of theorem 1")
    low = 0.3 * seeds["rate"].quantile("excess", (0.05,))[0, -1]
    left.set(
        title=f"(a) two rates, N = {config.N_rate}, H = {config.H_rate}", yscale="log", xlabel="time $t$ of the values"
    )
    left.set(ylabel="$L - L^*$, median and 5%–95%", ylim=(max(low, 1e-12), 3 * run.mean("excess")[0]))
    left.legend(loc="lower left", fontsize=7)
    for k, f in enumerate(config.kinds):
        curves = seeds[f].quantile("excess", (0.05, 0.5, 0.95))
        panels.band(right, seeds[f].coords["step"][1], curves, f"C{k}", KINDS[f])
    right.set(title=f"(b) representations, N = {config.N}, H = {config.H_length}", yscale="log", xlabel="step of Adam")
    right.set(ylabel="$L - L^*$, median and 5%–95%")
    right.legend()


def _draw_layers(axes, config, seeds, theory) -> None:
    left, right = axes
    H = config.deep_heads[len(config.deep_heads) // 2]
    run = seeds[f"layers_H{H}"]
    for k, (name, label) in enumerate({"in_domain": "in domain", "out": r"$\lambda\sim N(1, 4I)$"}.items(), 1):
        panels.band(left, run.coords["step"][1], run.quantile(name, (0.05, 0.5, 0.95)), f"C{k}", label)
        ends = [seeds[f"layers_H{h}"].quantile(name, (0.05, 0.5, 0.95))[:, -1] for h in config.deep_heads]
        panels.band(right, config.deep_heads, np.transpose(ends), f"C{k}")
        right.plot(config.deep_heads, np.transpose(ends)[1], "o", color=f"C{k}")
    left.set(title=f"(a) four layers, H = {H}", xlabel="step of Adam", yscale="log")
    left.set_ylabel(r"$(1/K)\,|\hat y - \hat y^*|^2$, median and 5%–95%")
    left.legend(title="error to ridge regression", title_fontsize=8)
    N, K, d, _ = config.deep_sizes
    flop = config.deep_steps * ic.encoder_flops(_encoder(config, H).net, config.deep_batch, K, d + 2)
    right.set(title=f"(b) after {flop:.1e} operations", xlabel="heads H, of width W / H", yscale="log", xscale="log")
    panels.plain_ticks(right.xaxis, config.deep_heads)


STUDY = Study(
    title="Contextual generalisation of multi-head softmax attention: ridge regression over representations",
    paper="Yang, Huang, Liang and Chi 2024, arXiv 2408.10147",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
