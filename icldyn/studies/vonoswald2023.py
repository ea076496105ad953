"""von Oswald et al. 2023, "Transformers learn in-context by gradient descent" (arXiv 2212.07677).

A layer of linear attention can take one step of gradient descent on the pairs in its context; trained on in-context regression it
does. L layers take L steps and better: they also transform the inputs between the steps (GD++).

- One layer, all 11 x 11 weights trained by Adam from near 0, against the step with the exact best rate eta* (closed form for
  uniform inputs): loss, cosine and distance of the sensitivities d yhat / d x_q, predictions, and inputs and tasks off the scale
  of training, where a construction that is right for one scale must fail as the step does.
- Two layers that share weights and five that do not, against L steps of gradient descent and GD++ with tuned rates, one pair
  (eta, gamma) for all steps as in the paper. Layers of their own may use another pair in every step, and end below it.

Conventions: loss 1/2 (y_q - yhat_q)^2; context sums divided by N, so our gamma is N times theirs; the query is masked as key;
x ~ U(-1/2, 1/2)^D, w ~ N(0, I), no noise. The answer is linear in the query, so the loss of a context is averaged over its
queries exactly (`icldyn.deep_attention.averaged`): less noise for the paper's batch of 2,048.
Reduced: batches of 32 and 64 contexts; 800 and 1,500 steps at 20 and 15 times the paper's rate of 1e-3, with a cosine decay, in
place of 5,000 and 50,000; depth 2 and 5 at D = N = 5, not 10. Seeds and theory are measured on the same held-out contexts and
compared there, so that what the contexts share cancels. With five layers an unlucky context can grow as the 3^5th power of the
weights. Gradients at depth are clipped at 0.3: clipped at 0.001, a third of the seeds fail on one of 1,024 held-out contexts.
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

S, M4 = 1 / 12, 1 / 80  # E x^2 and E x^4 of U(-1/2, 1/2)
TUNING = 10_000  # contexts that tune the rates, as many as in the paper
DEEP = ("looped", "untied")


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 256
    """Seeds of every run."""
    D: int = 10
    """Input dimension of the one-layer run."""
    N: int = 10
    """Its context length."""
    batch: int = 64
    """Contexts a step."""
    steps: int = 800
    """Steps of Adam."""
    lr: float = 0.02
    """Learning rate at the start of a cosine decay to 0."""
    clip: float = 1e-3
    """Largest norm of a gradient."""
    D_deep: int = 5
    """Input dimension and context length at depth 2 and 5."""
    batch_deep: int = 32
    """Contexts a step at depth 2 and 5."""
    steps_deep: int = 1500
    """Steps of Adam at depth 2 and 5."""
    lr_deep: float = 0.015
    """Learning rate at depth 2 and 5."""
    clip_deep: float = 0.3
    """Largest norm of a gradient at depth 2 and 5."""
    looped: int = 2
    """Layers of the run whose layers share weights."""
    untied: int = 5
    """Layers of the run whose layers do not; 0 leaves it out."""
    start: float = 0.002
    """Standard deviation of the initial weights, divided by the number of layers."""
    held_out: int = 1024
    """Contexts that seeds and theory are measured on."""
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    """Factors of the inputs at test time; the tasks are scaled by up to 2.5 times as much."""


SCALES = {
    "smoke": Config(seeds=16, held_out=256, steps=500, batch_deep=64, steps_deep=800, untied=0),
    "laptop": Config(),
    "paper": Config(
        seeds=1024,
        batch=2048,
        steps=5000,
        lr=1e-3,
        D_deep=10,
        batch_deep=2048,
        steps_deep=50_000,
        lr_deep=1e-3,
        clip_deep=1e-3,
        held_out=10_000,
    ),
}

SIZES = {
    "seeds": (2, 10**8),
    "D": (1, 256),
    "N": (1, 10**5),
    "batch": (1, 2**20),
    "steps": (2, 2**31 - 2),
    "D_deep": (1, 256),
    "batch_deep": (1, 2**20),
    "steps_deep": (2, 2**31 - 2),
    "looped": (2, 64),
    "untied": (0, 64),
    "held_out": (2, 10**6),
}
REALS = {
    "lr": {"above": 1e-12, "most": 1e3},
    "clip": {"above": 1e-12, "most": 1e12},
    "lr_deep": {"above": 1e-12, "most": 1e3},
    "clip_deep": {"above": 1e-12, "most": 1e12},
    "start": {"above": 1e-15, "most": 100},
}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def scales() -> None:
        if not settings.each("scales", above=0, most=100):
            raise checks.refuse("scales", "hold at least one factor", config.scales)

    settings.gather(scales)


def experiments(config: Config) -> dict[str, Any]:
    """One layer, two that share weights, and five that do not."""
    check(config)
    out = {}
    for name in ("one_layer", *(name for name in DEEP if getattr(config, name))):
        model, task = _model(config, name), _task(config, name)
        deep = name in DEEP
        steps = config.steps_deep if deep else config.steps
        lr, clip = (config.lr_deep, config.clip_deep) if deep else (config.lr, config.clip)
        out[name] = ic.Experiment(
            ic.deep_attention.averaged(task, model, config.batch_deep if deep else config.batch),
            ic.deep_attention.gaussian(model),
            seeds=config.seeds,
            lr=lr,
            steps=steps,
            init_scale=config.start / model.L,
            optimiser=functools.partial(_adam, steps=steps, clip=clip),
            measures=_measures(config, name),
            dims={"loss_scaled_x": ("scale",), "loss_scaled_w": ("scale",)},
            records=33,
            block=8 if deep else None,
        )
    return out


def _adam(lr, steps: int, clip: float):
    """Adam with the paper's moments and clipping, and a cosine decay to 0; a step whose gradient is not finite is left out."""
    import optax

    schedule = optax.cosine_decay_schedule(lr, steps)
    adam = optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule, b1=0.9, b2=0.98))
    return optax.apply_if_finite(adam, max_consecutive_errors=2**31 - 1)


