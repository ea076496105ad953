"""Mainali and Teixeira 2025 (arXiv 2504.12916): grokking, and the subspaces that are found when it happens.

Networks trained on some pairs (a, b) -> a + b mod p first memorise them (training accuracy 1, test accuracy at chance) and
generalise long after. The paper says that macroscopic measures change then: the distance of the embedding's and of OV's subspace
to their final ones falls with the test error. Here that is a distribution over seeds, each with weights and a split of its own:
- `transformer`: one layer in the layout of Nanda et al. 2023 (arXiv 2301.05217), cross-entropy, AdamW with weight decay;
- `undecayed`, the same without weight decay, and `most`, the same with most pairs in training: the controls, in which
  generalisation is not delayed, for it does not come or comes at once;
- `outside` and `inside`, an intervention: from step `first` on W_E[:p] is kept outside or inside the span of the `count`
  frequencies that lead in the seed's own embedding at that step; `outside_null` and `inside_null` do the same with the tokens of
  that span in random order, a random subspace of the same dimension. Seeds are paired: they start as those of `transformer`;
- `mlp`: Gromov's quadratic network (arXiv 2301.02679), squared error, gradient descent with momentum and no weight decay.

Read off afterwards ("progress" and "gradient"), with the key frequencies of the seed's last record: restricted and excluded loss
(Nanda et al.), the chordal distance of the leading r = 2 x key frequencies left singular vectors of W_E[:p] to the last ones,
the distance of every head's OV on the write side, effective ranks, power of the embedding. M_inf is the last record: distances
end at 0, and the late part of that of OV is partly an artefact, for AdamW goes on turning idle directions. Scores of queries
and keys say nothing here: their gradients have rank 1 in this layout, and with weight decay QK goes to rank 1 in any case.

Conventions: splits over unordered pairs ((a, b) and (b, a) together; over ordered ones the test accuracy sits at the fraction
long before); squared error is a mean over pairs and outputs without 1/2; t = lr x steps, but times here are in steps. Cross-
entropy is taken so that small ones keep their digits in float32: with the usual form rounding makes AdamW spike once the loss
is below 3e-7. The MLP's closed form is for accuracy and the structure of neurons, not for amplitudes.
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

ARMS = {"outside": "own frequencies taken out", "inside": "only own frequencies left"}  # of the embedding
CONTROLS = {"undecayed": "no weight decay", "most": "most pairs train"}
SCORES = ("test_loss", "train_accuracy", "test_accuracy")


@dataclass(frozen=True)
class Config:
    """Settings, in the papers' letters."""

    seeds: int = 16
    """Seeds of every run."""
    p: int = 53
    """Tokens of the transformer."""
    d: int = 64
    """Width."""
    d_head: int = 16
    """Width of each of the four heads."""
    d_mlp: int = 256
    """Neurons of the transformer."""
    fraction: float = 0.6
    """Of pairs that train."""
    fraction_most: float = 0.9
    """Of pairs that train in the control `most`."""
    split: str = "unordered"
    """Whether (a, b) and (b, a) go together; "ordered" leaks."""
    lr: float = 3e-3
    """Learning rate of AdamW."""
    wd: float = 2.0
    """Weight decay."""
    steps: int = 1500
    """Steps of the transformer."""
    first: int = 200
    """Step from which on the embedding is kept to a subspace."""
    count: int = 4
    """Frequencies that span it."""
    p_mlp: int = 53
    """Tokens of the quadratic network."""
    N: int = 256
    """Its neurons."""
    fraction_mlp: float = 0.5
    """Of its pairs that train."""
    lr_mlp: float = 10.0
    """Its learning rate, with momentum 0.9."""
    steps_mlp: int = 1400
    """Its steps."""
    records: int = 61
    """Record times of every run."""


SCALES = {
    "smoke": Config(
        seeds=8, p=37, d=48, d_head=12, d_mlp=192, fraction=0.75, wd=3.0, steps=600, first=100,
        p_mlp=31, N=128, fraction_mlp=0.6, steps_mlp=600, records=25,
    ),
    "laptop": Config(),
    "paper": Config(
        seeds=32, p=113, d=128, d_head=32, d_mlp=512, fraction=0.3, split="ordered", lr=1e-3, wd=1.0, steps=40_000, first=2000,
        p_mlp=97, N=500, steps_mlp=4000, records=201,
    ),
}  # fmt: skip

