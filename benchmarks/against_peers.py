"""How much faster than what people run today is the same training, seed for seed and per CPU-second?

Merged linear attention with H heads, all blocks trained, of yedizhang/linattn-icl, written anew from the equations:

- full batch: D = 4, N = 31, 5,000 fixed prompts, gradient descent on all of them;
- online: D = 8, N = 31, 256 fresh prompts a step, for every seed its own, or one stream shared by all seeds;
- softmax: the same online training with softmax over the context, the query not among its keys, N(0, I) inputs;
- dictionary: softmax attention over a dictionary (Yang et al. 2024), the exact loss against 256 tasks a step.

Peers: a plain PyTorch loop over steps of one seed (every token's output computed, as in that code), ensembles by torch.func (only
the query's output), the same in plain JAX, as a Python loop and as vmap over a scan. icldyn: `dataset`, `statistics` and, for
softmax, `attended`, through `icldyn.ensemble`; with linear attention with all blocks, and with zero blocks (what the theory
describes: h^T A x_q; same law while they stay zero).

One process, repeats interleaved, medians; the unit is optimiser steps of one seed per CPU-second (all threads of the process).
Each kernel's share of two ceilings of the machine is measured beside it: the floating-point rate of a large matrix product
against the operations that its own equations need, and the rate of standard normals against those it draws. First the script
checks that all train the same: recorded losses of the full batch to 1e-4, mean losses online within four standard errors.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from _timing import Timing, by_count, figures, interleaved, machine, table
from peers import jax_heads

import icldyn as ic
from icldyn.engine.programs import compiler_options
from icldyn.normals import normals

try:
    import torch
    from peers import torch_heads
except ImportError:
    raise SystemExit('The peers need PyTorch: pip install "icldyn[benchmarks]".') from None

H, N, P, B = 8, 31, 5000, 256
LR, SCALE = 1e-3, 0.1
S_FULL, S_OWN, S_SHARED = 2048, 16, 1024
PROMISED = {"full batch": 3e6, "online": 450.0, "online over torch.func": 25.0, "shared": 3500.0}
PROMISED_SOFTMAX = {"PyTorch, one seed": 60.0, "the best torch.func": 5.0, "JAX vmap + scan, all tokens, S = 16": 70.0}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long."""

    repeats: int = 5
    """Repeats, interleaved; medians are printed."""
    seconds: float = 1.0
    """Of one repeat of one program, roughly."""
    quick: bool = False
    """3 short repeats."""
    softmax_only: bool = False
    """Softmax attention alone, with its peers."""
    json: Path | None = None
    """Keep the numbers here."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A program: one call trains `seed_steps`; what its equations need a seed-step."""

    call: Callable[[], Any]
    seed_steps: int
    flop: float = 0.0
    normals: float = 0.0


def spectrum(D: int) -> np.ndarray:
    """Eigenvalues proportional to D ... 1, of trace 1."""
    return np.arange(D, 0, -1) / np.arange(1, D + 1).sum()


def start(D: int, S: int) -> dict[str, np.ndarray]:
    """Weights of the peers, (S, H, D+1, D+1)."""
    rng = np.random.default_rng(0)
    scale = SCALE / (D + 1)
    return {k: (scale * rng.normal(size=(S, H, D + 1, D + 1))).astype(np.float32) for k in ("key_query", "value")}


def ours(weights: dict[str, np.ndarray], seed: int, zero_blocks: bool) -> Any:
    """The same weights as an initialiser: the last row of the value matrix, and z_q^T M_h as a function of the context."""
    v, U = weights["value"][seed, :, -1], weights["key_query"][seed, :, :-1].swapaxes(1, 2)
    D = U.shape[2]
    model = ic.merged(D, H, zero_blocks=zero_blocks)
    return ic.heads.given(model, v=v[:, D] if zero_blocks else v, U=U[:, :D] if zero_blocks else U)


def trained(objective: Any, init: Any, S: int, steps: int) -> float:
    """Seconds of `icldyn.ensemble` without compilation."""
    settings = {"seeds": S, "lr": 2 * LR, "steps": steps, "records": 2, "init_scale": SCALE}  # 2: our loss has the 1/2
    return ic.ensemble(objective, init, **settings, block=block(objective)).attrs["run_seconds"]


def block(objective: Any) -> int | None:
    """Seeds in a block: more than by default where seeds share a matrix, half of them on each of two cores for one stream."""
    if not getattr(objective, "lanes_last", False):
        return None
    return S_SHARED // 2 if getattr(objective, "shared", False) else 128


