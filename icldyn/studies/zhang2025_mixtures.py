"""Zhang, Singh, Latham and Saxe 2025 (arXiv 2501.16265): in-context against in-weight learning, in merged linear attention.

Where a portion of the prompts has one fixed task w_0 and the others random ones, a linear-attention model with all blocks can
answer from its weights, through <F, C + x_q x_q^T / N> x_q and c m.x_q, as well as from the context, through h^T A x_q.

As in the paper, H merged heads are trained by full-batch gradient descent on fixed prompts with white inputs, here from as many
initial weights as there are seeds (`dataset`: the cost of a step depends on neither the number of prompts nor N). The theory is
the gradient flow of the exact expected loss of the mixture, from the same weights: the answer is linear in the features
x_q (x) G, whose moments average over the kinds of prompts (`theory.mixtures`). The time of the first drop follows from
r = the largest singular value of E[y phi] as a matrix, its rows the entries of p_h: small weights grow as exp(r t).

Conventions: loss 1/2 (y_q - yhat_q)^2, t = lr x steps, context sums divided by N, the query attends to itself. w_0 = (1, ..., 1),
as long as a random task. In-context loss: exact, over random tasks; in-weight loss: exact, over prompts with w_0.
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

PROMPT_SEED = 0  # of the fixed prompts
VALUES = ("in_context", "in_weight")


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 256
    """Initial weights of every run."""
    flows: int = 64
    """Seeds whose own exact flow is solved."""
    D: int = 4
    """Input dimension; Sigma = I / D."""
    H: int = 8
    """Heads."""
    N: int = 31
    """Context length."""
    portions: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Portions of prompts whose task is w_0, ascending."""
    prompts: int = 50_000
    """Fixed prompts of each mixture."""
    lr: float = 0.1
    """Learning rate."""
    spread: float = 1e-3
    """Root mean square of the initial |p_h| and |Q_h|."""
    t_end: float = 200.0
    """Time lr x steps."""


SCALES = {
    "smoke": Config(seeds=32, flows=16, portions=(0.0, 0.5, 1.0), prompts=10_000, t_end=130.0),
    "laptop": Config(),
    "paper": Config(
        seeds=10_000, flows=256, portions=tuple(k / 10 for k in range(11)), prompts=200_000, lr=0.02, spread=1e-6
    ),
}

SIZES = {
    "seeds": (1, 10**8),
    "flows": (1, 10**4),
    "D": (1, 16),
    "H": (1, 10**3),
    "N": (1, 10**6),
    "prompts": (1, 10**7),
}
REALS: dict[str, dict[str, float]] = {
    "lr": {"above": 0},
    "spread": {"above": 1e-12, "most": 1},
    "t_end": {"above": 1e-6, "most": 1e7},
}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def portions() -> None:
        if len(settings.each("portions", ascending=True, least=0, most=1)) < 2:
            raise checks.refuse("portions", "hold at least two ascending portions", config.portions)

    def steps() -> None:
        if settings.number("lr") > settings.number("t_end"):
            raise checks.refuse("lr", "be at most `t_end`, so that it takes a step", config.lr)

    settings.gather(portions, steps)


def experiments(config: Config) -> dict[str, Any]:
    """A run for every portion."""
    check(config)
    model = _model(config)
    return {
        f"portion{k}": ic.Experiment(
            ic.dataset(model, *_prompts(config, portion)),
            ic.heads.gaussian(model),
            seeds=config.seeds,
            lr=config.lr,
            t_end=config.t_end,
            init_scale=config.spread,
            measures=_measures(config),
            records=129,
        )
        for k, portion in enumerate(config.portions)
    }


def _model(config: Config):
    return ic.merged(config.D, config.H, zero_blocks=False)


def _prompts(config: Config, portion: float) -> tuple[np.ndarray, ...]:
    """Contexts, labels, queries and their labels; all but the tasks are the same for every portion."""
    rng, P, D = np.random.default_rng(PROMPT_SEED), config.prompts, config.D
    w, x = rng.normal(size=(P, D)), rng.normal(size=(P, config.N + 1, D)) / D**0.5
    w[: round(portion * P)] = 1.0
    y = np.einsum("pa,pna->pn", w, x)
    return x[:, :-1], y[:, :-1], x[:, -1], y[:, -1]