SIZES = {
    "seeds": (2, 10**5),
    "p": (5, 1024),
    "d": (1, 10**4),
    "d_head": (1, 10**4),
    "d_mlp": (1, 10**5),
    "steps": (2, 2**31 - 2),
    "first": (1, 2**24),
    "count": (1, 500),
    "p_mlp": (5, 1024),
    "N": (1, 10**5),
    "steps_mlp": (2, 2**31 - 2),
    "records": (3, 10**4),
}
SHARE = {"above": 0, "most": 0.99}
REALS = {
    "fraction": SHARE, "fraction_most": SHARE, "fraction_mlp": SHARE, "lr": {"above": 1e-12, "most": 1e3},
    "wd": {"least": 0, "most": 1e3}, "lr_mlp": {"above": 1e-12, "most": 1e6},
}  # fmt: skip


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def odd(name: str) -> None:
        if settings.size(name) % 2 == 0:
            raise checks.refuse(name, "be odd", getattr(config, name))

    def pairs(name: str, p: str) -> None:
        settings.number(name), settings.size(p)
        if getattr(config, name) * getattr(config, p) * (getattr(config, p) + 1) < 2:
            raise checks.refuse(name, "leave a pair to train on", getattr(config, name))

    def below() -> None:
        if settings.size("count") > settings.size("p") // 2:
            raise checks.refuse("count", f"be at most {config.p // 2}, the frequencies of `p`", config.count)
        if settings.size("first") >= settings.size("steps"):
            raise checks.refuse("first", f"be below `steps`, {config.steps}", config.first)

    settings.gather(
        lambda: odd("p"),
        lambda: odd("p_mlp"),
        below,
        lambda: checks.one_of("split", config.split, ("ordered", "unordered")),
        *(
            functools.partial(pairs, name, p)
            for name, p in (("fraction", "p"), ("fraction_most", "p"), ("fraction_mlp", "p_mlp"))
        ),
    )


def _transformer(config: Config, fraction: float):
    task = ic.modular(config.p, fraction=fraction, split=config.split)
    model = ic.modular_transformer(config.p, d=config.d, d_head=config.d_head, d_mlp=config.d_mlp)
    return ic.modular_pairs(task, model)


def _mlp(config: Config):
    task = ic.modular(config.p_mlp, fraction=config.fraction_mlp, split=config.split)
    return ic.modular_pairs(task, ic.quadratic_mlp(config.p_mlp, config.N), "squared")


def experiments(config: Config) -> dict[str, Any]:
    """The transformer, its controls and interventions, and the quadratic network."""
    check(config)
    import optax
    from jax.tree_util import Partial

    from icldyn.engine.descend import optimiser_factory

    objective, most = (_transformer(config, f) for f in (config.fraction, config.fraction_most))
    weights = {name: functools.partial(_half, name) for name in objective.model.shapes}
    adamw = _adamw(config.wd)
    out = {"transformer": _run(config, objective, adamw, weights)}
    out |= {"undecayed": _run(config, objective, _adamw(0.0)), "most": _run(config, most, adamw)}
    steered = functools.partial(ic.optimisers.steered, inner=optimiser_factory(adamw), count=config.count)
    for side in ARMS:
        for shuffled in (False, True):
            start = Partial(_steered_start, objective, float(config.first), side == "inside", shuffled)
            out[side + "_null" * shuffled] = _run(config, objective, steered, start=start)
    mlp = _mlp(config)
    out["mlp"] = ic.Experiment(
        mlp,
        mlp.start,
        seeds=config.seeds,
        lr=config.lr_mlp,
        steps=config.steps_mlp,
        measures=_scores(mlp) | {"participation": _participation, "alignment": _alignment},
        optimiser=functools.partial(optax.sgd, momentum=0.9),
        records=config.records,
    )
    return out


def _run(config: Config, objective, optimiser, measures=None, start=None):
    return ic.Experiment(
        objective,
        start or objective.start,
        seeds=config.seeds,
        lr=config.lr,
        steps=config.steps,
        measures=_scores(objective) | (measures or {}),
        optimiser=optimiser,
        records=config.records,
    )


def _adamw(wd: float):
    return functools.partial(ic.optimisers.adamw, weight_decay=wd)


def _scores(objective) -> dict[str, Any]:
    return {name: getattr(objective, name) for name in SCORES}


def _half(name: str, params):
    """A weight in half precision: relative errors of 5e-4, below all that is read off."""
    return params[name].astype("float16")


def _participation(params):
    return ic.fourier.inverse_participation(params["A"]).mean()


def _alignment(params):
    return ic.fourier.phase_alignment(*(params[name] for name in ("A", "B", "W")))