def flops(D: int, zero: bool, prompts: int | None) -> float:
    """Multiplications and additions that a seed-step needs: folding the heads and back, and the folded loss's gradient."""
    n, pairs = (D, D) if zero else (D + 1, (D + 1) * (D + 2) // 2)
    heads = 3 * H * n * D * (1 if zero else n)
    gradient = (D * pairs) ** 2 if prompts is None else 2 * prompts * D * (pairs + 1)
    return 2.0 * (heads + gradient)


def full_batch(settings: Settings) -> dict[str, Row]:
    """Fixed prompts."""
    D = 4
    task = ic.linear_regression(N, spectrum(D), family="scalar")
    x, y, x_q, y_q = (np.asarray(a, np.float32) for a in task.sample(jax.random.key(0), P))
    z = np.concatenate([np.concatenate([x, y], 2), np.concatenate([x_q, 0 * y_q], 1)[:, None]], 1)
    weights, fixed = start(D, 16), (torch.tensor(z), torch.tensor(y_q[:, 0]))
    one = {k: torch.tensor(w[0]) for k, w in weights.items()}
    sixteen = {k: torch.tensor(w) for k, w in weights.items()}
    tokens, labels = jnp.asarray(z), jnp.asarray(y_q[:, 0])
    objectives = {
        zero: ic.dataset(ic.merged(D, H, zero_blocks=zero), x, y[..., 0], x_q, y_q[:, 0]) for zero in (False, True)
    }
    check_full_batch(one, weights, fixed, objectives[False])
    jax_one = {k: jnp.asarray(w[0]) for k, w in weights.items()}
    draw = functools.partial(_same, tokens, labels)

    def jax_loop(steps: int, answer: Any) -> Any:
        w = jax_one
        for _ in range(steps):
            w = jax_heads.step(answer, draw, w, jax.random.key(0), LR)
        return jax.block_until_ready(w)

    def jax_many(steps: int) -> Any:
        keys = jax.random.split(jax.random.key(0), 16)
        return jax.block_until_ready(jax_heads.ensemble(jax_heads.query_only, draw, steps, weights, keys, LR))

    s, rows = settings.seconds, {}
    rows["PyTorch, one seed"] = Row(*by_count(lambda n: torch_heads.loop(one, n, LR, lambda _: fixed), s, 1))
    for name, w, S in (("S = 1", {k: a[None] for k, a in one.items()}, 1), ("S = 16", sixteen, 16)):
        call = functools.partial(_torch_many, w, lambda _: fixed, True)
        rows[f"torch.func, query only, {name}"] = Row(*by_count(call, s, S))
    rows["JAX loop, all tokens"] = Row(*by_count(lambda n: jax_loop(n, jax_heads.all_tokens), s, 1))
    rows["JAX loop, query only"] = Row(*by_count(lambda n: jax_loop(n, jax_heads.query_only), s, 1))
    rows["JAX vmap + scan, query only, S = 16"] = Row(*by_count(jax_many, s, 16))
    for zero, objective in objectives.items():
        init = ic.heads.gaussian(ic.merged(D, H, zero_blocks=zero))
        call = functools.partial(trained, objective, init, S_FULL)
        rows[f"icldyn dataset, {'zero' if zero else 'all'} blocks"] = Row(
            *by_count(call, s, S_FULL), flops(D, zero, None)
        )
    return rows


def online(settings: Settings) -> dict[str, Row]:
    """Fresh prompts."""
    D = 8
    s = spectrum(D)
    task, weights = ic.linear_regression(N, s, family="scalar"), start(D, 16)
    eigen, one = torch.tensor(s, dtype=torch.float32), {k: torch.tensor(w[0]) for k, w in weights.items()}
    draw = functools.partial(_fresh, jnp.asarray(s, jnp.float32))
    check_online(task, weights, eigen)

    def one_batch(_: int) -> Any:
        return torch_heads.fresh(eigen, B, N)

    def jax_loop(steps: int, answer: Any) -> Any:
        w, key = {k: jnp.asarray(a[0]) for k, a in weights.items()}, jax.random.key(0)
        for k in range(steps):
            w = jax_heads.step(answer, draw, w, jax.random.fold_in(key, k), LR)
        return jax.block_until_ready(w)

    def jax_many(steps: int, answer: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), 16)
        return jax.block_until_ready(jax_heads.ensemble(answer, draw, steps, weights, keys, LR))

    t, rows = settings.seconds, {}
    rows["PyTorch, one seed"] = Row(*by_count(lambda n: torch_heads.loop(one, n, LR, one_batch), t, 1))
    for S in (1, 16):
        stacked = {k: torch.tensor(w[:S]) for k, w in weights.items()}
        call = functools.partial(_torch_many, stacked, _many_batches(eigen, S), False)
        rows[f"torch.func, query only, S = {S}"] = Row(*by_count(call, t, S))
    rows["JAX loop, all tokens"] = Row(*by_count(lambda n: jax_loop(n, jax_heads.all_tokens), t, 1))
    rows["JAX loop, query only"] = Row(*by_count(lambda n: jax_loop(n, jax_heads.query_only), t, 1))
    rows["JAX vmap + scan, all tokens, S = 16"] = Row(*by_count(lambda n: jax_many(n, jax_heads.all_tokens), t, 16))
    rows["JAX vmap + scan, query only, S = 16"] = Row(*by_count(lambda n: jax_many(n, jax_heads.query_only), t, 16))
    for data, S in (("own", S_OWN), ("shared", S_SHARED)):
        for zero in (False, True):
            model = ic.merged(D, H, zero_blocks=zero)
            objective = ic.statistics(task, model, B, data=data)
            call = functools.partial(trained, objective, ic.heads.gaussian(model), S)
            drawn = 0.0 if data == "shared" else B * (3 * D + 1 if zero else D * (D + 1) / 2 + 2 * D)
            need = flops(D, zero, None if data == "shared" else B)
            name = f"icldyn {data} data, {'zero' if zero else 'all'} blocks"
            rows[name] = Row(*by_count(call, t, S), need, drawn)
    return rows