def _model(config: Config, name: str):
    if name == "one_layer":
        return ic.deep_attention.full(config.D, 1)
    return ic.deep_attention.full(config.D_deep, getattr(config, name), looped=name == "looped")


def _sizes(config: Config, name: str) -> tuple[int, int]:
    return (config.D, config.N) if name == "one_layer" else (config.D_deep, config.D_deep)


def _task(config: Config, name: str):
    from icldyn.tasks.inputs import inputs

    D, N = _sizes(config, name)
    return inputs(N, S**0.5 * np.eye(D), law="uniform")


@functools.cache
def _contexts(D: int, N: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Held-out x (N, D, P) and w (D, P), prompts last."""
    drawn = np.random.default_rng(20230)
    return drawn.uniform(-0.5, 0.5, size=(N, D, count)), drawn.normal(size=(D, count))


@functools.cache
def _tuned(D: int, N: int, L: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Rates (eta, gamma), (L,) each, of gradient descent ("gd") or GD++ ("gdpp", one pair for all layers), on other contexts."""
    if L == 1:
        return np.array([ic.descent_steps.one_step_optimum(S, M4, D, N)[0]]), np.zeros(1)
    x = np.random.default_rng(20231).uniform(-0.5, 0.5, size=(TUNING, N, D))
    rule = ic.descent_steps.sampled_rule(x)
    return ic.descent_steps.tuned_steps(L, rule, transform=kind == "gdpp", shared=True)


def _descent(x: np.ndarray, w: np.ndarray, eta: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """w_L (D, P) with yhat = w_L . x_q: descent from w = 0 on the residuals of the pairs (x, w . x), written out."""
    x, residual = np.moveaxis(x, -1, 0), np.einsum("ndp,dp->pn", x, w)  # (P, N, D), (P, N)
    found, through = np.zeros(w.T.shape), np.broadcast_to(np.eye(len(w)), (w.shape[1], len(w), len(w)))
    for e, g in zip(eta, gamma, strict=True):
        step = e * np.einsum("pn,pnd->pd", residual, x) / x.shape[1]
        found = found + np.einsum("pi,pij->pj", step, through)  # the query was transformed as the inputs were
        residual = residual - np.einsum("pnd,pd->pn", x, step)
        moved = np.eye(len(w)) - g * np.einsum("pni,pnj->pij", x, x) / x.shape[1]
        x, through = np.einsum("pnd,pde->pne", x, moved), moved @ through
    return found.T


def _measures(config: Config, name: str) -> dict[str, Any]:
    """What is read off a seed on the held-out contexts; `near` is the algorithm that it should have become."""
    from jax.tree_util import Partial

    (D, N), model = _sizes(config, name), _model(config, name)
    x, w = _contexts(D, N, config.held_out)
    near = _descent(x, w, *_tuned(D, N, model.L, "gdpp"))
    out = {"loss": Partial(_loss, model, x, w)}
    out |= {n: Partial(f, model, x, w, near) for n, f in (("cosine", _cosine), ("distance", _distance))}
    if name == "one_layer":
        few, a = slice(256), np.asarray(config.scales)
        out["loss_scaled_x"] = Partial(_scaled, model, x[..., few], w[:, few], a, np.ones_like(a))
        out["loss_scaled_w"] = Partial(_scaled, model, x[..., few], w[:, few], np.ones_like(a), 2.5 * a)
    return out


def _found(model, x, w, params):
    """d yhat / d x_q (D, P) of the trained layers, on contexts x (N, D, P) of tasks w (D, P)."""
    import jax.numpy as jnp

    return model.weights(params, x, jnp.sum(w[None] * x, axis=1, keepdims=True))[0]


def _loss(model, x, w, params):
    error = w - _found(model, x, w, params)
    return S / 2 * (error**2).sum(0).mean()


def _cosine(model, x, w, near, params):
    found = _found(model, x, w, params)
    return ((found * near).sum(0) / (((found**2).sum(0) * (near**2).sum(0)) ** 0.5 + 1e-30)).mean()


def _distance(model, x, w, near, params):
    """Root mean square of yhat - yhat_near relative to yhat_near's; as Sigma = s I, that of the sensitivities too."""
    return (((_found(model, x, w, params) - near) ** 2).sum() / (near**2).sum()) ** 0.5


def _scaled(model, x, w, a, b, params):
    """Loss at inputs a x and tasks b w, relative to the zero predictor's: (len(a),)."""
    from jax import lax

    def one(factors):
        a, b = factors
        return _loss(model, a * x, b * w, params) / (S / 2 * ((b * w) ** 2).sum(0).mean())

    return lax.map(one, (a, b))


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """Losses of gradient descent ("gd_RUN") and GD++ ("gdpp_RUN") on the held-out contexts, constant in time."""
    out = {}
    for name, run in seeds.items():
        D, N = _sizes(config, name)
        x, w = _contexts(D, N, config.held_out)
        for kind in ("gd", "gdpp")[: 1 if name == "one_layer" else 2]:
            rates = _tuned(D, N, _model(config, name).L, kind)
            values = {"loss": S / 2 * ((w - _descent(x, w, *rates)) ** 2).sum(0).mean()}
            if name == "one_layer":
                values |= {
                    "loss_scaled_x": _descent_scaled(config, rates),
                    "loss_scaled_w": _descent_scaled(config, rates, False),
                }
            constant = {n: np.broadcast_to(v, (run.t.size, *np.shape(v))) for n, v in values.items()}
            own = {n: ("time", "scale")[: v.ndim] for n, v in constant.items()}
            out[f"{kind}_{name}"] = ic.Trajectory(constant, own, {"t": (("time",), run.t)})
    return out


def _descent_scaled(config: Config, rates, inputs: bool = True) -> np.ndarray:
    """What `_scaled` reads, of gradient descent: (scale,)."""
    x, w = (v[..., :256] for v in _contexts(config.D, config.N, config.held_out))
    a = np.asarray(config.scales) if inputs else np.ones(len(config.scales))
    return np.array(
        [((w - _descent(k * x, w, *rates)) ** 2).sum() / (w**2).sum() for k in a]
    )  # linear in w: its scale cancels


def _construction_error(config: Config) -> float:
    """Largest |yhat of the constructed layers - yhat of explicit descent| / |yhat|, one step, GD and GD++, in float64."""
    import jax

    worst = 0.0
    x, w = (v[..., :64] for v in _contexts(config.D, config.N, config.held_out))
    for L, gamma in ((1, 0.0), (2, 0.0), (5, 1.5)):
        model = ic.deep_attention.full(config.D, L)
        wanted = _descent(x, w, np.full(L, 5.0), np.full(L, gamma))
        with jax.enable_x64(True):
            params = ic.deep_attention.gradient_descent(model, 5.0, gamma)(jax.random.key(0), np.float64(1))
            found = np.asarray(_found(model, x, w, params))
        worst = max(worst, float(np.abs(found - wanted).max() / np.abs(wanted).max()))
    return worst


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says of one layer, and of depth, each decided by a number from the seeds."""
    out: list[Claim] = []

    def claim(sentence: str, measured: Any, **limits) -> None:
        out.append(Claim(sentence, float(measured), **limits))

    def end(name: str, value: str = "loss") -> np.ndarray:
        return seeds[name].quantile(value, (0.05, 0.5, 0.95))[:, -1]

    claim(
        "The constructed layers against explicit descent, GD and GD++ (relative)",
        _construction_error(config),
        high=1e-6,
    )
    eta, exact = ic.descent_steps.one_step_optimum(S, M4, config.D, config.N)
    x, w = _contexts(config.D, config.N, config.held_out)
    here = S / 2 * ((w - _descent(x, w, np.array([eta]), np.zeros(1))) ** 2).sum(0)
    apart = abs(here.mean() - exact) / (here.std() / len(here) ** 0.5)
    claim(
        f"Loss of one step on the held-out contexts and the closed form L* = {exact:.5f} (standard errors apart)",
        apart,
        high=4,
    )
    gap = seeds["one_layer"].mean("loss")[-1] - here.mean()
    claim("One layer: mean final loss of the seeds against L* (relative)", abs(gap) / exact, high=0.02, gap=True)
    claim("The same, of the worst seed in twenty", (end("one_layer")[2] - here.mean()) / exact, high=0.03)
    claim(
        "One layer: cosine of sensitivities, seeds and gradient descent (lowest in twenty)",
        end("one_layer", "cosine")[0],
        low=0.99,
    )
    claim("One layer: distance of predictions, relative (median)", end("one_layer", "distance")[1], high=0.1)
    for letter, what in (("x", "inputs"), ("w", "tasks")):
        curves = (
            seeds["one_layer"].quantile(f"loss_scaled_{letter}", (0.5,))[0, -1],
            theory["gd_one_layer"][f"loss_scaled_{letter}"][-1],
        )
        claim(
            f"Scaled {what} at test: median loss of the seeds against the step's (relative, worst scale)",
            _apart(*curves),
            high=0.1,
        )
    for name in (name for name in DEEP if name in seeds):
        L = getattr(config, name)
        median, plain, plus = end(name)[1], theory[f"gd_{name}"]["loss"][-1], theory[f"gdpp_{name}"]["loss"][-1]
        claim(f"{L} layers, {name}: median loss over that of {L} steps of gradient descent", median / plain, high=0.9)
        limits = {"low": 0.95} if name == "looped" else {}  # layers of their own may use other rates in every step
        claim(
            f"{L} layers, {name}: median loss over that of GD++ with one pair of rates",
            median / plus,
            high=1.05,
            **limits,
        )
        below = (seeds[name]["loss"][seeds[name].finite(), -1] < plain).mean()
        claim(f"{L} layers, {name}: share of seeds below {L} steps of gradient descent", below, low=0.8)
        claim(f"{L} layers, {name}: cosine of sensitivities with GD++ (median)", end(name, "cosine")[1], low=0.99)
    for name, run in seeds.items():
        claim(f"Seeds that diverged, {name}, of {run.num_seeds:,}", run.diverged, high=0)
    return out


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a / b - 1).max())


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """One layer; off the scale of training; depth."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.5, 2.9))
    panel(left, config, seeds, theory)
    left.set_title("(a) one layer learns one step")
    _band(middle, seeds["one_layer"], "cosine", "C0")
    middle.set(title="(b) sensitivities", xlabel="step of Adam", ylim=(0, 1.02))
    middle.set_ylabel(r"cosine of $\partial\hat{y}/\partial x_q$ with the step's", color="C0")
    twin = middle.twinx()
    _band(twin, seeds["one_layer"], "distance", "C1")
    twin.set(ylim=(0, 1.02))
    twin.set_ylabel("relative distance of predictions", color="C1")
    twin.grid(False)
    for letter, factor, color, label in (("x", 1.0, "C2", "inputs"), ("w", 2.5, "C4", "tasks")):
        a = factor * np.asarray(config.scales)
        low, median, high = seeds["one_layer"].quantile(f"loss_scaled_{letter}", (0.05, 0.5, 0.95))[:, -1]
        right.fill_between(a, low, high, color=color, alpha=0.25, linewidth=0)
        right.plot(a, median, color=color, marker="o", markersize=3, label=f"{label} scaled, seeds")
        label = "one step of gradient descent" if letter == "x" else None
        right.plot(a, theory["gd_one_layer"][f"loss_scaled_{letter}"][-1], "k--", linewidth=1.1, label=label)
    right.set(
        title="(c) off the scale of training", xlabel="factor at test time", ylabel="loss / loss of zero", yscale="log"
    )
    right.legend()
    names = [name for name in DEEP if name in seeds]
    deep, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.0), squeeze=False)
    for ax, letter, name in zip(axes[0], "de", names, strict=False):
        L, kinds = getattr(config, name), {"GD": f"gd_{name}", "GD++": f"gdpp_{name}"}
        _losses(ax, seeds[name], {label: theory[kind] for label, kind in kinds.items()}, f"{L} steps of ")
        shared = "that share weights" if name == "looped" else "with weights of their own"
        floor = 0.5 * theory[f"gdpp_{name}"]["loss"][-1]
        ax.set(title=f"({letter}) {L} layers {shared}", yscale="log", ylim=(floor, 0.3))
        ax.legend(ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return {"one_layer": figure, "depth": deep}


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """Loss of one layer, and of the best single step."""
    _losses(ax, seeds["one_layer"], {"GD, exact best rate": theory["gd_one_layer"]}, "one step of ")


def _losses(ax, run, curves, prefix: str) -> None:
    _band(ax, run, "loss", "C0", f"{run.coverage}, median and 5%–95%")
    for (label, curve), dashes in zip(curves.items(), ("--", ":"), strict=False):
        ax.plot(
            run.coords["step"][1], curve["loss"], color="black", linestyle=dashes, linewidth=1.1, label=prefix + label
        )
    ax.set(xlabel="step of Adam", ylabel=r"$\frac{1}{2}\,\mathrm{E}\,(y-\hat{y})^2$")
    ax.legend()


def _band(ax, run, name: str, color: str, label: str | None = None) -> None:
    panels.band(ax, run.coords["step"][1], run.quantile(name, (0.05, 0.5, 0.95)), color, label)


STUDY = Study(
    title="A trained layer of linear attention takes a step of gradient descent; deeper ones run GD++",
    paper="von Oswald et al. 2023, arXiv 2212.07677",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
