"""Huang, Cheng and Liang 2023, "In-context convergence of transformers" (arXiv 2310.05249, ICML 2024).

One softmax head, yhat = sum_i softmax_i(x_i^T Q x_q) y_i, learns a dictionary of K orthonormal tokens from Q = 0. With
A_k = v_k^T Q v_k and B_{k,n} = v_n^T Q v_k the answer to a query v_k takes the share Attn_k of its own labels:

- balanced tokens, p_k = 1/K: in time K^2 attention comes to 1/2, then L_k falls as 1/t, to what prompts without the query leave;
- one dominant token, p_1 = alpha: its own query is learned at once, any other in four phases: B_{k,1} falls (attention leaves the
  dominant token), A_k takes over, attention comes to v_k suddenly, and L_k falls as 1/t.

The paper proves bounds. Here the dynamics are exact (`icldyn.theory.dictionary_attention`): gradient descent on the expected loss
is a recursion of a few numbers, at any N and step size, with a closed form for balanced tokens at N = infinity. Seeds of SGD, at
the recursion's own eta and from drawn counts of tokens (`ic.statistics`), lie on it; the gradient flow is shown beside it.

Conventions: loss 1/2 (yhat - y_q)^2, t = eta x steps, w ~ N(0, I), no noise, the query is not among its keys, and only Q is trained.
The 1/2, the covariance I, the start at 0, the value 1 and the mask were not read in the paper itself but assumed; the checked
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
HALF_STEPS = {200: 558.0, 2000: 548.0, 20000: 546.0}  # N -> t of the first step past A - B = ln(K - 1), K = 20, eta = 2
PHASES = {0.5: (0.722, 2.01, 2.07), 0.3: (0.513, 1.43, 1.48)}  # alpha -> t / K^2 at switch, crossing and half, K = 3000
TABLE = {  # step -> A, B_1, b, L_k, Attn_k and A of the dominant query; K = 10, N = 40, alpha = 0.5, eta = 2
    100: (1.036, -1.011, -0.003, 0.3933, 0.190, 2.378),
    200: (2.485, -1.514, -0.121, 0.1696, 0.502, 2.754),
    400: (3.738, -1.818, -0.240, 0.0777, 0.742, 3.111),
    600: (4.186, -1.923, -0.283, 0.0671, 0.795, 3.313),
}
LARGE = 3000  # K at which limits of K -> infinity are read off
DIMS = dict.fromkeys(("A", "B_1", "b", "sum"), ("query",))
NAMES = ("$A_k$", "$B_{k,1}$", "$B_{k,n}$")
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
    "N": (1, 1000),
    "batch": (2, 2**20),
    "small_batch": (1, 2**20),
    "steps": (1, 10**6),
}
REALS: dict[str, dict[str, float]] = {"alpha": {"above": 1e-3, "most": 0.999}, "eta": {"above": 0, "most": 1e6}}


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
            measures={"A": _A, "B_1": _B_1, "b": _b, "sum": _sum},
            dims=DIMS,
            records=61,
        )
        for name, (task, batch) in runs.items()
    }


def _p(K: int, alpha: float) -> np.ndarray:
    return np.append(alpha, np.full(K - 1, (1 - alpha) / (K - 1)))


def _A(params):
    """A_k, (K,)."""
    return params["Q"].diagonal()


def _B_1(params):
    """B_{k,1}, (K,); A_1 for the dominant query."""
    return params["Q"][0]


def _b(params):
    """The mean of the other B_{k,n}, (K,); for the dominant query over all n but 1, times (K - 1)/(K - 2)."""
    Q = params["Q"]
    rest = Q.sum(0) - Q[0] - Q.diagonal()
    return rest.at[0].set(Q[1:, 0].sum()) / (Q.shape[0] - 2)


def _sum(params):
    """A_k + sum_n B_{k,n}, (K,): 0 throughout."""
    return params["Q"].sum(0)


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
    theory = ic.dictionary_attention
    run, laws = seeds["imbalanced"], _laws(config)
    steps = run.coords["step"][1]
    out = {f"descent_{name}": _read(law, run.t, theory.descent(law, config.eta, steps)) for name, law in laws.items()}
    out |= _flows({f"flow_{name}": (law, 1.0) for name, law in laws.items()}, run.t)

    s = np.append(0.0, np.geomspace(1e-3, 1e2, 128))
    sized = {f"sized_{K}x{N}": (theory.balanced(K, N), K**2) for K in config.sizes for N in (10 * K, None)}
    out |= _flows(sized, s)
    for K in config.sizes:
        a = theory.attention_at(s * K**2, K)
        out[f"closed_{K}"] = _curves(s * K**2, Attn=a[:, None], L=theory.limit_loss(a, K))
    wide = {f"wide_{K}": (theory.underrepresented(K, config.alpha), K**2) for K in config.wide}
    return out | _flows(wide, np.linspace(0, 2 / (1 - config.alpha), 321))


def _read(law, t: np.ndarray, b: np.ndarray):
    """b (T, G) with attention on each group and L_k."""
    theory = ic.dictionary_attention
    return _curves(t, b=b, Attn=theory.attention(b, law), L=theory.loss(b, law))


def _curves(t: np.ndarray, **values: np.ndarray):
    dims = {name: ("time", "group")[: value.ndim] for name, value in values.items()}
    return ic.Trajectory(values, dims, {"t": (("time",), np.asarray(t))})


def _flows(laws: dict[str, tuple], s: np.ndarray) -> dict[str, Any]:
    """Gradient flow of several queries as one system, each on its own clock: (law, t / s)."""
    from jax.tree_util import Partial

    held, clocks = [law for law, _ in laws.values()], np.array([float(clock) for _, clock in laws.values()])
    rows = max(len(law.weights) for law in held)
    padded = [law._replace(**{n: _padded(getattr(law, n), rows) for n in ("counts", "squares")}) for law in held]
    padded = [law._replace(weights=np.append(law.weights, np.zeros(rows - len(law.weights)))) for law in padded]
    stacked = [np.stack([np.asarray(law[n]) for law in padded]) for n in range(len(held[0]))]
    flow = ic.flow(Partial(_field, clocks, stacked), {"b": np.zeros_like(stacked[1])}, s)
    return {name: _read(law, s * clock, flow["b"][:, k]) for k, (name, (law, clock)) in enumerate(laws.items())}


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows[:1], count - len(rows), axis=0)])


def _field(clocks, laws, params):
    import jax

    theory = ic.dictionary_attention
    rates = jax.vmap(lambda b, *law: theory.rate(b, theory.Query(*law)))(params["b"], *laws)
    return {"b": clocks[:, None] * rates}


def _underrepresented(run) -> np.ndarray:
    """A, B_1 and b of every query but the first, (S, T, query, 3)."""
    return np.stack([run[name][:, :, 1:] for name in ("A", "B_1", "b")], axis=-1)


def _mean(run) -> tuple[np.ndarray, np.ndarray]:
    """Mean over queries k >= 2 and seeds of (A, B_1, b), (T, 3), and its standard error over seeds."""
    own = _underrepresented(run)[run.finite()].mean(2)
    return own.mean(0), own.std(0, ddof=1) / len(own) ** 0.5


def _total(config: Config, theory: Trajectories, kind: str, run: str) -> np.ndarray:
    """L = sum_k p_k L_k, (T,)."""
    if run == "balanced":
        return theory[f"{kind}_balanced"]["L"]
    return config.alpha * theory[f"{kind}_dominant"]["L"] + (1 - config.alpha) * theory[f"{kind}_imbalanced"]["L"]


def claims(config: Config, seeds: Trajectories, theory: Trajectories) -> list[Claim]:
    """What the paper says and what the exact dynamics add, each decided by a number."""
    out: list[Claim] = []

    def claim(sentence: str, measured: float, *limits: float, **more) -> None:
        out.append(Claim(sentence, float(measured), *limits, **more))

    _claims_seeds(claim, config, seeds, theory)
    _claims_balanced(claim, config, theory)
    _claims_imbalanced(claim, config, theory)
    total = sum(run.finite().size for run in seeds.values())
    claim(f"Seeds that diverged, of {total:,}", sum(run.diverged for run in seeds.values()), high=0)
    return out


def _claims_seeds(claim, config: Config, seeds: Trajectories, theory: Trajectories) -> None:
    for name in ("imbalanced", "balanced"):
        mean, _ = _mean(seeds[name])
        apart = np.abs(mean - theory[f"descent_{name}"]["b"]).max() / theory[f"descent_{name}"]["b"].max()
        sentence = f"{name}: A, B_1 and b of SGD follow the exact recursion (gap of means over the largest A)"
        claim(sentence, apart, high=0.01, gap=True)
        batch = seeds[name]
        loss = (batch.mean("loss") - _total(config, theory, "descent", name)) / batch.standard_error("loss")
        claim(f"{name}: mean batch loss is the recursion's (largest of the standard errors)", np.abs(loss).max(), high=4.5)
    own = seeds["imbalanced"]["A"][:, :, 0].mean(0), theory["descent_dominant"]["b"][:, 0]
    claim("Dominant query: A of SGD follows the exact recursion (gap)", np.abs(own[0] / own[1] - 1)[1:].max(), high=0.01, gap=True)
    (large, error), (small, other) = (_mean(seeds[name]) for name in ("imbalanced", "small"))
    r = config.batch / config.small_batch
    limit, error = (r * large - small) / (r - 1), np.sqrt(r**2 * error**2 + other**2) / (r - 1)
    apart = np.abs(limit - theory["descent_imbalanced"]["b"])[1:] / error[1:]
    claim("Extrapolated to large batches, SGD is the exact recursion (largest of the standard errors)", apart.max(), high=4.5)
    ratio = [np.std(_underrepresented(seeds[name])[..., 0], axis=(0, 2))[1:] for name in ("small", "imbalanced")]
    claim("Spread of A over seeds falls as batch^-1/2 (ratio of batches over that, mean over t)", (ratio[0] / ratio[1]).mean() / r**0.5, 0.9, 1.1)
    kept = max(np.abs(run["sum"]).max() for run in seeds.values())
    claim("A_k + sum_n B_{k,n} of the seeds (largest; round-off in float32)", kept, high=1e-4)


def _claims_balanced(claim, config: Config, theory: Trajectories) -> None:
    exact = ic.dictionary_attention
    apart = [abs(exact.time_to(0.5, K) / K**2 - wanted) for K, wanted in HALF.items()]
    claim("Balanced, K = 10, 50, 200, 1000: t / K^2 at Attn = 1/2 is 1.438, 1.212, 1.076, 1.020 (largest difference)", max(apart), high=5e-4)
    apart = [abs(_half_by_steps(N) - wanted) for N, wanted in HALF_STEPS.items()]
    claim("K = 20, eta = 2, N = 200, 2000, 20000: A - B passes ln(K - 1) at t = 558, 548, 546 (largest difference)", max(apart), high=0)
    apart = [np.abs(theory[f"sized_{K}xNone"]["Attn"] - theory[f"closed_{K}"]["Attn"])[:, 0].max() for K in config.sizes]
    claim("Balanced, N = infinity: the flow has the closed form's attention (largest difference)", max(apart), high=1e-5)
    further = [(exact.time_to(0.9, K) - exact.time_to(0.5, K)) / (K / 0.02) for K in HALF]
    for word, k, value in (("10", 0, 1.16), ("1000", -1, 1.43)):
        claim(f"K = {word}: (1 - Attn)^2 = 0.01 comes so much later than K/(2 eps) after Attn = 1/2 (factor {value})", further[k], value - 5e-3, value + 5e-3)
    late = [exact.limit_loss(exact.attention_at(100 * K**2, K), K) * 4 * 99 * K**2 / K for K in (200, 1000)]
    claim("Balanced, K = 200, 1000, t = 100 K^2: L_k over K / (4 (t - K^2)) (least)", min(late), 0.97, 1.03)
    for K in config.sizes:
        law, b = exact.balanced(K, 10 * K), np.array([K - 1.0, -1.0]) * 60 / K
        claim(f"K = {K}, N = {10 * K}: loss at A - B = 60 over the floor L* of prompts without the query", exact.loss(b, law) / exact.floor(K, 10 * K), 1 - 1e-9, 1 + 1e-9)


def _half_by_steps(N: int, K: int = 20, eta: float = 2.0) -> float:
    """t of the first step at which A - B >= ln(K - 1)."""
    b = ic.dictionary_attention.descent(ic.dictionary_attention.balanced(K, N), eta, np.arange(400))
    return eta * int(np.argmax(b[:, 0] - b[:, 1] >= np.log(K - 1)))


def _claims_imbalanced(claim, config: Config, theory: Trajectories) -> None:
    exact, found = ic.dictionary_attention, _table()
    claim("K = 10, N = 40, alpha = 0.5, eta = 2: the recursion at steps 100 to 600 has the table's numbers (largest difference)", np.abs(found - np.array(list(TABLE.values()))).max(), high=6e-4)
    for alpha, wanted in PHASES.items():
        law = exact.underrepresented(LARGE, alpha)
        passed, K2 = exact.phases(law), LARGE**2
        t = {name: at / K2 for name, (at, _) in passed.items()}
        for name, number in zip(("switch", "crossing", "half"), wanted, strict=True):
            claim(f"alpha = {alpha:g}, K = 3000: t / K^2 at the {name} is {number:g} (difference)", abs(t[name] - number), high=1e-2 if name != "switch" else 1e-3)
        claim(f"alpha = {alpha:g}, K = 3000: the switch over its limit 1/(3 (1 - alpha))", t["switch"] * 3 * (1 - alpha), 1, 1.1)
        claim(f"alpha = {alpha:g}, K = 3000: x = z over its limit 1/(1 - alpha)", t["crossing"] * (1 - alpha), 0.98, 1.02)
        factor = (passed["done"][0] - passed["half"][0]) / (LARGE / (2 * 0.01 * (1 - alpha)))
        claim(f"alpha = {alpha:g}, K = 3000: phase IV takes so many K/(2 eps (1 - alpha)), eps = 0.01 (factor 1.4)", factor, 1.38, 1.45)
        if alpha == 0.5:
            B, A = passed["switch"][1][1] / np.log(LARGE), passed["half"][1][0] / np.log(LARGE)
            claim("alpha = 0.5, K = 3000: B_{k,1} at the switch, in units of ln K (-0.47; the paper: -0.5)", B, -0.475, -0.465)
            claim("alpha = 0.5, K = 3000: A_k at x = 1/2, in units of ln K (1)", A, 0.98, 1.02)
    for eps, factor in ((1e-2, 1.43), (1e-4, 1.04)):
        claim(f"Dominant query, K = 1000, alpha = 0.5: (1 - Attn)^2 = {eps:g} at so many 1/(2 alpha eps) ({factor:g})", exact.time_to(1 - eps**0.5, 1000, 0.5) * 2 * 0.5 * eps, factor - 5e-3, factor + 5e-3)
    K = config.wide[-1]
    wide, p = theory[f"wide_{K}"], (1 - config.alpha) / (K - 1)
    falls = np.diff(wide["b"][:, 1]).max()
    claim(f"K = {K}: B_{{k,1}} only falls (largest step)", falls, high=0)
    early = (wide.t > 0.05 * K**2) & (wide.t < K**2 / (3 * (1 - config.alpha)))
    fall = wide["Attn"][early, 1] * np.sqrt(2 * p * wide.t[early])
    claim(f"K = {K}, phase I: attention on the dominant token over (2 p t)^(-1/2) (largest)", fall.max(), 1, 1.32)
    claim(f"K = {K}, phase I: L_k stays near 1/2 (largest distance)", np.abs(wide["L"][early] - 0.5).max(), high=0.08)
    stages = [_half_time(theory[f"descent_{name}"]) for name in ("dominant", "imbalanced")]
    claim(f"K = {config.K}: the dominant query is learned first (time to half its loss, over that of the others)", stages[0] / stages[1], high=0.5)


def _half_time(curve) -> float:
    """When L_k is first below half of its start; infinity if never."""
    below = curve["L"] < curve["L"][0] / 2
    return float(curve.t[np.argmax(below)]) if below.any() else np.inf


def _table() -> np.ndarray:
    """What `TABLE` holds, from the recursion, (4, 6)."""
    exact, steps = ic.dictionary_attention, list(TABLE)
    law, dominant = exact.underrepresented(10, 0.5, 40), exact.dominant(10, 0.5, 40)
    b = exact.descent(law, 2.0, steps)
    own = exact.loss(b, law), exact.attention(b, law)[:, 0], exact.descent(dominant, 2.0, steps)[:, 0]
    return np.column_stack([b, *own])


def figures(config, seeds, theory):
    """None yet."""
    return {}


STUDY = Study(
    title="Softmax attention on a dictionary of tokens: exact phases of balanced and imbalanced features",
    paper="Huang, Cheng and Liang 2023, arXiv 2310.05249",
    scales=SCALES,
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=None,
)