def softmax(settings: Settings) -> dict[str, Row]:
    """Fresh prompts, softmax attention."""
    D, ones = 8, np.ones(8, np.float32)
    weights, draw = start(D, 16), functools.partial(_fresh, jnp.asarray(ones))
    one = {k: torch.tensor(w[0]) for k, w in weights.items()}
    model = ic.softmax_attention.softmax_attention(D, H, query_attends_itself=False)
    objective = ic.attended(ic.block_regression(N, [range(D)], size=1.0), model, B)
    check_softmax(one, weights, objective)

    def one_batch(_: int) -> Any:
        return torch_heads.fresh(torch.ones(D), B, N)

    def jax_many(steps: int, answer: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), 16)
        return jax.block_until_ready(jax_heads.ensemble(answer, draw, steps, weights, keys, LR))

    t, rows = settings.seconds, {}
    loop = functools.partial(torch_heads.loop, answer=torch_heads.softmax_all_tokens)
    rows["PyTorch, one seed"] = Row(*by_count(lambda n: loop(one, n, LR, one_batch), t, 1))
    for S in (1, 16):
        stacked = {k: torch.tensor(w[:S]) for k, w in weights.items()}
        call = functools.partial(
            _torch_many, stacked, _many_batches(torch.ones(D), S), False, answer=torch_heads.softmax_query_only
        )
        rows[f"torch.func, query only, S = {S}"] = Row(*by_count(call, t, S))
    for name, answer in (("all tokens", jax_heads.softmax_all_tokens), ("query only", jax_heads.softmax_query_only)):
        call = functools.partial(jax_many, answer=answer)
        rows[f"JAX vmap + scan, {name}, S = 16"] = Row(*by_count(call, t, 16))
    products = 2.0 * B * H * (D + 1) * (4 * N + 3 * D)  # logits, tokens seen, and both ways back; queries
    init = ic.heads.gaussian(model)
    for name, descended in (("attended", objective), ("sampled", ic.sampled(objective.task, model, B))):
        drawn = float(B * (N + 2) * D)
        rows[f"icldyn {name}"] = Row(
            *by_count(functools.partial(trained, descended, init, S_OWN), t, S_OWN), products, drawn
        )
    return rows


def ours_softmax(model: Any, weights: dict[str, np.ndarray]) -> Any:
    """The peers' weights of their first seed as an initialiser."""
    v, U = weights["value"][0, :, -1], weights["key_query"][0, :, :-1].swapaxes(1, 2)
    return ic.heads.given(model, v=v, U=U)


def dictionary(settings: Settings, N: int, K: int, d: int, m: int, H: int) -> dict[str, Row]:
    """The exact loss over a dictionary against its sampled one."""
    objective, rows = ic.token_population(ic.representations(N, K=K, d=d, m=m, tau=0.01), H), {}
    for name, descended in (("256 tasks a step", ic.token_sampled(objective.task, H, 256)), ("exact loss", objective)):
        call = functools.partial(trained, descended, objective.start, S_OWN)
        rows[name] = Row(*by_count(call, settings.seconds, S_OWN))
    return rows


