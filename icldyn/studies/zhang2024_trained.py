"""Zhang, Frei and Bartlett 2024, "Trained transformers learn linear models in-context" (arXiv 2306.09927).

One linear-attention layer, yhat = v h^T U x_q with h = (1/N) sum y_n x_n, trained on prompts of N noiseless pairs. Gradient flow
from the theorem's start, v = sigma and U = sigma Theta Theta^T with ||Theta Theta^T||_F = 1, ends at the best weights:

    v U = Gamma^-1,  v = (tr Gamma^-2)^(1/4),  Gamma = (1 + 1/N) Lambda + (tr Lambda / N) I.

Here seeds of online SGD, each with its own Theta, follow the exact flow of its own start. The trained weights are then tested
exactly (`icldyn.theory.shifts`) at other lengths M and under shifts: of queries and tasks, which they tolerate, and of the
prompt's inputs, which they do not. Trained with another covariance in every prompt, the same model fails.

Conventions: training losses carry the 1/2, t = lr x steps; "errors" are E (y_q - yhat_q)^2 without it, as the paper's. Context
sums are divided by N (or M at test), w ~ N(0, I), the query's label is noiseless.
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

NOTES_S, WHITE = (0.4, 0.3, 0.2, 0.1), (0.2,) * 5
TABLE = {  # (s, N, M, rho) -> error of the trained weights, from the notes of the project
    (WHITE, 20, 20, 0.0): 0.23077,
    (WHITE, 31, 31, 0.0): 0.16216,
    (WHITE, 20, 40, 0.0): 0.14201,
    (NOTES_S, 20, 20, 0.0): 0.19464,
    (NOTES_S, 31, 31, 0.0): 0.135995,
    (NOTES_S, 20, 40, 0.0): 0.11813,
    (NOTES_S, 20, 20, 0.3): 0.2290,
}
DIGITS = {0.2290: 5e-5}  # how well the table's entries are known, 1e-5 but for this one
ENDS = sorted({(s, N, rho) for s, N, _, rho in TABLE if s == NOTES_S})  # what flows are solved for
LATE = 4000.0  # when the flows of the table have ended
BOUNDS = (
    0.2,
    0.9,
    4.0,
)  # starts of the table's spectrum at N = 20 by sigma^2 ||Gamma|| sqrt D: the theorem wants it below 2
LONG = 10**6  # a context so long that only what shifts do is left
DIMS = {"A": ("row", "column"), "v": ("head",), "norm": ("head",)}


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 256
    """Seeds of every run."""
    flows: int = 64
    """Seeds whose own exact flow is solved."""
    N: int = 20
    """Context length in training."""
    s: tuple[float, ...] = NOTES_S
    """Eigenvalues of Lambda, descending."""
    sigma: float = 0.3
    """Scale of the theorem's start."""
    lr: float = 0.02
    """Learning rate of SGD."""
    batch: int = 32
    """Prompts a step."""
    t_end: float = 300.0
    """Time lr x steps."""
    random_lr: float = 0.004
    """Learning rate where every prompt has its own covariance."""
    random_batch: int = 256
    """Prompts a step of these runs: products of six exponentially distributed variances have heavy tails."""
    random_t_end: float = 6.0
    """Time of these runs."""
    M: tuple[int, ...] = (5, 10, 20, 40, 80, 160, 320)
    """Context lengths at test."""
    shifts: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
    """Factors by which the covariance of prompt inputs, queries or tasks is multiplied at test."""


