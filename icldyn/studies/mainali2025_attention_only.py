"""Mainali and Teixeira 2025 (arXiv 2504.12916), non-linear part: in-context learning emerges where ranks and subspaces change.

Attention-only transformers of 1 to 4 layers learn in-context Markov chains: every sequence has a transition matrix of its own,
and the next token is to be predicted. Networks first count tokens (the unigram level, a plateau), then, with two layers or more,
abruptly learn to count transitions: a head that looks one token back, and one that looks for what came after earlier copies. One
layer never does. Around that, as the paper has it, the effective rank of W_QK without its leading directions dips, and the space
that W_QK spans is early where it ends.

Here every seed has weights and a stream of data of its own, and all are measured on one set of sequences:
- `L1` ... `L4`: that many layers. When every seed emerges (t10, t50, t90: which record first has so much of the way from the
  unigram level to the seed's own end), when er_k of the induction layer is least, and how far key, query, read and write side of
  W_QK and W_OV are from where they end;
- `own`, `random`, `within`: the first seeds of two layers again, with an intervention from step `since` on, on the plateau: keys
  are made blind to the `rank` leading directions of their own key side, or, as null distributions, to as many random ones of the
  stream, or of the space that the head's own keys span.

Exact: the Bayes and unigram predictors. Ranks and distances are taken of the recorded weights, after training.

Conventions: rows are tokens, x W; W_QK = W_Q W_K^T, so that its rows are the key side; time in steps; losses in nats; late = mean
of the last quarter of the positions. M_inf is the last checkpoint, later than what is plotted. The least rank is looked for from
step 175 on: before, first gradient directions dominate. Softmax attention ends above Bayes, as it forms n_ij / n_i. alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import icldyn as ic
from icldyn import checks
from icldyn.measures import icl_score, over_seeds
from icldyn.plot import panels
from icldyn.study import Claim, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from icldyn.study import Trajectories

SIDES = {"key": ("qk", "row"), "query": ("qk", "column"), "write": ("ov", "row"), "read": ("ov", "column")}
ARMS = {
    "L2": "trained on",
    "own": "own key directions removed",
    "random": "random directions removed",
    "within": "random ones within the keys removed",
}
KS = (0, 1, 2)  # leading directions that er_k leaves out
EVALUATION_KEY = 2**31 + 7  # no seed of a study is as large
SCORED = 64  # sequences on which heads are scored


@dataclass(frozen=True)
class Config:
    """Settings, in the paper's letters."""

    seeds: int = 32
    """Seeds of every depth."""
    held_seeds: int = 16
    """Seeds of every intervention: the first of those of two layers."""
    layers: tuple[int, ...] = (1, 2, 3, 4)
    """Depths; two layers among them."""
    k: int = 8
    """Tokens."""
    alpha: float = 0.1
    """Dirichlet parameter of transitions."""
    T: int = 48
    """Positions that are predicted."""
    batch: int = 32
    """Sequences a step."""
    evaluated: int = 256
    """Sequences that all seeds are measured on."""
    d: int = 32
    """Width of the residual stream."""
    H: int = 2
    """Heads of a layer."""
    d_head: int = 8
    """Width of a head."""
    positions: str = "shortformer"
    """What says where a token stands."""
    norm: bool = False
    """Layer norms."""
    lr: float = 4e-3
    """Learning rate of AdamW, which has b2 = 0.99 and clips the global norm of gradients at 1."""
    weight_decay: float = 0.01
    """Of all weights."""
    steps: int = 1200
    """Steps; the last checkpoint is M_inf."""
    every: int = 25
    """Steps between two records."""
    window: int = 1050
    """The last step that distances are plotted at."""
    since: int = 300
    """First step of the intervention."""
    rank: int = 3
    """Directions that are removed."""


SCALES = {
    "smoke": Config(seeds=2, held_seeds=2, layers=(1, 2), steps=800, window=700, evaluated=64),
    "laptop": Config(),
    "paper": Config(seeds=1024, held_seeds=256),
}