def _same(z: jax.Array, y: jax.Array, key: Any) -> tuple[jax.Array, jax.Array]:
    return z, y


def _fresh(s: jax.Array, key: Any) -> tuple[jax.Array, jax.Array]:
    return jax_heads.fresh(key, s, B, N)


def _many_batches(s: Any, S: int) -> Callable[[int], Any]:
    """Fresh prompts for every one of S seeds of PyTorch."""

    def batch(_: int) -> Any:
        z, y = torch_heads.fresh(s, S * B, N)
        return z.reshape(S, B, N + 1, -1), y.reshape(S, B)

    return batch


def _torch_many(weights: Any, batch: Any, shared: bool, steps: int, answer: Any = torch_heads.query_only) -> Any:
    return torch_heads.ensemble(weights, steps, LR, batch, shared, answer)


def check_full_batch(one: Any, weights: Any, fixed: Any, objective: Any) -> None:
    """20 steps of PyTorch and of icldyn from the same weights."""
    theirs = torch_heads.loop(one, 20, LR, lambda _: fixed)
    settings = {"seeds": 1, "lr": 2 * LR, "steps": 19, "records": 20, "measures": {"loss": objective.loss}}
    run = ic.ensemble(objective, ours(weights, 0, zero_blocks=False), **settings)
    gap = np.abs(2 * run["loss"][0] / np.array(theirs) - 1).max()
    print(f"Full batch: losses of PyTorch and icldyn differ by {gap:.1e} over 20 steps, from {theirs[0]:.4f}.")
    if gap > 1e-4:
        raise SystemExit("They do not train the same.")


def check_online(task: Any, weights: Any, eigen: Any) -> None:
    """Losses of 200 large steps: mean over the last 100 of PyTorch against icldyn's exact loss, averaged alike."""
    steps, lr, S = 200, 0.2, 64
    one = {k: torch.tensor(w[0]) for k, w in weights.items()}
    torch.manual_seed(0)
    theirs = np.mean(
        [torch_heads.loop(one, steps, lr, lambda _: torch_heads.fresh(eigen, B, N))[100:] for _ in range(4)]
    )
    model = ic.merged(8, H, zero_blocks=False)
    settings = {"seeds": S, "lr": 2 * lr, "steps": steps, "records": steps + 1}
    run = ic.ensemble(ic.statistics(task, model, B), ours(weights, 0, zero_blocks=False), **settings)
    losses = 2 * run["loss"][:, 100:200].mean(1)
    error = losses.std() * (1 / 4 + 1 / S) ** 0.5
    apart = abs(theirs - losses.mean()) / error
    print(
        f"Online: mean losses {theirs:.4f} (PyTorch) and {losses.mean():.4f} (icldyn), {apart:.1f} standard errors apart."
    )
    if apart > 4:
        raise SystemExit("They do not train the same.")


def check_softmax(one: Any, weights: Any, objective: Any) -> None:
    """Batch losses of steps 100 to 200 at a large rate, PyTorch against icldyn, from the same weights."""
    steps, lr, S = 200, 0.02, 64
    torch.manual_seed(0)
    loop = functools.partial(torch_heads.loop, answer=torch_heads.softmax_all_tokens)
    draw = torch_heads.fresh
    theirs = np.array([np.mean(loop(one, steps, lr, lambda _: draw(torch.ones(8), B, N))[100:]) for _ in range(8)])
    settings = {"seeds": S, "lr": 2 * lr, "steps": steps, "records": steps + 1}
    run = ic.ensemble(objective, ours_softmax(objective.model, weights), **settings)
    losses = 2 * run["loss"][:, 100:200].mean(1)
    error = np.hypot(theirs.std(ddof=1) / len(theirs) ** 0.5, losses.std() / S**0.5)
    apart = abs(theirs.mean() - losses.mean()) / error
    print(f"Softmax: mean losses {theirs.mean():.4f} and {losses.mean():.4f}, {apart:.1f} standard errors apart.")
    if apart > 4:
        raise SystemExit("They do not train the same.")