SCALES = {
    "smoke": Config(seeds=64, flows=8, lr=0.04, t_end=80.0, random_lr=0.008, random_batch=128, random_t_end=4.0),
    "laptop": Config(),
    "paper": Config(seeds=10_000, flows=256, s=tuple(float(f"{2 / a:.4g}") for a in range(2, 22)), lr=0.002, batch=256),
}
SIZES = {"seeds": (8, 10**8), "flows": (8, 10**5), "N": (2, 10**9), "batch": (1, 2**20), "random_batch": (1, 2**20)}
REALS: dict[str, dict[str, float]] = {
    "sigma": {"above": 1e-12, "most": 100},
    "lr": {"above": 0},
    "t_end": {"above": 1e-6, "most": 1e9},
    "random_lr": {"above": 0},
    "random_t_end": {"above": 1e-6, "most": 1e9},
}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def start() -> None:
        s = checks.eigenvalues("s", settings.each("s", least=1e-6, most=1e6))
        bound = settings.number("sigma") ** 2 * _gamma(s, settings.size("N"))[0] * s.size**0.5
        if bound >= 2:
            raise checks.refuse("sigma", "have sigma^2 ||Gamma|| sqrt D below 2", config.sigma)

    def steps(rate: str, time: str) -> None:
        if not 1 <= settings.number(time) / settings.number(rate) < 2**31 - 2:
            raise checks.refuse(rate, f"take 1 to 2**31 - 2 steps until `{time}`", getattr(config, rate))

    settings.gather(
        lambda: settings.each("M", checks.integer, 1, 10**9, ascending=True),
        lambda: settings.each("shifts", ascending=True, above=0, most=1e6),
        *(start, lambda: steps("lr", "t_end"), lambda: steps("random_lr", "random_t_end")),
    )


def _gamma(s, N: float, rho: float = 0.0) -> np.ndarray:
    """Eigenvalues of Gamma, descending, (D,)."""
    s = np.asarray(s, float)
    return (1 + 1 / N) * s + (s.sum() + rho) / N


def theorem_start(like, key, scale):
    """v = scale, U = scale Theta Theta^T / ||Theta Theta^T||_F with Gaussian Theta (D, D) of `like`'s shape."""
    import jax
    import jax.numpy as jnp

    theta = jax.random.normal(key, like.shape, scale.dtype)
    positive = theta @ theta.T
    return {"v": scale[None], "U": (scale / jnp.sqrt(jnp.sum(positive**2)) * positive)[None]}


def _start(D: int):
    from jax.tree_util import Partial

    return Partial(theorem_start, np.zeros((D, D)))


def experiments(config: Config) -> dict[str, Any]:
    """SGD with one covariance, and with another in every prompt."""
    check(config)
    from icldyn.tasks.random_covariance import random_covariance

    D = len(config.s)
    model, settings = ic.merged(D), {"seeds": config.seeds, "init_scale": config.sigma, "dims": DIMS}
    fixed = ic.linear_regression(config.N, config.s, family="scalar")
    random = random_covariance(config.N, D)
    return {
        "fixed": ic.Experiment(
            ic.statistics(fixed, model, config.batch),
            _start(D),
            lr=config.lr,
            t_end=config.t_end,
            measures=_measures(ic.population(fixed, model).loss),
            records=129,
            **settings,
        ),
        "random": ic.Experiment(
            ic.sampled(random, model, config.random_batch),
            _start(D),
            lr=config.random_lr,
            t_end=config.random_t_end,
            measures=_measures(_random_loss(config)),
            **settings,
        ),
    }


def _measures(loss) -> dict[str, Any]:
    """The exact loss, A = v U (Lambda is diagonal), and the two norms that the theorem speaks of."""
    return {"loss": loss, "A": _matrix, "v": _value, "norm": _norm}


def _matrix(params):
    return params["v"][0] * params["U"][0]


def _value(params):
    return params["v"]


def _norm(params):
    return (params["U"] ** 2).sum((1, 2)) ** 0.5


def _random_loss(config: Config):
    from jax.tree_util import Partial

    return Partial(_random_exact, np.float64(config.N))


def _random_exact(N, params):
    from icldyn.theory import shifts

    return shifts.random_covariance_loss(_matrix(params), N)