SIZES = {
    "seeds": (2, 10**6),
    "held_seeds": (2, 10**6),
    "k": (2, 10**4),
    "T": (16, 10**4),
    "batch": (1, 10**6),
    "evaluated": (1, 10**6),
    "d": (1, 10**4),
    "H": (1, 10**3),
    "d_head": (3, 10**4),
    "steps": (2, 2**31 - 2),
    "every": (1, 10**6),
    "window": (1, 2**31 - 2),
    "since": (1, 2**31 - 2),
    "rank": (1, 10**4),
}
REALS = {
    "alpha": {"above": 0, "most": 1e6},
    "lr": {"above": 1e-12, "most": 1e3},
    "weight_decay": {"least": 0, "most": 1e3},
}


def check(config: Config) -> None:
    """Refuse what cannot run, every fault at once, before jax is imported."""
    settings = checks.Settings(config, SIZES, REALS)

    def depths() -> None:
        if 2 not in settings.each("layers", checks.integer, 1, 64, ascending=True):
            raise checks.refuse("layers", "hold 2, which is intervened in", config.layers)

    def fewer(name: str, other: str) -> None:
        if settings.size(name) > settings.size(other):
            raise checks.refuse(name, f"be at most `{other}`, {getattr(config, other)}", getattr(config, name))

    def records() -> None:
        if settings.size("steps") % settings.size("every"):
            raise checks.refuse("every", f"divide `steps`, {config.steps}", config.every)

    def positions() -> None:
        kinds = ("shortformer", "absolute", "rotary", "relative", "none")
        if checks.one_of("positions", config.positions, kinds) == "rotary" and settings.size("d_head") % 2:
            raise checks.refuse("d_head", "be even for rotary positions", config.d_head)

    def norms() -> None:
        if not isinstance(config.norm, bool):
            raise checks.refuse("norm", "be true or false", config.norm)

    pairs = (("held_seeds", "seeds"), ("window", "steps"), ("since", "steps"), ("rank", "d_head"), ("d_head", "d"))
    settings.gather(depths, records, positions, norms, *(functools.partial(fewer, *pair) for pair in pairs))


def experiments(config: Config) -> dict[str, Any]:
    """Every depth, and both interventions on two layers, which run the program of two layers."""
    check(config)
    out = {}
    for L in config.layers:
        objective = _objective(config, L)
        if L != 2:
            out[f"L{L}"] = _experiment(config, objective, objective.start, config.seeds)
    held = ic.held_keys.held_keys(_objective(config, 2))
    for name in ARMS:
        action, seeds = ("none", config.seeds) if name == "L2" else ("remove", config.held_seeds)
        told = {"rank": config.rank, "since": config.since, "directions": "own" if name == "L2" else name}
        out[name] = _experiment(config, held, ic.held_keys.arm(held, action, **told), seeds)
    return dict(sorted(out.items()))


def _objective(config: Config, L: int) -> Any:
    sizes = {"d": config.d, "H": config.H, "d_head": config.d_head}
    net = ic.transformer(config.k, config.T, layers=L, positions=config.positions, norm=config.norm, **sizes)
    return ic.next_token(_task(config), net, config.batch)


def _task(config: Config) -> Any:
    return ic.markov(config.k, config.T, alpha=config.alpha)


def _experiment(config: Config, objective: Any, init: Any, seeds: int) -> Any:
    from jax.tree_util import Partial

    settings = {"b2": 0.99, "weight_decay": config.weight_decay}
    optimiser = functools.partial(ic.optimisers.clipped_adamw, **settings)
    if hasattr(objective, "plain"):
        optimiser = functools.partial(ic.held_keys.holding, inner=ic.optimisers.clipped_adamw, **settings)
    tokens = _evaluated(config)
    measures = {f.__name__.lstrip("_"): Partial(f, objective, tokens) for f in (_loss, _losses, _scores)}
    measures |= {f.__name__.lstrip("_"): Partial(f, objective) for f in (_factors, _ends)}
    return ic.Experiment(
        objective,
        init,
        seeds=seeds,
        lr=config.lr,
        steps=config.steps,
        records=config.steps // config.every + 1,
        optimiser=optimiser,
        measures=measures,
        dims={
            "losses": ("position",),
            "scores": ("score", "layer", "head"),
            "factors": ("matrix", "layer", "head", "d", "d_head"),
            "ends": ("end", "token", "d"),
        },
    )