def _steered_start(objective, first, inside, shuffled, key, scale):
    """The start of a seed of `transformer`, and what `steered` is told."""
    import jax
    import jax.numpy as jnp

    p = objective.task.p
    shuffle = jax.random.permutation(jax.random.fold_in(key, 1), p)
    shuffle = jnp.where(shuffled, shuffle, jnp.arange(p, dtype=shuffle.dtype)).astype(scale.dtype)
    return objective.start(key, scale) | ic.optimisers.steering(first, inside, shuffle)


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """What is read off the weights afterwards, and the closed form of the quadratic network."""
    import jax

    run, objective = seeds["transformer"], _transformer(config, config.fraction)
    with jax.enable_x64(True):
        order = ic.initial_params(objective.start, seeds=[int(s) for s in run.coords["seed"][1]])["order"]
        read = jax.jit(functools.partial(_read, objective))
        found = []
        for seed in range(config.seeds):
            weights = {name: run[name][seed].astype(float) for name in objective.model.shapes}
            held = weights | {"order": np.broadcast_to(order[seed].astype(float), (config.records, len(order[seed])))}
            found.append(read(held) | _subspaces(weights, np.asarray(read(held)["keys"][0])))
        slope = _second_singular_value(objective, held)
    progress = {name: np.stack([np.asarray(one[name]) for one in found]) for name in found[0]}
    rng, p = np.random.default_rng(0), config.p_mlp
    closed = [
        ic.modular_features.accuracy(
            ic.modular_features.weights(
                p, ic.modular_features.cycled(p, config.N), *rng.uniform(0, 2 * np.pi, (2, config.N))
            )
        )
        for _ in range(3)
    ]
    ends = {"rank_one": np.array([slope]), "closed_form": np.array([np.mean(closed)])}
    return {
        "progress": _as_trajectory(run, progress),
        "checks": ic.Trajectory(ends, dict.fromkeys(ends, ("time",)), {"t": (("time",), run.t[-1:])}),
    }


def _as_trajectory(run, values: dict[str, np.ndarray]):
    axes = {"keys": ("frequency",), "ov_distance": ("head",), "ov_rank": ("head",)}
    dims = {name: ("seed", "time", *axes.get(name, ())) for name in values}
    coords = {name: run.coords[name] for name in ("t", "step", "seed")}
    return ic.Trajectory(values, dims, coords)


def _read(objective, held):
    """Fourier measures of one seed at all records, with the key frequencies of the last; `held` are its params (T, ...)."""
    import jax
    import jax.numpy as jnp

    fourier, p = ic.fourier, objective.task.p
    last = jax.tree.map(lambda w: w[-1], held)
    pairs = objective.task.all_pairs(last["order"].dtype)
    shares = fourier.neuron_shares(objective.model.neurons(last, pairs.a, pairs.b).reshape(p, p, -1))
    keys = fourier.key_frequencies(shares)
    train = objective.task.training(last["order"])
    weight = jnp.zeros((p, p)).at[train.a, train.b].add(train.weight)

    def at(params):
        L, power = objective.logits(params), fourier.power(params["W_E"][:p])
        return {
            "keys": keys,
            "explained": jnp.mean(jnp.max(shares, axis=0) > 0.85),
            "restricted": fourier.cross_entropy(fourier.restricted(L, keys), 1 - weight),
            "excluded": fourier.cross_entropy(fourier.excluded(L, keys), weight),
            "top_share": fourier.top_share(power),
            "gini": fourier.gini(power),
            "key_share": power @ keys / jnp.sum(power),
            "squares": sum(jnp.sum(params[name] ** 2) for name in objective.model.shapes),
        }

    return jax.lax.map(at, held)


def _subspaces(weights: dict[str, np.ndarray], keys: np.ndarray) -> dict[str, Any]:
    """Ranks of one seed, and distances to its last record: LAPACK, which stays out of programs that train."""
    import jax

    p = weights["W_U"].shape[-1]
    r = min(2 * max(int(keys.sum()), 1), weights["W_E"].shape[-1])
    E = jax.vmap(ic.spectra.svd)(weights["W_E"][:, :p])
    ov = jax.vmap(jax.vmap(ic.spectra.ov))(weights["W_V"], weights["W_O"])
    qk = jax.vmap(jax.vmap(ic.spectra.qk))(weights["W_Q"], weights["W_K"])
    last_E, last_ov = (jax.tree.map(lambda a: a[-1], one) for one in (E, ov))
    rank = ic.spectra.effective_rank_of
    chordal = functools.partial(ic.subspace.chordal_distance, r=r, side="column")
    return {
        "distance": jax.vmap(lambda one: chordal(one, last_E))(E),
        "chance": np.full(len(weights["W_E"]), ic.subspace.chance(r, p)),
        "ov_distance": jax.vmap(lambda one: jax.vmap(ic.subspace.distance)(one, last_ov))(ov),
        "embedding_rank": jax.vmap(rank)(E.s),
        "ov_rank": jax.vmap(jax.vmap(rank))(ov.s),
        "qk_rank": jax.vmap(jax.vmap(rank))(qk.s).mean(1),
    }


def _second_singular_value(objective, held) -> float:
    """Largest over records, heads, W_Q and W_K of the gradient's second singular value over its first."""
    import jax

    slopes = jax.lax.map(jax.grad(objective.loss), jax.tree.map(lambda w: w[::4], held))
    s = np.concatenate([np.linalg.svd(np.asarray(slopes[name]), compute_uv=False) for name in ("W_Q", "W_K")])
    return float((s[..., 1] / s[..., 0]).max())