def _minus_gradient(loss, params):
    import jax

    return jax.tree.map(lambda g: -g, jax.grad(loss)(params))


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """Exact flows of the seeds' own starts (`fixed`, `random`), and the late ends of those of the table and of other sigma."""
    from jax.tree_util import Partial

    D, count = len(config.s), min(config.flows, config.seeds)
    starts = ic.initial_params(_start(D), seeds=count, init_scale=config.sigma)
    exact = ic.population(ic.linear_regression(config.N, config.s, family="scalar"), ic.merged(D))
    random, settings = _random_loss(config), {"dims": DIMS, "many": True}
    fields = {"fixed": ic.gradient_flow(exact), "random": Partial(_minus_gradient, random)}
    out = {}
    for (name, field), loss in zip(fields.items(), (exact.loss, random), strict=True):
        out[name] = ic.flow(field, starts, seeds[name].t, measures=_measures(loss), **settings)
    times = np.linspace(0, LATE, seeds["fixed"].t.size)
    for s, N, rho in ENDS:
        out[_end(s, N, rho)] = _late(s, N, rho, config.sigma, times)
    for bound in BOUNDS:
        sigma = (bound / (_gamma(NOTES_S, 20)[0] * len(NOTES_S) ** 0.5)) ** 0.5
        out[f"bound{bound:g}"] = _late(NOTES_S, 20, 0.0, sigma, times)
    return out


def _end(s, N: int, rho: float) -> str:
    return f"end_D{len(s)}_N{N}_rho{rho:g}"


def _late(s, N: int, rho: float, sigma: float, times: np.ndarray):
    """The flow of eight starts, until late."""
    task, model = ic.linear_regression(N, s, family="scalar", rho=rho), ic.merged(len(s))
    exact = ic.population(task, model)
    starts = ic.initial_params(_start(len(s)), seeds=8, init_scale=sigma)
    return ic.flow(ic.gradient_flow(exact), starts, times, measures=_measures(exact.loss), dims=DIMS, many=True)


def error(A, s, M: float, query: float = 1.0, task: float = 1.0, inputs: float = 1.0, rho: float = 0.0) -> np.ndarray:
    """E (y_q - yhat_q)^2 (...) of A (..., D, D) at length M, with these factors on the covariances at test."""
    from icldyn.theory import shifts

    S = np.diag(np.asarray(s, float))
    return 2 * np.asarray(shifts.loss(np.asarray(A, float), inputs * S, M, query * S, task * np.eye(len(s)), rho))


def _far(run, Gamma: np.ndarray) -> float:
    """The largest relative distance, over starts, of the last (v, U) from the theorem's and of A from Gamma^-1."""
    from icldyn.theory import shifts

    v, U = shifts.flow_end(Gamma)
    apart = np.linalg.norm(run["A"][:, -1] - v * U, axis=(1, 2)) / np.linalg.norm(v * U)
    values = np.abs(run["v"][:, -1] / v - 1), np.abs(run["norm"][:, -1] * v / np.linalg.norm(v * U) - 1)
    return float(max(apart.max(), *(value.max() for value in values)))