@functools.cache
def _evaluated(config: Config) -> np.ndarray:
    """The sequences that all seeds are measured on, (evaluated, T + 1)."""
    import jax

    sample = jax.jit(_task(config).sample, static_argnums=1)
    return np.asarray(sample(jax.random.key(EVALUATION_KEY), config.evaluated), np.int32)


def _losses(objective, tokens, params):
    """Mean loss of every position (T,)."""
    return objective.losses(params, tokens).mean(0)


def _loss(objective, tokens, params):
    """Mean loss of all positions."""
    return objective.losses(params, tokens).mean()


def _scores(objective, tokens, params):
    """Previous-token and induction score of every head, (2, layers, H)."""
    seen = tokens[:SCORED, :-1]
    return ic.head_scores.head_scores(objective.patterns(params, seen), seen)


def _factors(objective, params):
    """W_Q, W_K, W_V and W_O^T, (4, layers, H, d, d_head)."""
    import jax.numpy as jnp

    net = objective.weights(params)
    layers = [net[f"layer_{n}"] for n in range(objective.net.layers)]
    factors = [[layer[name] for layer in layers] for name in ("W_Q", "W_K", "W_V")]
    return jnp.stack([jnp.stack(one) for one in (*factors, [layer["W_O"].swapaxes(1, 2) for layer in layers])])


def _ends(objective, params):
    """W_E and W_U^T, (2, k, d)."""
    import jax.numpy as jnp

    net = objective.weights(params)
    return jnp.stack([net["W_E"], net["W_U"].T])


def theories(config: Config, seeds: Trajectories) -> dict[str, Any]:
    """Losses of the exact predictors and scores of chance; and ranks and distances of every depth, from its recorded weights."""
    import jax

    with jax.enable_x64(True):
        return {"references": _references(config)} | {
            name: _spectra(run) for name, run in seeds.items() if name.startswith("L")
        }


def _references(config: Config) -> Any:
    import jax.numpy as jnp

    x, exact = jnp.asarray(_evaluated(config)), ic.markov_predictors
    predictors = {"bayes": exact.bayes, "unigram": exact.unigram}
    losses = {name: exact.losses(f(x, config.k, config.alpha), x) for name, f in predictors.items()}
    values = {name: np.asarray(value.mean(0))[None] for name, value in losses.items()}
    seen = x[:SCORED, :-1]
    chance = ic.head_scores.head_scores(ic.head_scores.uniform_attention(seen), seen)
    values["chance"] = np.asarray(chance)[None, :, 0, 0]
    dims = {name: ("time", "score" if name == "chance" else "position") for name in values}
    return ic.Trajectory(values, dims, {"t": (("time",), np.array([config.lr * config.steps]))})


def _spectra(run: Any) -> Any:
    """er_k (S, T, k, layer, head) of W_QK, and the distances (S, T, side, layer, head) from the last checkpoint."""
    import jax
    import jax.numpy as jnp

    W_Q, W_K, W_V, W_O = jnp.moveaxis(jnp.asarray(run["factors"], float), 2, 0)  # (S, T, layer, head, d, d_head)
    each = functools.partial(_mapped, jax.vmap)
    svds = {"qk": each(ic.spectra.qk)(W_Q, W_K), "ov": each(ic.spectra.ov)(W_V, W_O.swapaxes(-1, -2))}
    ranks = [each(functools.partial(ic.spectra.effective_rank_of, k=k))(svds["qk"].s) for k in KS]
    distances = []
    for matrix, side in SIDES.values():
        last = jax.tree.map(lambda a: jnp.broadcast_to(a[:, -1:], a.shape), svds[matrix])
        distances.append(each(functools.partial(ic.subspace.distance, side=side))(svds[matrix], last))
    values = {"er": np.stack(ranks, 2), "distance": np.stack(distances, 2)}
    lead = ("seed", "time")
    dims = {"er": (*lead, "k", "layer", "head"), "distance": (*lead, "side", "layer", "head")}
    return ic.Trajectory(values, dims, {name: run.coords[name] for name in ("t", "step", "seed")})


def _mapped(vmap, function):
    """Over seeds, times, layers and heads."""
    return vmap(vmap(vmap(vmap(function))))


def _steps(run) -> np.ndarray:
    return run.coords["step"][1]


