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

About a sixth of the seeds of the default settings stay below a test accuracy of .95 for long.

Conventions: splits over unordered pairs ((a, b) and (b, a) together; over ordered ones the test accuracy sits at the fraction
long before); squared error is a mean over pairs and outputs without 1/2; t = lr x steps, but times here are in steps. Cross-
entropy is taken so that small ones keep their digits in float32: with the usual form rounding makes AdamW spike once the loss
is below 3e-7. The MLP's closed form is for accuracy and the structure of neurons, not for amplitudes.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import icldyn as ic
from icldyn import checks
from icldyn.measures import over_seeds
from icldyn.plot import panels
from icldyn.study import Claim, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from icldyn.study import Trajectories

ARMS = {"inside": "only own frequencies left", "outside": "own frequencies taken out"}  # of the embedding
CONTROLS = {"undecayed": "no weight decay", "most": "most pairs train"}
SCORES = ("test_loss", "train_accuracy", "test_accuracy")


@dataclass(frozen=True)
class Config:
    """Settings, in the papers' letters."""

    seeds: int = 16
    """Seeds of every run but these three."""
    seeds_undecayed: int = 8
    """Seeds of the control without weight decay."""
    seeds_most: int = 8
    """Seeds of the control with most pairs in training; 0 leaves it out."""
    seeds_outside: int = 8
    """Seeds of the intervention that takes frequencies out; 0 leaves it out."""
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
    steps: int = 1600
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
    records: int = 65
    """Record times of every run."""


SCALES = {
    "smoke": Config(
        seeds=5, seeds_undecayed=4, seeds_most=0, seeds_outside=0, p=37, d=48, d_head=12, d_mlp=192, fraction=0.75, wd=3.0,
        steps=500, first=100,
        p_mlp=31, N=128, fraction_mlp=0.6, steps_mlp=600, records=21,
    ),
    "laptop": Config(),
    "paper": Config(
        seeds=32, seeds_undecayed=32, seeds_most=32, seeds_outside=32, p=113, d=128, d_head=32, d_mlp=512, fraction=0.3,
        split="ordered", lr=1e-3, wd=1.0, steps=40_000, first=2000,
        p_mlp=97, N=500, steps_mlp=4000, records=201,
    ),
}  # fmt: skip