def _diagonal(run) -> np.ndarray:
    """tr A / D, (S, T)."""
    A = run["A"]
    return np.trace(A, axis1=2, axis2=3) / A.shape[-1]


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says, each decided by a number."""
    from icldyn.theory import shifts

    out: list[Claim] = []
    D, s = len(config.s), np.asarray(config.s)

    def claim(sentence: str, measured: float, **limits) -> None:
        out.append(Claim(sentence, float(measured), **limits))

    run, flow = seeds["fixed"], theory["fixed"]
    own = run.isel(seed=slice(flow.num_seeds))
    wanted = np.diag(1 / _gamma(s, config.N))
    apart = np.linalg.norm(own.mean("A") - flow.mean("A"), axis=(1, 2)).max() / np.linalg.norm(wanted)
    claim("A of the seeds follows the exact flows of their own starts (gap of means)", apart, high=0.03, gap=True)
    noise = np.linalg.norm(own["A"] - flow["A"], axis=(2, 3)).max(1) / np.linalg.norm(wanted)
    claim("Distance of a seed from its own flow, median over seeds", np.median(noise))

    ends = {key: theory[_end(*key)] for key in ENDS}
    far = max(_far(end, np.diag(_gamma(*key))) for key, end in ends.items())
    claim(
        "Flow ends at A = Gamma^-1, v = ||U|| = (tr Gamma^-2)^(1/4) from every start (largest relative distance)",
        far,
        high=1e-3,
    )
    kept = max(np.abs(end["v"][..., 0] ** 2 - end["norm"][..., 0] ** 2).max() for end in ends.values())
    claim("v^2 - ||U||^2 along these flows (largest)", kept, high=1e-5)
    starts = [theory[f"bound{bound:g}"]["loss"] for bound in BOUNDS if bound < 2]
    claim(
        "Where sigma^2 ||Gamma|| sqrt D < 2 the start lies below the saddle at 0 (largest loss over that of 0)",
        max(loss[:, 0].max() for loss in starts) / (sum(NOTES_S) / 2),
        high=1,
    )
    beyond = [_far(theory[f"bound{bound:g}"], np.diag(_gamma(NOTES_S, 20))) for bound in BOUNDS if bound >= 2]
    claim("Relative distance from the same end of flows that start beyond the bound", max(beyond))

    for (spectrum, N, M, rho), number in TABLE.items():
        trained = np.diag(1 / _gamma(spectrum, N, rho)) if spectrum == WHITE else ends[spectrum, N, rho]["A"][:, -1]
        found = error(trained, spectrum, M, rho=rho)
        where = f"{'white' if spectrum == WHITE else 'diag(.1,.2,.3,.4)'}, N = {N}, M = {M}" + (
            f", label noise {rho:g}" if rho else ""
        )
        claim(
            f"Error after training is {number:g}: {where} (difference)",
            np.abs(found - number).max(),
            high=DIGITS.get(number, 1e-5),
        )

    last = own["A"][:, -1]
    for M in (config.N, 2 * config.N):
        apart = error(last, s, M).mean() / error(flow["A"][:, -1], s, M).mean() - 1
        claim(
            f"Mean error of the seeds at length M = {M} over that of their flows (relative)",
            apart,
            low=-0.02,
            high=0.05,
        )

    perfect = np.diag(1 / _gamma(s, LONG))
    share = {kind: error(perfect, s, LONG, **{kind: 3.0}) / (3 * s.sum()) for kind in ("query", "task", "inputs")}
    share["inputs"] *= 3  # the queries keep their law
    claim(
        "Long contexts: queries or tasks of 3 times the variance leave this share of the label's variance",
        max(share["query"], share["task"]),
        high=1e-3,
    )
    claim(
        "Long contexts: prompt inputs of 3 times the variance leave (1 - 3)^2 times the label's",
        share["inputs"],
        low=3.99,
        high=4.01,
    )

    run, flow = seeds["random"], theory["random"]
    a, least = shifts.random_covariance_optimum(config.N, D)
    apart = np.abs(np.median(_diagonal(run), 0) - _diagonal(flow).mean(0)).max() / a  # heavy tails: the mean is noisier
    claim("Random covariances: median over seeds of tr A / D follows the exact flows (gap)", apart, high=0.05, gap=True)
    claim(
        "Random covariances: excess of the flows' last loss over the least possible (relative)",
        flow["loss"][:, -1].max() / least - 1,
        low=-1e-9,
        high=0.01,
    )
    claim(
        "Random covariances, long contexts: share of the label's variance that the best A leaves",
        2 * shifts.random_covariance_optimum(LONG, D)[1] / D,
        low=0.333,
        high=0.334,
    )
    total = sum(run.finite().size for run in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(run.diverged for run in seeds.values()), high=0)
    return out


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """Training, tests of the trained weights, random covariances."""
    return {
        "training": _figure_training(config, seeds, theory),
        "test": _figure_test(config, seeds, theory),
        "random_covariance": _figure_random(config, seeds, theory),
    }


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """Diagonal of A with the exact flow."""
    _draw_modes(ax, config, seeds["fixed"], theory["fixed"])


def _draw_band(ax, run, values: np.ndarray, color, label: str | None) -> None:
    """Median and 5%-95% of values (S, T) over the seeds that stayed finite."""
    panels.band(ax, run.t, np.quantile(values[run.finite()], (0.05, 0.5, 0.95), axis=0), color, label)


def _draw_modes(ax, config: Config, run, flow) -> None:
    for k, s in enumerate(config.s):
        _draw_band(ax, run, run["A"][:, :, k, k], f"C{k}", rf"$\lambda_{{{k + 1}}}$ = {s:g}" if k < 6 else None)
        ax.plot(
            flow.t, np.median(flow["A"][:, :, k, k], 0), "k--", linewidth=1.1, label="exact flows" if k == 0 else None
        )
    ax.set(
        xlabel=r"time $t$ = learning rate $\times$ steps",
        ylabel=r"diagonal of $A = v\,U$",
        xlim=(0, run.t[-1]),
        ylim=(0, 1.4 / _gamma(config.s, config.N)[-1]),
    )
    ax.legend(title=f"{run.coverage}, 5%–95%", title_fontsize=7.5, ncol=2, loc="upper left")


def _figure_training(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    from icldyn.theory import shifts

    figure, (left, middle, right) = panels.row(3)
    run, flow = seeds["fixed"], theory["fixed"]
    _draw_band(left, run, 2 * run["loss"], "C0", f"{run.num_seeds} seeds, 5%–95%")
    left.plot(flow.t, np.median(2 * flow["loss"], 0), "k--", linewidth=1.1, label="exact flows, median")
    least = 2 * ic.one_layer.least_loss(np.diag(config.s), config.N)
    left.axhline(least, color="0.6", linewidth=1, zorder=0, label=rf"$A = \Gamma^{{-1}}$: {least:.4f}")
    left.set(
        title=f"(a) error, N = {config.N}",
        ylabel=r"$\mathrm{E}\,(y_q-\hat{y}_q)^2$",
        xlim=(0, run.t[-1]),
        ylim=(0, None),
    )
    _draw_modes(middle, config, run, flow)
    middle.set(title=r"(b) eigenmodes, to $\Gamma^{-1}$")
    v, _ = shifts.flow_end(np.diag(_gamma(config.s, config.N)))
    for name, label, color in (("v", "$v$", "C0"), ("norm", r"$\|U\|_F$", "C1")):
        _draw_band(right, run, run[name][:, :, 0], color, label)
        right.plot(flow.t, np.median(flow[name][:, :, 0], 0), "k--", linewidth=1.1)
    right.axhline(v, color="0.6", linewidth=1, zorder=0, label=r"$(\mathrm{tr}\,\Gamma^{-2})^{1/4}$")
    right.set(title="(c) balanced weights", ylabel="norm", xlim=(0, run.t[-1]), ylim=(0, None))
    for ax in (left, right):
        ax.set_xlabel(r"time $t$ = learning rate $\times$ steps")
        ax.legend()
    return figure


def _figure_test(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    figure, (left, right) = panels.row(2, 4.2)
    run, s = seeds["fixed"], np.asarray(config.s)
    last, wanted = run["A"][run.finite(), -1], np.diag(1 / _gamma(s, config.N))
    grid = np.geomspace(config.M[0], config.M[-1], 25)
    _draw_points(
        left, config.M, [error(last, s, M) for M in config.M], "C0", f"{len(last)} trained seeds, N = {config.N}"
    )
    left.plot(grid, [error(wanted, s, M) for M in grid], "k--", linewidth=1.1, label=r"exact, $A = \Gamma^{-1}$")
    best = [2 * ic.one_layer.least_loss(np.diag(s), M) for M in grid]
    left.plot(grid, best, color="0.6", linewidth=1, label="trained at the same length")
    left.set(
        title="(a) length of the context at test",
        xlabel="pairs M",
        ylabel=r"$\mathrm{E}\,(y_q-\hat{y}_q)^2$",
        xscale="log",
    )
    left.set_xticks(config.M, [str(M) for M in config.M])
    left.set_xticks([], minor=True)
    factors = np.linspace(config.shifts[0], config.shifts[-1], 25)
    for c, (kind, label) in enumerate((("inputs", "prompt inputs"), ("query", "queries"), ("task", "tasks"))):
        found = [_share(last, s, config.N, kind, f) for f in config.shifts]
        _draw_points(right, np.asarray(config.shifts) * (1 + 0.015 * (c - 1)), found, f"C{c}", label)
        right.plot(factors, [_share(wanted, s, config.N, kind, f) for f in factors], "k--", linewidth=1.1)
    title = f"(b) shifts at test, M = N = {config.N}"
    right.set(title=title, xlabel="factor on the covariance", ylabel="error over the label's variance", yscale="log")
    for ax in (left, right):
        ax.legend()
    return figure


def _share(A, s: np.ndarray, M: int, kind: str, factor: float) -> np.ndarray:
    """The error under a shift, over the variance of the query's label."""
    return error(A, s, M, **{kind: factor}) / (s.sum() * (1.0 if kind == "inputs" else factor))