def _moments(config: Config, portion: float) -> tuple[np.ndarray, np.ndarray, float]:
    """E[phi phi^T], E[y phi] and E y^2 of the mixture."""
    from icldyn.theory import mixtures, moments

    S, D = np.eye(config.D) / config.D, config.D
    random = moments.gaussian_task_moments(S, np.eye(D)[None, :, None], 0.0, config.N)
    fixed = moments.pool_task_moments(S, np.ones((1, 1, D)), 0.0, config.N)
    return mixtures.feature_moments(mixtures.mixture((portion, 1 - portion), (fixed, random)))


def _exact(config: Config, portion: float):
    """The exact expected loss of a mixture, as an objective."""
    from icldyn.objectives.folded import Quadratic

    C, b, yy = _moments(config, portion)
    D = config.D
    C, b = (
        C.reshape(D, -1, D, b.size // D).transpose(1, 0, 3, 2).reshape(C.shape),
        b.reshape(D, -1).T.ravel(),
    )  # to (n, D)
    center = np.linalg.lstsq(C, b, rcond=1e-10)[0]
    return Quadratic(C, center, np.float64((yy - b @ center) / 2), _model(config))


def _growth_rate(config: Config, portion: float) -> float:
    """r: the largest singular value of E[y G_ab x_qk] as a matrix of a against (b, k)."""
    D, (a, b) = config.D, np.triu_indices(config.D + 1)
    cross = np.zeros((D, D + 1, D + 1))
    cross[:, a, b] = cross[:, b, a] = _moments(config, portion)[1].reshape(D, -1)
    return float(np.linalg.norm(cross.transpose(1, 2, 0).reshape(D + 1, -1), 2))


def _measures(config: Config) -> dict[str, Any]:
    return {"in_context": _exact(config, 0.0).loss, "in_weight": _exact(config, 1.0).loss}


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """The flow of the exact loss of every mixture, from the seeds' own weights."""
    init, out = ic.heads.gaussian(_model(config)), {}
    starts = ic.initial_params(init, seeds=min(config.flows, config.seeds), init_scale=config.spread)
    for k, portion in enumerate(config.portions):
        field, t = ic.gradient_flow(_exact(config, portion)), seeds[f"portion{k}"].t
        out[f"portion{k}"] = ic.flow(field, starts, t, measures=_measures(config), many=True)
    return out


def _half(run, value: str) -> np.ndarray:
    """When the loss of every seed is first below half of its start, (S,)."""
    from icldyn.measures import which_mode

    loss = run[value]
    return which_mode.crossing(run.t, loss, loss[0, 0] / 2)


def _sampling(config: Config, portion: float) -> float:
    """Four relative standard errors of E[y phi] along its mean, from the fixed prompts of one kind.

    The losses that are not trained see errors of the moments to first order.
    """
    s = np.full(config.D, 1 / config.D)
    return (
        4 * ic.saddles.noise_along(s, config.N) ** 0.5 / ic.saddles.growth_rate(s) / (portion * config.prompts) ** 0.5
    )


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says and what follows from it, each decided by a number."""
    out: list[Claim] = []

    def claim(sentence: str, measured: float, *limits: float, **more) -> None:
        out.append(Claim(sentence, float(measured), *limits, **more))

    names = [f"portion{k}" for k in range(len(config.portions))]
    gaps, ends = [], {value: [seeds[name].mean(value)[-1] for name in names] for value in VALUES}
    for name in names:
        flow = theory[name]
        some = seeds[name].isel(seed=slice(flow.num_seeds))
        gaps += [some.mean(value)[-1] / flow.mean(value)[-1] - 1 for value in VALUES]
    least = min(portion for k in config.portions for portion in (k, 1 - k) if portion > 0)
    sentence = "Final losses on fixed prompts follow the exact flows of the mixtures (relative)"
    claim(sentence, np.abs(gaps).max(), high=_sampling(config, least), gap=True)
    if config.portions[0] == 0:
        # 2L = tr S - tr(S^2 Gamma^-1), S = I/D: A alone is learned, though all blocks are trained
        rung = (1 - config.N / (config.N + 1 + config.D)) / 2
        sentence, high = "Random tasks alone: the end over the last rung of the ladder", 1 + _sampling(config, 1.0)
        claim(sentence, ends["in_context"][0] / rung, 1, high)
    claim(
        "More prompts with the one task, worse in-context loss (least step)", np.diff(ends["in_context"]).min(), low=0
    )
    claim(
        "More prompts with the one task, better in-weight loss (largest step)", np.diff(ends["in_weight"]).max(), high=0
    )
    if config.portions[-1] == 1:
        claim("The one task alone: in-context loss, end over start", 2 * ends["in_context"][-1], low=1)
        weight, context = (_half(seeds[name], "in_weight") for name in (names[-1], names[0]))
        rates = [_growth_rate(config, portion) for portion in (config.portions[-1], config.portions[0])]
        # times are log(1/spread) / r up to constants in the logarithm
        ratio = np.median(weight) / np.median(context) / (rates[1] / rates[0])
        claim(
            "Time to learn one task over that of random tasks, over the inverse ratio of growth rates", ratio, 0.8, 1.25
        )
    middle = seeds[names[len(names) // 2]]
    first, later = (np.median(_half(middle, value)) for value in VALUES[::-1])
    sentence = (
        f"Portion {config.portions[len(names) // 2]:g}: the in-weight answer comes first (time over that in context)"
    )
    claim(sentence, first / later, high=1)
    weight = middle.mean("in_weight")
    claim("It is partly given up again: in-weight loss, end over least", weight[-1] / weight.min(), low=1)
    total = sum(one.finite().size for one in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(one.diverged for one in seeds.values()), high=0)
    return out


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """The figure (a) to (c)."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.6, 3.1))
    for ax, value, title in (
        (left, "in_context", "(a) in-context loss: random tasks"),
        (middle, "in_weight", "(b) in-weight loss: the task $w_0$"),
    ):
        _curves(ax, config, seeds, theory, value)
        ax.set_title(title)
    middle.legend()
    for color, value in zip(("C0", "C1"), VALUES, strict=True):
        ends = [[side[f"portion{k}"].mean(value)[-1] for k in range(len(config.portions))] for side in (seeds, theory)]
        right.plot(config.portions, ends[0], "o", color=color, label=value.replace("_", "-"))
        right.plot(config.portions, ends[1], "k--", label="exact flow" if value == VALUES[-1] else None)
    xlabel = "portion of prompts with task $w_0$"
    right.set(title=f"(c) at t = {config.t_end:g}", xlabel=xlabel, ylabel="loss", ylim=(0, None))
    right.legend()
    return {"mixtures": figure}


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """In-context loss for every portion."""
    _curves(ax, config, seeds, theory, "in_context")
    ax.legend()


def _curves(ax, config: Config, seeds: Trajectories, theory: Trajectories, value: str) -> None:
    import matplotlib.pyplot as plt

    colors = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, len(config.portions)))
    for k, portion in enumerate(config.portions):
        run, flow = seeds[f"portion{k}"], theory[f"portion{k}"]
        panels.band(ax, run.t, run.quantile(value, (0.05, 0.5, 0.95)), colors[k], f"portion {portion:g}")
        label = "exact flow" if k == len(config.portions) - 1 else None
        ax.plot(flow.t, np.median(flow[value], axis=0), "k--", linewidth=1, label=label)
    ax.set(xlabel="time $t$", ylabel="loss, median and 5%–95%", xlim=(0, config.t_end), ylim=(0, None))


STUDY = Study(
    title="In-context against in-weight learning: mixtures of one fixed task and random ones",
    paper="Zhang, Singh, Latham and Saxe 2025, arXiv 2501.16265",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