SIZES = {
    "seeds": (2, 10**5),
    "seeds_undecayed": (2, 10**5),
    "seeds_most": (0, 10**5),
    "seeds_outside": (0, 10**5),
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

    objective, most = (_transformer(config, f) for f in (config.fraction, config.fraction_most))
    weights = {name: functools.partial(_half, name) for name in objective.model.shapes}
    adamw = _adamw(config.wd)
    out = {"transformer": _run(config, objective, adamw, weights)}
    out["undecayed"] = _run(config, objective, _adamw(0.0), seeds=config.seeds_undecayed)
    if config.seeds_most:
        out["most"] = _run(config, most, adamw, seeds=config.seeds_most)
    held = functools.partial(
        ic.held_frequencies.holding, inner=ic.optimisers.adamw, weight_decay=config.wd, count=config.count
    )
    for side, count in {"inside": config.seeds, "outside": config.seeds_outside}.items():
        for shuffled in (False, True) if count else ():
            start = ic.held_frequencies.arm(objective, first=config.first, inside=side == "inside", shuffled=shuffled)
            out[side + "_null" * shuffled] = _run(config, objective, held, start=start, seeds=count)
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


def _run(config: Config, objective, optimiser, measures=None, start=None, seeds=None):
    return ic.Experiment(
        objective,
        start or objective.start,
        seeds=seeds or config.seeds,
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


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """What is read off the weights afterwards, and the closed form of the quadratic network."""
    import jax

    run, objective = seeds["transformer"], _transformer(config, config.fraction)
    found = []
    with jax.enable_x64(True):
        order = ic.initial_params(objective.start, seeds=[int(s) for s in run.coords["seed"][1]])["order"].astype(float)
        read = jax.jit(functools.partial(_read, objective))
        distance, slope = jax.jit(_to_the_last, static_argnums=0), jax.jit(jax.grad(objective.loss))
        for seed in range(config.seeds):
            held = {name: run[name][seed].astype(float) for name in objective.model.shapes}
            values, space = read(held, order[seed]), _spaces(config.p, held)
            r = 2 * max(int(values["keys"][0].sum()), 1)
            values |= space[1] | {"distance": distance(r, space[0])}
            found.append(values | {"chance": np.full(config.records, ic.subspace.chance(r, config.p))})
        some = range(0, config.records, 1 + config.records // 8)
        slopes = [slope({name: w[k] for name, w in held.items()} | {"order": order[-1]}) for k in some]
    progress = {name: np.stack([np.asarray(one[name]) for one in found]) for name in found[0]}
    s = np.stack([np.linalg.svd(one[name], compute_uv=False) for one in slopes for name in ("W_Q", "W_K")])
    ends = {"rank_one": (s[..., 1] / s[..., 0]).max(), "closed_form": _closed_form(config)}
    dims = dict.fromkeys(ends, ("time",))
    checks_made = ic.Trajectory({n: np.array([v]) for n, v in ends.items()}, dims, {"t": (("time",), run.t[-1:])})
    return {"progress": _as_trajectory(run, progress), "checks": checks_made}


def _closed_form(config: Config) -> float:
    """Accuracy of the closed form with as many neurons, mean of three draws of phases."""
    form, p, N, rng = ic.modular_features, config.p_mlp, config.N, np.random.default_rng(0)
    drawn = [form.weights(p, form.cycled(p, N), *rng.uniform(0, 2 * np.pi, (2, N))) for _ in range(3)]
    return float(np.mean([form.accuracy(held) for held in drawn]))


def _as_trajectory(run, values: dict[str, np.ndarray]):
    axes = {"keys": ("frequency",), "ov_distance": ("head",), "ov_rank": ("head",)}
    dims = {name: ("seed", "time", *axes.get(name, ())) for name in values}
    coords = {name: run.coords[name] for name in ("t", "step", "seed")}
    return ic.Trajectory(values, dims, coords)


def _read(objective, held, order):
    """Fourier measures of one seed at all records, with the key frequencies of the last; `held` are its weights (T, ...)."""
    import jax
    import jax.numpy as jnp

    fourier, p = ic.fourier, objective.task.p
    pairs, train = objective.task.all_pairs(order.dtype), objective.task.training(order)
    last = {name: w[-1] for name, w in held.items()}
    shares = fourier.neuron_shares(objective.model.neurons(last, pairs.a, pairs.b).reshape(p, p, -1))
    keys = fourier.key_frequencies(shares)
    weight = jnp.zeros((p, p)).at[train.a, train.b].add(train.weight)

    def at(weights):
        L, power = objective.logits(weights | {"order": order}), fourier.power(weights["W_E"][:p])
        return {
            "keys": keys,
            "explained": jnp.mean(jnp.max(shares, axis=0) > 0.85),
            "restricted": fourier.cross_entropy(fourier.restricted(L, keys), 1 - weight),
            "excluded": fourier.cross_entropy(fourier.excluded(L, keys), weight),
            "top_share": fourier.top_share(power),
            "gini": fourier.gini(power),
            "key_share": power @ keys / jnp.sum(power),
            "squares": sum(jnp.sum(w**2) for w in weights.values()),
        }

    return jax.lax.map(at, held)


def _spaces(p: int, held):
    """Of one seed at all records: left singular vectors of W_E[:p]; ranks, and OV's distance to its last record.

    By LAPACK, which stays out of compiled programs.
    """
    import jax

    rank, every = ic.spectra.effective_rank_of, jax.vmap
    E = every(ic.spectra.svd)(held["W_E"][:, :p])
    ov = every(every(ic.spectra.ov))(held["W_V"], held["W_O"])
    qk = every(every(ic.spectra.qk))(held["W_Q"], held["W_K"])
    last = jax.tree.map(lambda a: a[-1], ov)
    return E, {
        "ov_distance": every(every(ic.subspace.distance), (0, None))(ov, last),
        "embedding_rank": every(rank)(E.s),
        "ov_rank": every(every(rank))(ov.s),
        "qk_rank": every(every(rank))(qk.s).mean(1),
    }


def _to_the_last(r: int, E):
    """Chordal distance (T,) of the r leading left singular vectors to those of the last record."""
    import jax

    last = jax.tree.map(lambda a: a[-1], E)
    return jax.vmap(lambda one: ic.subspace.chordal_distance(one, last, min(r, E.s.shape[-1]), "column"))(E)


def crossing(step: np.ndarray, value: np.ndarray, level: float, rising: bool = True) -> np.ndarray:
    """The step at which every row of `value` (S, T) first passes `level`, between records by a line; inf if it does not."""
    passed = value >= level if rising else value <= level
    out = np.full(len(value), np.inf)
    for seed in np.flatnonzero(passed.any(1)):
        k = passed[seed].argmax()
        if k == 0:
            out[seed] = step[0]
            continue
        before, after = value[seed, k - 1 : k + 1]
        out[seed] = step[k - 1] + (level - before) / (after - before) * (step[k] - step[k - 1])
    return out


def _step(run) -> np.ndarray:
    return run.coords["step"][1]


def _at(run, name: str, level: float) -> np.ndarray:
    """Steps at which an accuracy of the seeds reaches a level (S,)."""
    return crossing(_step(run), run[f"{name}_accuracy"], level)


def _lags(run, progress) -> dict[str, np.ndarray]:
    """Step at which a measure has gone half its way, less that at which the test accuracy is 1/2; finite ones (S,).

    A distance has gone half way at half its chance level, a loss at half its start.
    """
    step, grokked = _step(run), _at(run, "test", 0.5)
    restricted, ov = progress["restricted"], progress["ov_distance"].mean(-1)
    halves = {
        "embedding": crossing(step, progress["distance"] / progress["chance"], 0.5, rising=False),
        "OV, write side": crossing(step, ov / ov[:, :1], 0.5, rising=False),
        "restricted loss": crossing(step, restricted / restricted[:, :1], 0.5, rising=False),
    }
    both = {name: np.isfinite(half) & np.isfinite(grokked) for name, half in halves.items()}
    return {name: half[both[name]] - grokked[both[name]] for name, half in halves.items() if both[name].sum() > 1}


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the papers say and what was measured before, each decided by a number."""
    out: list[Claim] = []

    def claim(sentence: str, measured: Any, **limits) -> None:
        out.append(Claim(sentence, float(measured), **limits))

    _claims_of_grokking(config, seeds["transformer"], theory["progress"], claim)
    _claims_of_coincidence(config, seeds["transformer"], theory["progress"], claim)
    _claims_of_controls(seeds, claim)
    _claims_of_interventions(seeds, claim)
    _claims_of_mlp(config, seeds["mlp"], claim)
    claim(
        "Gradients of W_Q and W_K: second singular value over the first, largest",
        theory["checks"]["rank_one"][0],
        high=1e-6,
    )
    claim(
        "Closed form of the quadratic network: accuracy over all pairs", theory["checks"]["closed_form"][0], low=0.999
    )
    total = sum(run.finite().size for run in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(run.diverged for run in seeds.values()), high=0)
    return out


def _known(config: Config, low: float, high: float) -> dict[str, float]:
    """Limits of what was measured at p = 53 before."""
    return {"low": low, "high": high} if config == dataclasses.replace(SCALES["laptop"], seeds=config.seeds) else {}


def _claims_of_grokking(config: Config, run, progress, claim) -> None:
    train, half = _at(run, "train", 0.99), _at(run, "test", 0.5)
    late = _at(run, "test", 0.95)
    claim(
        "Share of seeds whose training accuracy is .99 before their test accuracy is .5",
        (train < half).mean(),
        low=0.95,
    )
    claim("Step of training accuracy .99, median", np.median(train), **_known(config, 50, 200))
    claim("Step of test accuracy .5, median", np.median(half), **_known(config, 325, 1300))
    claim(
        "Most seeds have a test accuracy of .95 before the end (share)",
        np.isfinite(late).mean(),
        **_known(config, 0.5, 1),
    )
    rank = progress["embedding_rank"]
    falls = (rank[:, 0] > rank[:, -1]).mean()
    claim("Share of seeds whose embedding's effective rank falls from start to end", falls, low=0.95)
    for name, value in (("embedding", rank), ("OV", progress["ov_rank"].mean(-1))):
        ends = np.median(value[:, [0, -1]], axis=0)
        claim(f"Effective rank of {name} at the start, median", ends[0])
        claim(f"Effective rank of {name} at the end, median", ends[1], high=0.9 * ends[0])
    claim(
        "Effective rank of QK at the end, largest mean over heads: 1 whatever happens",
        progress["qk_rank"][:, -1].max(),
        high=1.5,
    )
    worst = np.where(_step(run) >= late[:, None], run["loss"], 0).max()
    claim("Training loss after a test accuracy of .95, largest: no late instability", worst, high=0.05)
    claim("Key frequencies, mean over seeds", progress["keys"][:, 0].sum(1).mean(), low=1)
    claim(
        "Share of embedding power in the key frequencies at the end, median",
        np.median(progress["key_share"][:, -1]),
        low=0.5,
    )


def _claims_of_coincidence(config: Config, run, progress, claim) -> None:
    lags, step = _lags(run, progress), _step(run)
    half, train = _at(run, "test", 0.5), _at(run, "train", 0.99)
    delay = np.median((half - train)[np.isfinite(half)])
    claim("Delay: steps from training accuracy .99 to test accuracy .5, median", delay, low=0)
    for name, lag in lags.items():
        median, low, high = over_seeds.interval(lag, np.median)
        limit = {"high": 0.0} if name == "restricted loss" else {}
        claim(f"Steps from test accuracy .5 until {name} is half way, median over {len(lag)} seeds", median, **limit)
        claim(f"Same, {name}: low end of the 95 % bootstrap interval", low)
        claim(f"Same, {name}: high end", high)
    before = (lags["restricted loss"] < 0).mean()
    claim("Share of seeds whose restricted loss is half way before their test accuracy is", before, low=0.9)
    excluded, memorised = progress["excluded"], step[None] >= train[:, None]
    least = np.where(memorised, excluded, np.inf).min(1)
    rise, limit = np.median(excluded[:, -1] / least), {"low": 2.0} if config.p == 53 else {}
    claim("Excluded loss at the end over its least value once memorised, median: it rises", rise, **limit)


def _claims_of_controls(seeds: Trajectories, claim) -> None:
    run = seeds["undecayed"]
    claim("Without weight decay: training accuracy at the end, least", run["train_accuracy"][:, -1].min(), low=0.99)
    claim("Without weight decay: test accuracy at the end, largest", run["test_accuracy"][:, -1].max(), high=0.5)
    if "most" in seeds:
        delays = [_at(seeds[name], "test", 0.5) - _at(seeds[name], "train", 0.99) for name in ("most", "transformer")]
        most, base = (np.median(d[np.isfinite(d)]) for d in delays)
        claim("Most pairs train: delay over that of the transformer, medians", most / base, high=0.5)


def _moved(seeds: Trajectories, arm: str) -> np.ndarray:
    """Change of the step of test accuracy .5 by an intervention, by seed (S,); one not in time is at the end."""
    end = _step(seeds["transformer"])[-1]
    with_, without = (np.minimum(_at(seeds[name], "test", 0.5), end) for name in (arm, "transformer"))
    both = min(len(with_), len(without))
    return with_[:both] - without[:both]


def _claims_of_interventions(seeds: Trajectories, claim) -> None:
    for side, title in ARMS.items():
        if side not in seeds:
            continue
        own, null = (_moved(seeds, arm) for arm in (side, f"{side}_null"))
        for words, moved in (("", own), (", null", null)):
            median, low, high = over_seeds.interval(moved, np.median)
            claim(f"Embedding, {title}{words}: change of the step of test accuracy .5, median", median)
            claim(f"Embedding, {title}{words}: low end of the 95 % bootstrap interval", low)
            claim(f"Embedding, {title}{words}: high end", high)
        limits = ({"low": 0.7}, {"high": 0.3}) if side == "inside" else ({}, {})  # taken out, others take their place
        claim(
            f"Embedding, {title}: share of seeds earlier than with a random subspace", (own < null).mean(), **limits[0]
        )
        beyond = (null <= np.median(own)).mean()
        claim(f"Embedding, {title}: share of the null distribution at or below the median", beyond, **limits[1])
        if side == "inside":
            earlier = (own < 0).mean()
            claim(f"Embedding, {title}: share of seeds earlier than without the intervention", earlier, low=0.75)
    own, null = (seeds[arm]["test_accuracy"][:, -1] for arm in ("inside", "inside_null"))
    claim("Only own frequencies left: test accuracy at the end, median", np.median(own), low=0.9)
    claim("Only a random subspace left: the same", np.median(null), high=0.3)


def _claims_of_mlp(config: Config, run, claim) -> None:
    train, test = _at(run, "train", 0.99), _at(run, "test", 0.99)
    small = (config.p_mlp, config.N) == (31, 128)
    limits = [{"low": 75, "high": 300}, {"low": 225, "high": 1100}] if small else [{}, {}]
    if (config.p_mlp, config.N) == (53, 256):
        limits = [{"low": 225, "high": 900}, {"low": 625, "high": 2700}]
    claim("Quadratic network: step of training accuracy .99, median", np.median(train), **limits[0])
    claim("Quadratic network: step of test accuracy .99, median", np.median(test), **limits[1])
    claim("Quadratic network: share of seeds that memorise first", (train < test).mean(), low=0.95)
    start = run["participation"][:, 0].mean() / ic.modular_features.random_participation(config.p_mlp)
    claim("Quadratic network: participation ratio of a neuron at the start over 4/(p + 1)", start, low=0.9, high=1.1)
    ends = run["participation"][:, -1] / run["participation"][:, 0]
    claim("Quadratic network: participation ratio, end over start, least", ends.min(), low=2)
    claim(
        "Quadratic network: cos(phi1 + phi2 - phi3) of the neurons at the end, least",
        run["alignment"][:, -1].min(),
        low=0.8,
    )


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """Grokking and what goes with it, the interventions, and the quadratic network."""
    import matplotlib.pyplot as plt

    out = {}
    figure, axes = plt.subplots(2, 3, figsize=(11.1, 6.2))
    _draw_grokking(axes.ravel(), seeds, theory["progress"])
    out["grokking"] = figure
    arms = [side for side in ARMS if side in seeds]
    figure, axes = panels.row(len(arms) + 1)
    _draw_arms(axes, arms, config, seeds)
    out["intervention"] = figure
    figure, axes = panels.row(2)
    _draw_mlp(axes, config, seeds["mlp"])
    out["mlp"] = figure
    return out


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """Accuracies of the transformer, and the embedding's distance."""
    run = seeds["transformer"]
    _band(ax, run, run["train_accuracy"], "C0", "training")
    _band(ax, run, run["test_accuracy"], "C1", "test")
    _band(ax, run, theory["progress"]["distance"], "C2", "embedding's distance")
    ax.set(xlabel="step", ylabel="accuracy, distance")
    ax.legend(fontsize=7)


def _band(ax, run, values: np.ndarray, color: str, label: str | None = None) -> None:
    panels.band(ax, _step(run), np.quantile(values, (0.05, 0.5, 0.95), axis=0), color, label)


def _draw_grokking(axes, seeds, progress) -> None:
    run = seeds["transformer"]
    accuracy, losses, distances, aligned, lags, ranks = axes
    _band(accuracy, run, run["train_accuracy"], "C0", "training")
    _band(accuracy, run, run["test_accuracy"], "C1", "test")
    for name, dashes in zip(CONTROLS, ("--", ":"), strict=True):
        if name in seeds:
            label = f"test, {CONTROLS[name]}"
            accuracy.plot(
                _step(seeds[name]), seeds[name].quantile("test_accuracy", (0.5,))[0], f"k{dashes}", label=label
            )
    accuracy.set(xlabel="step", ylabel="accuracy", title=f"(a) {run.coverage}, 5–95 % band")
    accuracy.legend(fontsize=7, loc="center right")
    for k, (value, label) in enumerate(
        [
            (run["loss"], "training"),
            (run["test_loss"], "test"),
            (progress["restricted"], "restricted"),
            (progress["excluded"], "excluded"),
        ]
    ):
        _band(losses, run, np.maximum(value, 1e-8), f"C{k}", label)
    losses.set(xlabel="step", ylabel="cross-entropy", yscale="log", title="(b) progress measures")
    losses.legend(fontsize=7, loc="lower left")
    _band(distances, run, progress["distance"], "C2", "embedding, chordal")
    _band(distances, run, progress["ov_distance"].mean(-1), "C4", "OV, write side, mean of heads")
    distances.axhline(progress["chance"].mean(), color="C2", linestyle=":", label="chance, embedding")
    chance = ic.subspace.chance(*run["W_O"].shape[-2:])
    distances.axhline(float(chance), color="C4", linestyle=":", label="chance, OV")
    distances.set(xlabel="step", ylabel="distance to the last record", title="(c) subspaces", ylim=(-0.03, 1.35))
    distances.legend(fontsize=7, loc="upper right")
    _draw_aligned(aligned, run, progress)
    _draw_lags(lags, run, progress)
    _band(ranks, run, progress["embedding_rank"], "C2", "$W_E$")
    _band(ranks, run, progress["ov_rank"].mean(-1), "C4", "OV, mean of heads")
    _band(ranks, run, progress["qk_rank"], "C5", "QK, mean of heads")
    ranks.set(xlabel="step", ylabel="effective rank", title="(f) effective ranks")
    ranks.legend(fontsize=7)


def _draw_aligned(ax, run, progress) -> None:
    """Every seed on its own clock: steps from the one at which its test accuracy is 1/2."""
    step, half = _step(run), _at(run, "test", 0.5)
    kept, width = np.isfinite(half), 0.4 * step[-1]
    clock = np.linspace(-width, width, 81)
    shown = {"test accuracy": run["test_accuracy"], "embedding": progress["distance"] / progress["chance"]}
    for (label, values), color in zip(shown.items(), ("C1", "C2"), strict=True):
        curves = [
            np.interp(clock, step - at, v, left=np.nan, right=np.nan)
            for at, v in zip(half[kept], values[kept], strict=True)
        ]
        seen = np.isfinite(curves).sum(0) > kept.sum() / 2
        panels.band(ax, clock[seen], np.nanquantile(np.array(curves)[:, seen], (0.05, 0.5, 0.95), axis=0), color, label)
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(
        xlabel="step, from test accuracy 1/2",
        ylabel="accuracy, distance over chance",
        title="(d) each seed on its own clock",
    )
    ax.legend(fontsize=7)


def _draw_lags(ax, run, progress) -> None:
    for k, ((name, lag), color) in enumerate(zip(_lags(run, progress).items(), ("C2", "C4", "C3"), strict=False)):
        rng = np.random.default_rng(k)
        ax.plot(lag, k + rng.uniform(-0.15, 0.15, len(lag)), "o", markersize=3, color=color, alpha=0.6)
        median, low, high = over_seeds.interval(lag, np.median)
        ax.plot([low, high], [k + 0.28] * 2, color="k", linewidth=1.5)
        ax.plot(median, k + 0.28, "k|", markersize=8)
        ax.text(0.02, k + 0.36, name, transform=ax.get_yaxis_transform(), fontsize=7)
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(ylim=(-0.4, k + 0.7), yticks=[], xlabel="step of half way, less that of test accuracy 1/2")
    ax.set_title("(e) a point a seed; median, 95 %")


def _draw_arms(axes, arms: list[str], config: Config, seeds) -> None:
    for ax, side, letter in zip(axes, arms, "ab", strict=False):
        for arm, color, label in (
            ("transformer", "0.5", "no intervention"),
            (side, "C0", "own frequencies"),
            (f"{side}_null", "C3", "random subspace"),
        ):
            _band(ax, seeds[arm], seeds[arm]["test_accuracy"], color, label)
        ax.axvline(config.first, color="k", linestyle=":", linewidth=0.8)
        ax.set(xlabel="step", ylabel="test accuracy", title=f"({letter}) {ARMS[side]}")
        ax.legend(fontsize=7)
    ax, end = axes[-1], config.steps
    shown = [arm for side in arms for arm in (side, f"{side}_null")]
    for k, arm in enumerate(shown):
        moved = _moved(seeds, arm)
        rng, color = np.random.default_rng(k), "C3" if arm.endswith("null") else "C0"
        ax.plot(k + rng.uniform(-0.15, 0.15, len(moved)), moved, "o", markersize=3, color=color, alpha=0.6)
        median, low, high = over_seeds.interval(moved, np.median)
        ax.plot([k + 0.3] * 2, [low, high], "k", linewidth=1.5)
        ax.plot(k + 0.3, median, "k_", markersize=8)
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    names = [f"{arm.removesuffix('_null')},\n{'random' if arm.endswith('null') else 'own'}" for arm in shown]
    ax.set(xticks=range(len(shown)), xticklabels=names, ylabel=f"change of its step, at most to {end}")
    ax.set_title(f"({'abc'[len(arms)]}) test accuracy 1/2, seed by seed")


def _draw_mlp(axes, config: Config, run) -> None:
    accuracy, neurons = axes
    _band(accuracy, run, run["train_accuracy"], "C0", "training")
    _band(accuracy, run, run["test_accuracy"], "C1", "test")
    accuracy.set(xlabel="step", ylabel="accuracy", title=f"(a) quadratic network, {run.coverage}")
    accuracy.legend(fontsize=7)
    _band(neurons, run, run["participation"], "C2", "participation ratio, mean of neurons")
    _band(neurons, run, run["alignment"], "C4", r"$\cos(\varphi_1+\varphi_2-\varphi_3)$")
    gaussian = ic.modular_features.random_participation(config.p_mlp)
    neurons.axhline(gaussian, color="k", linestyle="--", linewidth=1, label="Gaussian neurons, $4/(p+1)$")
    neurons.axhline(1, color="k", linestyle=":", linewidth=1, label="closed form")
    neurons.set(xlabel="step", title="(b) single frequencies, and their phases")
    neurons.legend(fontsize=7, loc="center right", bbox_to_anchor=(1, 0.72))


STUDY = Study(
    title="Grokking in modular addition: subspaces, progress measures and an intervention, over seeds",
    paper="Mainali and Teixeira 2025, arXiv 2504.12916",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