def _late(run) -> np.ndarray:
    """(S, T)."""
    return icl_score.late_loss(run["losses"])


def _level(theory: Trajectories, name: str) -> float:
    """Late loss of an exact predictor."""
    return float(icl_score.late_loss(theory["references"][name][0]))


def _gaps(theory: Trajectories) -> tuple[float, float]:
    """How far below the unigram level a loss still is of a network that counts tokens, and is of one that has emerged."""
    gap = _level(theory, "unigram") - _level(theory, "bayes")
    return min(0.1, gap / 4), min(0.3, gap / 2)


def _emergence(run, theory: Trajectories) -> np.ndarray:
    """Steps t10, t50, t90 of every seed, (3, S); NaN for those without a transition."""
    found = icl_score.emergence(_late(run), _level(theory, "unigram"), least=_gaps(theory)[0])
    return np.where(found < 0, np.nan, _steps(run)[found])


def _window(run, theory: Trajectories) -> np.ndarray:
    """Medians of t10, t50, t90 over the seeds that have a transition; NaN if none has."""
    t = _emergence(run, theory)
    t = t[:, np.isfinite(t[1])]
    return np.median(t, axis=1) if t.size else np.full(3, np.nan)


def _induction_layer(run) -> np.ndarray:
    """The layer of the head that scores highest in the end, (S,)."""
    return run["scores"][:, -1, 1].max(-1).argmax(-1)


def _rank(run, spectra) -> np.ndarray:
    """er_k of the induction layer of every seed, mean over heads, (S, T, k)."""
    er = spectra["er"].mean(-1)
    return np.take_along_axis(er, _induction_layer(run)[:, None, None, None], 3)[..., 0]


def _dip(run, spectra, k: int = 2, first: int = 175) -> np.ndarray:
    """The step at which er_k of the induction layer is least, from step `first` on, (S,)."""
    steps, er = _steps(run), _rank(run, spectra)[:, :, k]
    return steps[np.argmin(np.where((steps < first)[None] | np.isnan(er), np.inf, er), axis=1)]


def _crossings(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, np.ndarray]:
    """When each arm is half way from the unigram level to where the seed ends untouched, in steps, (S,); the last if never.

    One level for all arms of a seed, as one that is intervened in may end elsewhere.
    """
    end = _late(seeds["L2"])[: config.held_seeds, -1:]
    half = (_level(theory, "unigram") + end) / 2
    out = {}
    for name in ARMS:
        below = _late(seeds[name])[: config.held_seeds] <= half
        out[name] = _steps(seeds[name])[np.where(below.any(1), below.argmax(1), below.shape[1] - 1)]
    return out