def _draw_points(ax, x, values: list, color, label: str) -> None:
    """Median and 5%-95% over seeds of values (S,) at every x."""
    low, middle, high = np.transpose([np.quantile(v, (0.05, 0.5, 0.95)) for v in values])
    bars = [middle - low, high - middle]
    ax.errorbar(x, middle, bars, fmt="o", markersize=3.5, capsize=2, linewidth=1, color=color, label=label)


def _figure_random(config: Config, seeds: Trajectories, theory: Trajectories) -> Figure:
    from icldyn.theory import shifts

    figure, (left, right) = panels.row(2, 4.2)
    run, flow, D = seeds["random"], theory["random"], len(config.s)
    a, least = shifts.random_covariance_optimum(config.N, D)
    _draw_band(left, run, _diagonal(run), "C1", f"{run.coverage}, 5%–95%")
    left.plot(flow.t, np.median(_diagonal(flow), 0), "k--", linewidth=1.1, label="exact flows, median")
    left.axhline(a, color="0.6", linewidth=1, zorder=0, label=f"best A = {a:.3f} I")
    left.set(
        title=f"(a) another covariance in every prompt, N = {config.N}",
        xlabel=r"time $t$ = learning rate $\times$ steps",
    )
    left.set(ylabel="tr A / D", xlim=(0, run.t[-1]), ylim=(0, None))
    grid, s = np.geomspace(5, 10**4, 60), np.asarray(config.s)
    fixed = [2 * ic.one_layer.least_loss(np.diag(s), N) / s.sum() for N in grid]
    right.plot(grid, fixed, color="C0", label=r"one covariance: $\to 0$")
    random = [2 * shifts.random_covariance_optimum(N, D)[1] / D for N in grid]
    right.plot(grid, random, color="C1", label=r"random covariances: $\to 1/3$")
    for name, color, variance in (("fixed", "C0", s.sum()), ("random", "C1", D)):
        ends = 2 * seeds[name]["loss"][seeds[name].finite(), -1] / variance
        _draw_points(right, [config.N], [ends], color, "seeds" if name == "fixed" else None)
    right.axhline(1 / 3, color="0.6", linewidth=1, zorder=0)
    right.set(
        title="(b) what the best weights leave", xlabel="context length N = M", ylabel="error over the label's variance"
    )
    right.set(xscale="log", yscale="log")
    for ax in (left, right):
        ax.legend()
    return figure


STUDY = Study(
    title="Trained linear attention: where gradient flow ends, and which shifts at test its weights survive",
    paper="Zhang, Frei and Bartlett 2024, arXiv 2306.09927",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
