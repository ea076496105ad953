"""Ahn et al. 2023, "Transformers learn to implement preconditioned gradient descent" (arXiv 2306.00297; optimisers: 2310.01082).

L layers of linear attention in sparse form (A_l and B_l, D x D; `icldyn.deep_attention.sparse`) are trained on regression whose
inputs have a covariance Sigma with eigenvalues (1, 1, 1, 1/4, 1/16) in a random basis, and w ~ N(0, Sigma^-1). They learn to
precondition: A_l becomes proportional to Sigma^-1, which plain steps of descent are not, and B_l transforms the inputs between
steps (GD++).

- Depth 1 to 4 against L plain steps at the best rate, preconditioned steps (the best rate for every step), and GD++ with one pair
  of rates for all steps or a pair for each. The last is the least that A_l = eta_l Sigma^-1, B_l = c_l I reach, exactly by
  the density of Wishart eigenvalues (`icldyn.descent_steps.wishart_rule`).
- One layer: the optimum A = Sigma^-1 N/(N+D+1), whose loss D (D+1)/(N+D+1) (paper, without the 1/2) is that of any Sigma.
- Two layers on white inputs by SGD, SGD with momentum and Adam, each at the best of its rates, picked at the end of training.

Conventions: loss 1/2 (y - yhat)^2; the paper's is twice ours, and values, figures and claims here give the paper's. Context sums
divided by N, query masked as key; our A_l is minus their Q_l, B_l their P_l. The answer is linear in query and task, so the loss
of a context is averaged over both exactly (`icldyn.deep_attention.averaged` with a basis of tasks).
Reduced: 32 contexts a batch for 20,000 prompts; 1,000 steps at a rate of 0.2 with a cosine decay for 20,000 at 0.01. That leaves
the deeper nets above the least GD++, and their A_l on the way to Sigma^-1 in its smallest direction, where the loss is flattest.
Nets of more than two layers take 2/L of the rate: at all of it one seed in six of four layers overflows, early or on one context.
Public code: its D is our Sigma^(1/2), its initial "variance" a standard deviation, and its descent uses N - 1 of the pairs.
Seeds and theory are measured on the same held-out contexts, so that what these share cancels.
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

OPTIMISERS = {"sgd": "SGD", "momentum": "SGD, momentum 0.9", "adam": "Adam"}
STEPS_OF = {"gd": "gradient descent", "pgd": "preconditioned", "gdpp_shared": "GD++, one pair of rates", "gdpp": "GD++"}


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 256
    """Seeds of every run."""
    s: tuple[float, ...] = (1.0, 1.0, 1.0, 0.25, 0.0625)
    """Eigenvalues of Sigma, descending, at most 6."""
    N: int = 20
    """Context length, at least the number of eigenvalues."""
    depths: tuple[int, ...] = (1, 2, 3, 4)
    """Layers, ascending."""
    batch: int = 32
    """Contexts a step."""
    steps: int = 1000
    """Steps of Adam."""
    lr: float = 0.2
    """Learning rate at the start of a cosine decay to 0; more than 2 layers take 2/L of it."""
    clip: float = 0.01
    """Largest norm of a gradient, of Adam's."""
    start: float = 0.01
    """Standard deviation of the initial weights."""
    optimisers: tuple[str, ...] = ("sgd", "momentum", "adam")
    """Optimisers that are compared, at two layers."""
    rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    """Learning rates that each of them is given."""
    steps_optimisers: int = 400
    """Their steps."""
    held_out: int = 1024
    """Contexts that seeds and theory are measured on."""
    basis_seed: int = 7
    """Seed of the random basis of Sigma."""


SCALES = {
    "smoke": Config(
        seeds=16, depths=(1, 2), steps=500, optimisers=("momentum", "adam"), rates=(0.01, 0.1), held_out=256
    ),
    "laptop": Config(),
    "paper": Config(
        seeds=1024, batch=20_000, steps=20_000, lr=0.01, start=1e-4, rates=(0.003, 0.01, 0.03, 0.1), held_out=10_000
    ),
}