def _swapped(own: np.ndarray, random: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean of own - random with arms swapped seed by seed: the null distribution, and the p-value of the true one, one-sided."""
    from scipy import stats

    settings = {"permutation_type": "samples", "alternative": "greater", "rng": np.random.default_rng(0)}
    found = stats.permutation_test((own, random), lambda a, b: np.mean(a - b), n_resamples=9999, **settings)
    return found.null_distribution, found.pvalue


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says and what follows from it, each decided by a number."""
    out: list[Claim] = []

    def claim(sentence: str, measured: Any, **limits) -> None:
        out.append(Claim(sentence, float(measured), **limits))

    for L in config.layers:
        _claims_of_depth(config, seeds[f"L{L}"], theory, L, claim)
    _claims_of_heads(seeds["L2"], theory, claim)
    for L in config.layers:
        _claims_of_rank(seeds[f"L{L}"], theory, L, claim)
    _claims_of_distance(config, seeds["L2"], theory, claim)
    _claims_of_pca(config, seeds, theory, claim)
    _claims_of_arms(config, seeds, theory, claim)
    total = sum(run.finite().size for run in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(run.diverged for run in seeds.values()), high=0)
    return out


def _claims_of_depth(config: Config, run, theory: Trajectories, L: int, claim) -> None:
    unigram, bayes, end = _level(theory, "unigram"), _level(theory, "bayes"), _late(run)[:, -1]
    near, drop = _gaps(theory)
    score = np.median(icl_score.icl_score(run["losses"][:, -1]))
    if L == 1:
        within = (end > unigram - near).mean()
        claim(f"1 layer: share of seeds within {near:.2g} of the unigram level in the end", within, low=1)
        claim("1 layer: score of in-context learning in the end, median", score)
        return
    title = f"{L} layers"
    below = (end < unigram - drop).mean()
    claim(f"{title}: share of seeds {drop:.2g} below the unigram level in the end", below, low=0.9)
    t10, t50, t90 = _window(run, theory)
    claim(f"{title}: t50 in steps, median", t50, low=config.steps / 3, high=config.steps / 1.2)
    claim(f"{title}: t90 - t10 over t50, medians", (t90 - t10) / t50, high=0.75)
    claim(f"{title}: share of the way from unigram to Bayes, median", (unigram - np.median(end)) / (unigram - bayes))
    claim(f"{title}: least late loss of a seed over that of Bayes", end.min() / bayes, low=1)
    exact = float(icl_score.icl_score(theory["references"]["bayes"])[0])
    claim(f"{title}: score of in-context learning in the end over that of Bayes, median", score / exact, low=0.6)


def _claims_of_heads(run, theory: Trajectories, claim) -> None:
    chance = theory["references"]["chance"][0]
    start, end = np.median(run["scores"][:, [0, -1]].max(-1), axis=0)  # (score, layer), of the best head
    claim("2 layers: previous-token score of the first layer's best head, median", end[0, 0], low=0.7)
    claim("2 layers: induction score of the second layer's best head, median", end[1, 1], low=0.7)
    claim("2 layers: the same at the start over uniform attention", start[1, 1] / chance[1], low=0.9, high=1.15)
    W_E, W_U = np.moveaxis(run["ends"][:, -1], 1, 0)
    W_V, W_O = run["factors"][:, -1, 2:, 1].swapaxes(0, 1)
    copying = ic.head_scores.copying(W_E[:, None], W_V, W_O.swapaxes(-1, -2), W_U.swapaxes(-1, -2)[:, None])
    best = run["scores"][:, -1, 1, 1].argmax(-1)
    share = np.median(copying[np.arange(len(best)), best])
    claim("2 layers: copying score of the induction head, median", share, low=0.7)


def _claims_of_rank(run, theory: Trajectories, L: int, claim) -> None:
    from scipy import stats

    dip, er = _dip(run, theory[f"L{L}"]), _rank(run, theory[f"L{L}"])[:, :, 2]
    least = er[np.arange(len(dip)), np.searchsorted(_steps(run), dip)]
    claim(f"{_depth(L)}: step of the least er_2, median", np.median(dip))
    claim(f"{_depth(L)}: er_2 at the end over its least, median", np.median(er[:, -1] / least))
    if L == 1:
        return
    t10, t50, t90 = _emergence(run, theory)
    mean, low, high = over_seeds.interval(dip - t50)
    title = f"{L} layers: t_min(er_2) - t50 in steps"
    claim(f"{title}, mean over seeds", mean)
    claim(f"{title}, low end of its 95 % interval", low)
    claim(f"{title}, high end", high)
    claim(f"{L} layers: share of seeds whose er_2 is least in [t10, t90]", ((t10 <= dip) & (dip <= t90)).mean())
    dip, t50 = dip[np.isfinite(t50)], t50[np.isfinite(t50)]
    if dip.size > 2 and np.ptp(dip) and np.ptp(t50):
        order = stats.spearmanr(dip, t50).statistic
        claim(f"{L} layers: rank correlation of t_min(er_2) with t50 over seeds", order)


def _claims_of_distance(config: Config, run, theory: Trajectories, claim) -> None:
    steps, distance = _steps(run), theory["L2"]["distance"].mean(-1)  # (S, T, side, layer)
    chance = float(ic.subspace.chance(config.d_head, config.d))
    early = np.median(distance[:, np.searchsorted(steps, 100), 0, 1])
    claim("2 layers: key-side distance of the second layer at step 100 over chance, median", early / chance, low=0.85)
    t50 = _emergence(run, theory)[1]
    seen = np.isfinite(t50)
    at = np.searchsorted(steps, t50[seen])
    then = distance[np.flatnonzero(seen), at, 0]
    claim(
        "2 layers: key-side distance at t50, median over seeds and layers",
        np.median(then) if seen.any() else np.nan,
        high=0.5,
    )
    fallen = steps[(distance[:, :, 0] < chance / 2).argmax(1)]  # (S, layer)
    claim("2 layers: share of seeds whose first layer's key side falls first", (fallen[:, 0] < fallen[:, 1]).mean())


def _claims_of_pca(config: Config, seeds: Trajectories, theory: Trajectories, claim) -> None:
    pca, along, marks = _joint_pca(config, seeds, theory)
    claim("Joint PCA of losses by position: share of the first component", pca.shares[0], low=0.8)
    depth = np.median(along[2][:, -1, 0])
    toward = np.sign(marks["bayes"][0] - marks["unigram"][0])
    if 1 in along:
        gap = toward * (depth - np.median(along[1][:, -1, 0])) / abs(marks["bayes"][0] - marks["unigram"][0])
        claim("Joint PCA: from the end of 1 layer to that of 2, over unigram to Bayes", gap, low=0.3)


def _joint_pca(config: Config, seeds: Trajectories, theory: Trajectories) -> tuple[Any, dict[int, Any], dict[str, Any]]:
    """The fit to losses by position of all depths, seeds and times; coordinates (S, T, 2) by depth, and of both predictors."""
    runs = {L: np.asarray(seeds[f"L{L}"]["losses"], float) for L in config.layers}
    pca = ic.trajectory_pca.fit(np.concatenate([F.reshape(-1, F.shape[-1]) for F in runs.values()]))
    along = {L: np.asarray(ic.trajectory_pca.project(pca, F)) for L, F in runs.items()}
    marks = {n: np.asarray(ic.trajectory_pca.project(pca, theory["references"][n][0])) for n in ("unigram", "bayes")}
    return pca, along, marks


def _claims_of_arms(config: Config, seeds: Trajectories, theory: Trajectories, claim) -> None:
    steps = _steps(seeds["L2"])
    losses = {name: seeds[name]["losses"][: config.held_seeds, steps <= config.since] for name in ARMS}
    apart = max(np.abs(losses[name] - losses["L2"]).max() for name in ARMS)
    claim("Intervention: largest difference of arms before it", apart, high=0)
    t = _crossings(config, seeds, theory)
    for name, other, title in (
        ("own", "random", "own less random directions"),
        ("own", "L2", "own directions less none"),
        ("random", "L2", "random directions less none"),
        ("own", "within", "own less random directions within the keys"),
        ("within", "L2", "random directions within the keys less none"),
    ):
        mean, low, high = over_seeds.interval(t[name] - t[other])
        limit = {"low": 0} if name == "own" else {}
        claim(f"Intervention: delay of emergence in steps, {title}, mean", mean, **limit)
        claim(f"Intervention: {title}, low end of its 95 % interval", low, **limit)
        claim(f"Intervention: {title}, high end", high)
    later = (t["own"] > t["random"]).mean()
    claim(
        "Intervention: share of seeds that emerge later without their own directions than without random",
        later,
        low=0.8,
    )
    never = (_late(seeds["own"])[:, -1] > _level(theory, "unigram") - _gaps(theory)[1]).mean()
    claim("Intervention: share of seeds without own directions that have not emerged by the end", never)
    chance = {"high": 0.01} if config.held_seeds >= 8 else {}  # 2^-8
    for other, words in (("random", "of the stream"), ("within", "within the keys")):
        title = f"Intervention: probability of such a delay over random directions {words}, with arms swapped at random"
        claim(title, _swapped(t["own"], t[other])[1], **chance)


def figures(config: Config, seeds: Trajectories, theory: Trajectories) -> dict[str, Figure]:
    """Emergence, ranks, subspaces, joint components, and the intervention."""
    draws = {
        "emergence": (_draw_emergence, 4),
        "ranks": (_draw_ranks, 3),
        "subspaces": (_draw_subspaces, 4),
        "joint_pca": (_draw_pca, 1),
        "intervention": (_draw_arms, 3),
    }
    return panels.rows(draws, config, seeds, theory)


def panel(ax, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    """The late loss of every depth."""
    _draw_late(ax, config, seeds, theory)
    ax.legend(fontsize=7)


def _median(values: np.ndarray) -> np.ndarray:
    """Quantiles for a band, over seeds."""
    return np.nanquantile(values, (0.05, 0.5, 0.95), axis=0)


def _depth(L: int) -> str:
    return f"{L} layer" + "s" * (L > 1)


def _draw_late(ax, config: Config, seeds, theory) -> None:
    for n, L in enumerate(config.layers):
        run = seeds[f"L{L}"]
        panels.band(ax, _steps(run), _median(_late(run)), f"C{n}", _depth(L))
    for name, line in (("unigram", "--"), ("bayes", ":")):
        ax.axhline(_level(theory, name), color="k", linestyle=line, linewidth=1, label=name.replace("b", "B"))
    ax.set(xlabel="step", ylabel="late loss (nats)", xlim=(0, config.steps))


def _draw_emergence(axes, config: Config, seeds, theory) -> None:
    late, when, score, heads = axes
    _draw_late(late, config, seeds, theory)
    late.set_title("(a) last quarter of positions")
    late.set(ylim=(0.6 * _level(theory, "bayes"), None))
    late.legend(fontsize=7, ncol=3, loc="lower left")
    for n, L in enumerate(config.layers):
        run = seeds[f"L{L}"]
        t10, t50, t90 = _emergence(run, theory)
        order = np.argsort(t50)
        rows = n + np.linspace(-0.35, 0.35, len(order))
        when.hlines(rows, t10[order], t90[order], color=f"C{n}", linewidth=0.8)
        when.plot(t50[order], rows, ".", color=f"C{n}", markersize=4)
        if np.isnan(t50).all():
            when.text(0.5 * config.steps, n, "no transition in any seed", ha="center", va="center", fontsize=7)
        panels.band(score, _steps(run), _median(icl_score.icl_score(run["losses"])), f"C{n}", _depth(L))
    when.set(xlabel="step", xlim=(0, config.steps), ylim=(-0.6, len(config.layers) - 0.4))
    when.set_yticks(range(len(config.layers)), [_depth(L) for L in config.layers])
    when.set_title("(b) t50, with t10 to t90, of every seed")
    for name, line in (("unigram", "--"), ("bayes", ":")):
        score.axhline(icl_score.icl_score(theory["references"][name][0]), color="k", linestyle=line, linewidth=1)
    score.set(
        xlabel="step", ylabel="ICL score (nats)", xlim=(0, config.steps), title="(c) score of in-context learning"
    )
    run, chance = seeds["L2"], theory["references"]["chance"][0]
    for n, (title, which, layer) in enumerate((("previous token, layer 0", 0, 0), ("induction, layer 1", 1, 1))):
        panels.band(heads, _steps(run), _median(run["scores"][:, :, which, layer].max(-1)), f"C{n}", title)
        heads.axhline(chance[which], color=f"C{n}", linestyle="--", linewidth=1)
    heads.set(xlabel="step", ylabel="score of the best head", xlim=(0, config.steps), title="(d) heads of 2 layers")
    heads.legend(fontsize=7)


def _draw_ranks(axes, config: Config, seeds, theory) -> None:
    leading, depths, dips = axes
    run = seeds["L2"]
    for n, k in enumerate(KS):
        panels.band(leading, _steps(run), _median(_rank(run, theory["L2"])[:, :, k]), f"C{n}", f"$k={k}$")
    window = _window(run, theory)
    leading.axvspan(window[0], window[2], color="0.9", zorder=0, label="[t10, t90], medians")
    leading.set(
        xlabel="step", ylabel="$er_k$ of $W_{QK}$, induction layer", title="(a) 2 layers", xlim=(0, config.steps)
    )
    leading.legend(fontsize=7)
    for n, L in enumerate(config.layers):
        run, spectra = seeds[f"L{L}"], theory[f"L{L}"]
        panels.band(depths, _steps(run), _median(_rank(run, spectra)[:, :, 2]), f"C{n}", _depth(L))
        if L == 1:
            continue
        apart = _dip(run, spectra) - _emergence(run, theory)[1]
        dips.plot(n + np.linspace(-0.3, 0.3, len(apart)), np.sort(apart), ".", color=f"C{n}", markersize=4)
        mean, low, high = over_seeds.interval(apart)
        dips.errorbar(n, mean, [[mean - low], [high - mean]], fmt="ks", markersize=4, capsize=3)
    depths.set(xlabel="step", ylabel="$er_2$ of $W_{QK}$", title="(b) every depth", xlim=(0, config.steps))
    depths.legend(fontsize=7)
    dips.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    several = [n for n, L in enumerate(config.layers) if L > 1]
    dips.set_xticks(several, [_depth(config.layers[n]) for n in several])
    dips.set(ylabel="$t_{min}(er_2) - t_{50}$ (steps)", title="(c) dip against emergence, mean and 95 %")


def _draw_subspaces(axes, config: Config, seeds, theory) -> None:
    run, plotted = seeds["L2"], _steps(seeds["L2"]) <= config.window
    window = _window(run, theory)
    for n, (ax, side) in enumerate(zip(axes, SIDES, strict=True)):
        for layer in range(2):
            curves = _median(theory["L2"]["distance"][:, plotted, n, layer].mean(-1))
            panels.band(ax, _steps(run)[plotted], curves, f"C{layer}", f"layer {layer}")
        ax.axhline(
            float(ic.subspace.chance(config.d_head, config.d)), color="k", linestyle="--", linewidth=1, label="chance"
        )
        ax.axvspan(window[0], window[2], color="0.9", zorder=0)
        matrix = SIDES[side][0].upper()
        ax.set(
            xlabel="step",
            ylabel="distance from the end",
            ylim=(0, 1),
            title=f"({'abcd'[n]}) {side} side of $W_{{{matrix}}}$",
        )
    axes[0].legend(fontsize=7)


def _draw_pca(axes, config: Config, seeds, theory) -> None:
    (ax,) = axes
    pca, along, marks = _joint_pca(config, seeds, theory)
    for n, L in enumerate(config.layers):
        for path in along[L][:8]:
            ax.plot(path[:, 0], path[:, 1], "-", color=f"C{n}", linewidth=0.6, alpha=0.7)
        ax.plot(along[L][:, -1, 0], along[L][:, -1, 1], ".", color=f"C{n}", markersize=4, label=f"{_depth(L)}, end")
    for (name, at), marker in zip(marks.items(), "X*", strict=True):
        ax.plot(*at, f"k{marker}", markersize=9, label=name.replace("b", "B"))
    first, second = (f"{share:.1%}" for share in pca.shares)
    ax.set(xlabel=f"component 1 ({first})", ylabel=f"component 2 ({second})", title="losses by position")
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def _draw_arms(axes, config: Config, seeds, theory) -> None:
    late, delays, null = axes
    t = _crossings(config, seeds, theory)
    for n, (name, title) in enumerate(ARMS.items()):
        run = seeds[name]
        panels.band(late, _steps(run), _median(_late(run)[: config.held_seeds]), f"C{n}", title)
    late.axvline(config.since, color="0.6", linewidth=0.8, zorder=0)
    late.axhline(_level(theory, "unigram"), color="k", linestyle="--", linewidth=1)
    late.set(
        xlabel="step",
        ylabel="late loss (nats)",
        xlim=(0, config.steps),
        title=f"(a) {config.rank} directions, from step {config.since}",
    )
    late.legend(fontsize=7)
    order = np.argsort(t["L2"])
    for n, name in enumerate(ARMS):
        delays.plot(t[name][order], np.arange(len(order)), ".", color=f"C{n}")
    delays.set(xlabel="step half way", ylabel="seed", yticks=[], title="(b) every seed")
    swapped, probability = _swapped(t["own"], t["random"])
    null.hist(swapped, bins=40, color="0.7", label="arms swapped at random")
    null.axvline((t["own"] - t["random"]).mean(), color="C2", label=f"from those of the stream, $p={probability:.2g}$")
    stricter = _swapped(t["own"], t["within"])[1]
    null.axvline((t["own"] - t["within"]).mean(), color="C3", label=f"from those within the keys, $p={stricter:.2g}$")
    null.set(xlabel="mean delay, own less random (steps)", ylabel="swaps", title="(c) null distribution")
    null.set(ylim=(0, 1.35 * null.get_ylim()[1]))
    null.legend(fontsize=7, loc="upper left")


STUDY = Study(
    title="Emergence of in-context learning in attention-only transformers: ranks, subspaces and an intervention",
    paper="Mainali and Teixeira 2025, arXiv 2504.12916",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=panel,
)