def ceilings() -> dict[str, Row]:
    """A large matrix product, and standard normals."""
    a = jnp.ones((2048, 2048))
    product = jax.jit(lambda a: (a @ a)[0, 0])
    keys = jax.random.split(jax.random.key(0), 8)

    def draws(keys: jax.Array) -> jax.Array:
        def more(i: jax.Array, held: jax.Array) -> jax.Array:
            return held + jax.vmap(lambda k: normals(jax.random.fold_in(k, i), (52, B), jnp.float32))(keys)

        return jax.lax.fori_loop(0, 64, more, jnp.zeros((8, 52, B)))

    drawn = jax.jit(draws, compiler_options=compiler_options())
    rows = {"floating point": Row(lambda: product(a).block_until_ready(), 1, 2.0 * 2048**3)}
    return rows | {"normals": Row(lambda: drawn(keys).block_until_ready(), 1, 0.0, 64 * 8 * 52 * B)}


def shown(title: str, rows: dict[str, Row], found: dict[str, Timing], ceiling: dict[str, float]) -> dict[str, float]:
    """Print a table; returns seed-steps per CPU-second by name."""
    rate = {name: rows[name].seed_steps / (t.seconds * t.cores) for name, t in found.items()}
    base, out = rate[next(iter(rate))], []
    for name, t in found.items():
        flop = rows[name].flop * rate[name] / ceiling["floating point"]
        drawn = rows[name].normals * rate[name] / ceiling["normals"]
        shares = [f"{share:.0%}" if share else "-" for share in (flop, drawn)]
        out.append(
            (name, figures(rate[name]), figures(rate[name] / base), *shares, f"{t.cores:.1f}", f"{t.spread:.0%}")
        )
    header = (title, "seed-steps per CPU-s", "over the first", "of FLOP/s", "of normals/s", "cores", "spread")
    print(f"\n{table(header, out)}")
    return rate


def _linear(rates: dict[str, dict[str, float]]) -> None:
    """The targets of linear attention."""
    full, on = rates["full batch"], rates["online"]
    best = max(v for k, v in on.items() if k.startswith("torch.func"))
    for blocks in ("all", "zero"):
        reached = {
            "full batch": full[f"icldyn dataset, {blocks} blocks"] / full["PyTorch, one seed"],
            "online": on[f"icldyn own data, {blocks} blocks"] / on["PyTorch, one seed"],
            "online over torch.func": on[f"icldyn own data, {blocks} blocks"] / best,
            "shared": on[f"icldyn shared data, {blocks} blocks"] / on["PyTorch, one seed"],
        }
        for name, ratio in reached.items():
            mark = "reached" if ratio >= PROMISED[name] else "missed"
            print(f"{blocks} blocks, {name}: {figures(ratio)} times (target {PROMISED[name]:,.0f}): {mark}")


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(settings, repeats=3, seconds=0.3)
    torch.set_num_threads(1)  # more threads only lower its steps per CPU-second
    print(machine(), f"\nPyTorch {torch.__version__}, 1 thread\n")
    groups = {"softmax": softmax(settings)}
    if not settings.softmax_only:
        groups = {"full batch": full_batch(settings), "online": online(settings)} | groups
        for sizes in ((8, 48, 24, 5, 16), (30, 200, 100, 20, 64)):  # a quarter of the paper's, and those
            groups[f"dictionary, N = {sizes[0]}, H = {sizes[-1]}"] = dictionary(settings, *sizes)
    groups["ceilings"] = ceilings()
    for row in groups["ceilings"].values():
        row.call()
    runs = {(g, name): row.call for g, rows in groups.items() for name, row in rows.items()}
    timings = interleaved(runs, settings.repeats)
    found = {g: {name: timings[g, name] for name in rows} for g, rows in groups.items()}
    ceiling = {
        name: max(row.flop, row.normals) / (found["ceilings"][name].seconds * found["ceilings"][name].cores)
        for name, row in groups["ceilings"].items()
    }
    rates = {g: shown(g, groups[g], found[g], ceiling) for g in groups if g != "ceilings"}
    print(f"\nCeilings per CPU-second: {ceiling['floating point']:.3g} FLOP, {ceiling['normals']:.3g} normals.")
    if not settings.softmax_only:
        _linear(rates)
    soft = rates["softmax"]
    peers = {"the best torch.func": max(v for k, v in soft.items() if k.startswith("torch.func"))} | soft
    for name, promised in PROMISED_SOFTMAX.items():
        ratio = soft["icldyn attended"] / peers[name]
        mark = "reached" if ratio >= promised else "missed"
        print(f"softmax over {name}: {figures(ratio)} times (target {promised:g}): {mark}")
    if settings.json is not None:
        told = {"machine": machine(), "ceilings": ceiling, "seed_steps_per_cpu_second": rates}
        settings.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__.splitlines()[0]))