SIZES = {
    "seeds": (2, 10**8),
    "N": (1, 10**5),
    "batch": (1, 2**20),
    "steps": (2, 2**31 - 2),
    "steps_optimisers": (2, 2**31 - 2),
    "held_out": (2, 10**6),
    "basis_seed": (0, 2**32 - 1),
}
REALS = {
    "lr": {"above": 1e-12, "most": 1e3},
    "clip": {"above": 1e-12, "most": 1e12},
    "start": {"above": 1e-15, "most": 100},
}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def eigenvalues() -> None:
        s = checks.eigenvalues("s", settings.each("s", least=1e-4, most=1e4))
        if s.size > 6:
            raise checks.refuse("s", "hold at most 6 eigenvalues", config.s)
        checks.integer("N", config.N, s.size)

    def optimisers() -> None:
        for k, name in enumerate(checks.entries("optimisers", config.optimisers)):
            checks.one_of(f"optimisers[{k}]", name, OPTIMISERS)

    settings.gather(
        *(eigenvalues, optimisers),
        lambda: settings.each("depths", checks.integer, 1, 16, ascending=True),
        lambda: settings.each("rates", ascending=True, above=1e-12, most=1e3),
    )


def experiments(config: Config) -> dict[str, Any]:
    """One run for every depth, and one for every optimiser."""
    from icldyn.tasks.inputs import inputs

    check(config)
    root, D = _root(config), len(config.s)
    shared = {"seeds": config.seeds, "init_scale": config.start, "dims": {"distance": ("layer",)}}

    def trained(L: int, root: np.ndarray, kind: str, steps: int, clip: float, **settings: Any):
        model = ic.deep_attention.sparse(D, L, D)
        task = inputs(config.N, root, Sigma_w=np.linalg.inv(root @ root), basis=True)
        return ic.Experiment(
            ic.deep_attention.averaged(task, model, config.batch),
            ic.deep_attention.gaussian(model),
            optimiser=functools.partial(_optimiser, kind=kind, steps=steps, clip=clip),
            measures=_measures(config, model, root),
            steps=steps,
            block=16,
            **shared,
            **settings,
        )

    out = {
        f"L{L}": trained(L, root, "adam", config.steps, config.clip, lr=config.lr * min(1, 2 / L), records=33)
        for L in config.depths
    }
    for kind in config.optimisers:
        settings = {"lr": list(config.rates), "records": 17}
        out[kind] = trained(2, np.eye(D), kind, config.steps_optimisers, 10.0, **settings)
    return out


def _optimiser(lr, kind: str, steps: int, clip: float):
    """The optimiser with a cosine decay to 0 and clipping; a step whose gradient is not finite is left out."""
    import optax

    schedule = optax.cosine_decay_schedule(lr, steps)
    if kind == "adam":
        rule = optax.adam(schedule, b1=0.9, b2=0.99)
    else:
        rule = optax.sgd(schedule, momentum=0.9 if kind == "momentum" else None)
    return optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(clip), rule), max_consecutive_errors=2**31 - 1)


def _root(config: Config) -> np.ndarray:
    """Sigma^(1/2), (D, D), in a random basis."""
    D = len(config.s)
    U = np.linalg.qr(np.random.default_rng(config.basis_seed).normal(size=(D, D)))[0]
    return (U * np.sqrt(config.s)) @ U.T


@functools.cache
def _white(D: int, N: int, count: int) -> np.ndarray:
    """C of held-out contexts of white inputs, (P, D, D)."""
    z = np.random.default_rng(20231).normal(size=(count, N, D))
    return np.einsum("pni,pnj->pij", z, z) / N


def _measures(config: Config, model, root: np.ndarray) -> dict[str, Any]:
    """The loss on the held-out contexts, in the paper's convention, and how far every A_l is from a multiple of Sigma^-1."""
    from jax.tree_util import Partial

    D, inverse = model.D, np.linalg.inv(root)
    C = root @ _white(D, config.N, config.held_out) @ root
    x = np.moveaxis(np.linalg.cholesky(C) * D**0.5, 0, -1).swapaxes(0, 1)  # (D, D, P): D pairs with this C
    return {"loss": Partial(_loss, model, x, root @ root, inverse), "distance": Partial(_distance, root)}


def _loss(model, x, Sigma, root_w, params):
    """E (y - yhat)^2, without the 1/2, on contexts x (D, D, P) of all tasks."""
    import jax.numpy as jnp

    W_hat = model.weights(params, x, jnp.einsum("od,ndp->nop", root_w, x))
    return 2 * ic.deep_attention.query_loss(root_w[..., None] - W_hat, Sigma)


def _distance(root, params):
    """min over c of ||M - c I|| / ||M||, M = Sigma^(1/2) A_l Sigma^(1/2): (L,)."""
    import jax.numpy as jnp

    M = jnp.einsum("ij,ljk,km->lim", root, params["A"], root)
    norms, traces = (M**2).sum((1, 2)), jnp.trace(M, axis1=1, axis2=2)
    return jnp.maximum(1 - traces**2 / (root.shape[0] * norms), 0) ** 0.5


@functools.cache
def _tuned(D: int, N: int, L: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The best rates (eta, gamma) of L steps on white inputs, exact: "pgd", "gdpp_shared" or "gdpp"."""
    rule = ic.descent_steps.wishart_rule(D, N)
    return ic.descent_steps.tuned_steps(L, rule, transform=kind != "pgd", shared=kind == "gdpp_shared")


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """Twice the losses of L steps, constant in time: exact ("loss") and on the held-out contexts ("loss_here")."""
    D, N, root = len(config.s), config.N, _root(config)
    white = _white(D, N, config.held_out)
    here = (np.linalg.eigvalsh(white).ravel(), np.full(white.shape[0] * D, 1 / white.shape[0]))
    exact = ic.descent_steps.wishart_rule(D, N)
    out = {}
    for L in config.depths:
        t = seeds[f"L{L}"].t
        for kind in ("pgd", "gdpp_shared", "gdpp"):
            rates = _tuned(D, N, L, kind)
            losses = {n: 2 * ic.descent_steps.steps_loss(*rates, r) for n, r in (("loss", exact), ("loss_here", here))}
            out[f"{kind}_L{L}"] = _constant(t, losses)
        task = (root @ white @ root, root @ root, np.linalg.inv(root @ root))
        eta = np.full(L, ic.descent_steps.tuned_rate(L, *task))
        out[f"gd_L{L}"] = _constant(t, {"loss_here": 2 * ic.descent_steps.general_steps_loss(eta, *task).mean()})
    return out


def _constant(t: np.ndarray, values: dict[str, float]):
    held = {name: np.full(t.size, value) for name, value in values.items()}
    return ic.Trajectory(held, dict.fromkeys(held, ("time",)), {"t": (("time",), t)})


def _best(run) -> tuple[int, np.ndarray]:
    """Which rate ends lowest in the median, and the quantiles of its loss (3, time)."""
    curves = run.quantile("loss", (0.05, 0.5, 0.95))  # (3, lr, time)
    best = int(np.nanargmin(curves[1, :, -1]))
    return best, curves[:, best]


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the papers say of depth, preconditioning and optimisers, each decided by a number from the seeds."""
    D, N = len(config.s), config.N
    out: list[Claim] = []

    def claim(sentence: str, measured: Any, **limits) -> None:
        out.append(Claim(sentence, float(measured), **limits))

    def steps(kind: str, L: int, name: str = "loss_here") -> float:
        return theory[f"{kind}_L{L}"][name][-1]

    end = {L: seeds[f"L{L}"].quantile("loss", (0.5,))[0, -1] for L in config.depths}
    if config.depths[0] == 1:
        best = 2 * ic.descent_steps.preconditioned_optimum(D, N)[1]
        claim(
            f"D (D+1)/(N+D+1) = {best:.4f} and the density of Wishart eigenvalues (relative)",
            abs(steps("pgd", 1, "loss") / best - 1),
            high=1e-6,
        )
        gap = abs(seeds["L1"].mean("loss")[-1] - steps("pgd", 1)) / best
        claim("One layer: mean final loss of the seeds against it (relative)", gap, high=0.01, gap=True)
        far = seeds["L1"].quantile("distance", (0.95,))[0, -1, 0]
        claim("One layer: distance of A from a multiple of Sigma^-1 (worst seed in twenty)", far, high=0.1)
    for k, L in enumerate(config.depths):
        layers = f"{L} layer{'s' if L > 1 else ''}"
        claim(
            f"{layers}: median loss over that of {L} plain steps at their best rate", end[L] / steps("gd", L), high=0.75
        )
        if L > 1:
            claim(
                f"{layers}: median loss over that of {L} preconditioned steps at their best rates",
                end[L] / steps("pgd", L),
                high=0.5,
            )
            claim(
                f"{layers}: median loss over that of GD++ with one pair of rates",
                end[L] / steps("gdpp_shared", L),
                high=1.1,
            )
            claim(f"{layers}: median loss over that of GD++, the least", end[L] / steps("gdpp", L), low=0.98)
            start, stop = seeds[f"L{L}"].quantile("distance", (0.5,))[0, [0, -1]].mean(-1)
            claim(
                f"{layers}: distance of A_l from a multiple of Sigma^-1, mean over layers, end over start",
                stop / start,
                high=0.75,
            )
        if k:
            claim(
                f"Median loss of {layers} over that of {config.depths[k - 1]}",
                end[L] / end[config.depths[k - 1]],
                high=0.5,
            )
    best = {kind: _best(seeds[kind])[1][1, -1] for kind in config.optimisers}
    for slow in (kind for kind in best if kind != "adam" and "adam" in best):
        claim(
            f"Two layers: final median loss of Adam over that of {OPTIMISERS[slow]}, best rates",
            best["adam"] / best[slow],
            high=0.9,
        )
    for name, run in seeds.items():
        claim(f"Seeds that diverged, {name}, of {run.finite().size:,}", run.diverged, high=0)
    return out


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """Depth and preconditioner; optimisers."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.0, 3.1))
    for k, L in enumerate(config.depths):
        run = seeds[f"L{L}"]
        curves = run.quantile("loss", (0.05, 0.5, 0.95))
        panels.band(left, run.coords["step"][1], curves, f"C{k}", f"L = {L}")
        label = "GD++, one pair of rates" if k == 0 else None
        left.axhline(
            theory[f"gdpp_shared_L{L}"]["loss_here"][-1], color="black", linestyle="--", linewidth=0.9, label=label
        )
    lowest = theory[f"gdpp_shared_L{config.depths[-1]}"]["loss_here"][-1]
    left.set(
        title="(a) training",
        xlabel="step of Adam",
        ylabel=r"$\mathrm{E}\,(y-\hat{y})^2$",
        yscale="log",
        ylim=(0.2 * lowest, 20),
    )
    title = f"{seeds[f'L{config.depths[0]}'].num_seeds} seeds, median and 5%–95%"
    left.legend(title=title, title_fontsize=7.5, ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    panel(middle, config, seeds, theory)
    middle.set_title("(b) depth")
    for k, L in enumerate(config.depths):
        low, median, high = seeds[f"L{L}"].quantile("distance", (0.05, 0.5, 0.95))
        for layer in range(L):
            steps = seeds[f"L{L}"].coords["step"][1]
            style = {
                "color": f"C{k}",
                "linestyle": ("-", "--", "-.", ":")[layer % 4],
                "label": f"L = {L}" if layer == 0 else None,
            }
            right.plot(steps, median[:, layer], **style)
            if layer == 0:
                right.fill_between(steps, low[:, 0], high[:, 0], color=f"C{k}", alpha=0.2, linewidth=0)
    right.set(title="(c) preconditioner", xlabel="step of Adam", yscale="log", ylim=(None, 1.5))
    right.set_ylabel(r"distance of $A_l$ from $c\,\Sigma^{-1}$")
    right.legend(title="first layer solid, then dashed", title_fontsize=7.5)
    drawn = {"depth": figure}
    if config.optimisers:
        drawn["optimisers"], ax = plt.subplots(figsize=(4.2, 3.1))
        for k, kind in enumerate(config.optimisers):
            best, curves = _best(seeds[kind])
            run = seeds[kind].isel(lr=best)
            label = f"{OPTIMISERS[kind]}, rate {config.rates[best]:g}"
            panels.band(ax, run.coords["step"][1], curves, f"C{k}", label)
        ax.set(title="(d) two layers, white inputs", xlabel="step", ylabel=r"$\mathrm{E}\,(y-\hat{y})^2$", yscale="log")
        ax.legend()
    return drawn


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """Final loss against depth."""
    L = np.array(config.depths)
    low, median, high = np.array([seeds[f"L{n}"].quantile("loss", (0.05, 0.5, 0.95))[:, -1] for n in L]).T
    ax.errorbar(
        L, median, yerr=(median - low, high - median), fmt="o", color="C0", markersize=4, label="seeds", zorder=4
    )
    for (kind, label), marks in zip(STEPS_OF.items(), ("C1-", "k:", "k--", "k-."), strict=True):
        ax.plot(L, [theory[f"{kind}_L{n}"]["loss_here"][-1] for n in L], marks, linewidth=1.1, label=label)
    ax.set(xlabel="layers or steps L", ylabel=r"$\mathrm{E}\,(y-\hat{y})^2$", yscale="log", xticks=L)
    ax.legend()


STUDY = Study(
    title="Layers of linear attention learn preconditioned gradient descent, and better with depth",
    paper="Ahn et al. 2023, arXiv 2306.00297 and 2310.01082",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
