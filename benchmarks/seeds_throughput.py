"""How many seed-steps per second, and what does the prompt-free objective buy?

A seed-step is one SGD step of one seed. Task and model: vector tasks of the family `shared_eigenbasis` with eigenvalues
s_a = a^-1/2, one layer of linear attention with full W_P and W_Q. All of this runs in one process, repeats interleaved:

- `sampled`, `statistics` and `population` through the public `icldyn.ensemble`, against the number of seeds S;
- peer (i): a Python loop over seeds and steps around a jitted SGD step of the sampled objective (query's answer only);
- peer (ii): vmap over seeds of a scan over steps of the plain prompt model, f(Z) = Z + W_P (Z Z^T / N) W_Q Z with every
  column computed through (N+1) x (N+1) scores, as attention code has it, and the loss read from the query's column;
- the machine's rate of standard normals, which bounds `statistics`: D(D+1)/2 + 2D of them a prompt.

All train the same SGD from the same start. Peers and `sampled` use the same keys, so their losses must agree seed by
seed to round-off, and the mean loss of `statistics` within the sampling error of the seeds. `ensemble` runs one block
of seeds on every CPU core at a time (blocks are padded to full size, so that few seeds pay for many); the peers get the
threads that XLA gives them. "cores" is CPU seconds per second, measured; "spread" is (slowest - fastest) / median.
"""

import dataclasses
import functools
import json
import operator
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from _timing import Timing, compiled, figures, interleaved, machine, table, timed, workers

import icldyn as ic
from icldyn.engine.devices import default_block
from icldyn.normals import GENERATORS, normals

S_PEER = 16
LR, START = 0.1, 0.3  # 20 steps reach t = 2: the first modes are learnt, the last are on their way
PEER_STEPS = 20
PEER_II = "peer (ii), vmap + scan, all columns"
PROMISED_SPEEDUP, PROMISED_COST = 50, 1.2


@dataclasses.dataclass(frozen=True)
class Settings:
    D: int = 8
    """Input dimension."""
    N: int = 32
    """Context length."""
    batch: int = 256
    """Prompts a step."""
    seeds: tuple[int, ...] = ()
    """Numbers of seeds S; by default 1, 16, 64, 256, and on an accelerator 1024 and 4096 as well."""
    repeats: int = 5
    """Repeats, interleaved; medians are printed."""
    seconds: float = 1.5
    """Steady-state seconds of one repeat: the number of steps is chosen for it."""
    quick: bool = False
    """Under a minute on two cores: S = 1 and 16, 3 repeats of 0.3 s."""
    blocks: bool = False
    """Measure the number of seeds in a block as well."""
    json: Path | None = None
    """Write what was measured to this file."""


def setting(D: int, N: int) -> tuple[Any, Any, Any]:
    """Task, model and start p2 = q1 = START I."""
    model = ic.linear_attention(D)
    return ic.linear_regression(N, ic.power_law(D, 0.5)), model, ic.aligned(model, p=START, q=START)


# The programs of icldyn


WEIGHTS: dict[str, Callable[[Any], Any]] = {"W_P": operator.itemgetter("W_P"), "W_Q": operator.itemgetter("W_Q")}


def train(objective: Any, init: Any, S: int, steps: int, block: int | None = None) -> Any:
    """S seeds of `objective` by `icldyn.ensemble`."""
    return ic.ensemble(objective, init, seeds=S, lr=LR, steps=steps, records=2, measures=WEIGHTS, block=block)


Run = Callable[[], Any]


def prepared(objective: Any, init: Any, S: int, seconds: float, block: int | None = None) -> tuple[Run, int]:
    """A run of about `seconds` that returns its seconds, and its number of steps; finding it compiles the program."""
    steps = 2
    while (spent := train(objective, init, S, steps, block).attrs["run_seconds"]) < seconds / 3:
        steps = max(steps + 1, int(steps * min(30.0, seconds / max(spent, 1e-3))))
    steps = max(1, round(steps * seconds / spent))
    return (lambda: train(objective, init, S, steps, block).attrs["run_seconds"]), steps


def compile_seconds(objective: Any, init: Any) -> float:
    """Seconds until the first step of the first call."""
    jax.clear_caches()
    return train(objective, init, 1, 1).attrs["compile_seconds"]


# The peers


def full_attention(params: dict[str, jax.Array], Z: jax.Array) -> jax.Array:
    """f(Z) = Z + W_P (Z Z^T / N) W_Q Z for prompts Z (B, D+O, N+1), all columns."""
    queries = jnp.einsum("ij,bjk->bik", params["W_Q"], Z)
    values = jnp.einsum("ij,bjk->bik", params["W_P"], Z)
    scores = jnp.einsum("bim,bik->bmk", Z, queries) / (Z.shape[2] - 1)  # (B, N+1, N+1), keys by queries
    return Z + jnp.einsum("bim,bmk->bik", values, scores)


def full_attention_loss(params: dict[str, jax.Array], task: Any, batch: int, key: jax.Array) -> jax.Array:
    """1/2 mean |y_q - f(Z)_{y, q}|^2 over a batch of prompts, z_n = (x_n; y_n) and z_q = (x_q; 0)."""
    x, y, x_q, y_q = task.sample(key, batch)
    context = jnp.concatenate([x, y], axis=2)
    query = jnp.concatenate([x_q, jnp.zeros_like(y_q)], axis=1)
    Z = jnp.concatenate([context, query[:, None]], axis=1).swapaxes(1, 2)  # (B, D+O, N+1)
    return jnp.sum((y_q - full_attention(params, Z)[:, task.D :, -1]) ** 2) / (2 * batch)


def descended(loss: Callable[..., jax.Array], params: Any, key: jax.Array, step: jax.Array) -> Any:
    """params - lr grad loss, on the batch of this step."""
    with jax.default_matmul_precision("highest"):  # as the ensemble has it
        grads = jax.grad(loss)(params, jax.random.fold_in(key, step))
    return jax.tree.map(lambda w, g: w - LR * g, params, grads)


@jax.jit
def one_step(objective: Any, params: Any, key: jax.Array, step: jax.Array) -> Any:
    """Peer (i): one SGD step of one seed."""
    return descended(objective.loss, params, key, step)


def loop(program: Callable[..., Any], objective: Any, params: Any, keys: list[jax.Array], steps: int) -> list[Any]:
    """Peer (i): seeds one after another, steps one after another."""
    out = []
    for S, key in enumerate(keys):
        weights = jax.tree.map(operator.itemgetter(S), params)
        for step in range(steps):
            weights = program(objective, weights, key, np.int32(step))
        out.append(weights)
    return out


@functools.partial(jax.jit, static_argnames=("batch", "steps"))
def vmapped_scan(task: Any, params: Any, keys: jax.Array, batch: int, steps: int) -> Any:
    """Peer (ii): all seeds at once."""

    def one(weights: Any, key: jax.Array) -> Any:
        def body(weights: Any, step: jax.Array) -> tuple[Any, None]:
            return descended(lambda w, k: full_attention_loss(w, task, batch, k), weights, key, step), None

        return jax.lax.scan(body, weights, jnp.arange(steps))[0]

    return jax.vmap(one)(params, keys)


def data_key(seed: int) -> jax.Array:
    """The key that `ensemble` draws this seed's batches from."""
    return jax.random.split(jax.random.key(seed, impl="threefry2x32"))[1]


# The ceiling


@functools.partial(jax.jit, static_argnames=("shape", "count", "generator"))
def draw_normals(keys: jax.Array, shape: tuple[int, ...], count: int, generator: str) -> jax.Array:
    """The sum of `count` arrays of standard normals a key, drawn one after another and not kept."""

    def draw(key: jax.Array, i: jax.Array) -> jax.Array:
        return normals(jax.random.fold_in(key, i), shape, jnp.float32, generator)

    many = jax.vmap(draw, (0, None))
    return jax.lax.fori_loop(0, count, lambda i, total: total + many(keys, i), jnp.zeros((len(keys), *shape)))


def normals_run(D: int, batch: int, seconds: float, generator: str) -> tuple[Run, int]:
    """A run of about `seconds` that draws normals on every worker, a block's step at a time, and how many."""
    shape, block = (D * (D + 1) // 2 + 2 * D, batch), default_block(batch)
    pool, keys = ThreadPoolExecutor(workers()), [jax.random.split(jax.random.key(k), block) for k in range(workers())]

    def run(count: int) -> list[Any]:
        return list(pool.map(lambda some: jax.block_until_ready(draw_normals(some, shape, count, generator)), keys))

    count = 250 if jax.default_backend() == "cpu" else 1000
    run(count)
    count = max(1, round(count * seconds / timed(lambda: run(count))[1]))
    run(count)
    return lambda: run(count), count * block * shape[0] * shape[1] * len(keys)


# The questions


def throughput(settings: Settings, S_list: tuple[int, ...]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of the first table, and the machine's normals a second by generator."""
    task, model, init = setting(settings.D, settings.N)
    objectives = {
        "sampled": ic.sampled(task, model, settings.batch),
        "statistics": ic.statistics(task, model, settings.batch),
        "population": ic.population(task, model),
    }
    compile_of = {f"ensemble, {name}": compile_seconds(objective, init) for name, objective in objectives.items()}
    runs: dict[tuple[str, int], Run] = {}
    steps: dict[tuple[str, int], int] = {}
    for name, objective in objectives.items():
        for S in sorted({*S_list, S_PEER}):
            key = (f"ensemble, {name}", S)
            runs[key], steps[key] = prepared(objective, init, S, settings.seconds)

    params, keys = ic.initial_params(init, seeds=S_PEER), [data_key(k) for k in range(S_PEER)]
    on_device = jax.device_put((objectives["sampled"], task))
    first = jax.tree.map(operator.itemgetter(0), params)
    peer, ii = ("peer (i), loop over seeds", S_PEER), (PEER_II, S_PEER)
    step_program, compile_of[peer[0]] = compiled(one_step, on_device[0], first, keys[0], np.int32(0))
    scan_program, compile_of[ii[0]] = compiled(
        vmapped_scan, on_device[1], params, jnp.stack(keys), batch=settings.batch, steps=PEER_STEPS
    )
    runs[peer] = lambda: loop(step_program, on_device[0], params, keys, PEER_STEPS)
    runs[ii] = lambda: scan_program(on_device[1], params, jnp.stack(keys))
    steps[peer] = steps[ii] = PEER_STEPS
    check_agreement(objectives, init, runs[peer](), runs[ii]())

    drawing = {name: normals_run(settings.D, settings.batch, settings.seconds, name) for name in GENERATORS}
    found = interleaved(runs | {("normals", name): run for name, (run, _) in drawing.items()}, settings.repeats)
    rate = {key: key[1] * steps[key] / found[key].seconds for key in runs}
    return [
        {
            "program": name,
            "S": S,
            "compile_seconds": compile_of[name],
            "seed_steps_per_second": rate[name, S],
            "over_ii": rate[name, S] / rate[ii],
            "cores": found[name, S].cores,
            "spread": found[name, S].spread,
        }
        for name, S in runs
        if S in S_list or S == S_PEER
    ], {name: count / found["normals", name].seconds for name, (_, count) in drawing.items()}


def check_agreement(objectives: dict[str, Any], init: Any, one_by_one: list[Any], together: Any) -> None:
    """Peers, `sampled` and `statistics` train the same thing: exact losses of the seeds after PEER_STEPS steps."""
    exact = jax.jit(jax.vmap(functools.partial(_loss, objectives["population"])))
    final = {"peer (i)": jax.tree.map(lambda *w: jnp.stack(w), *one_by_one), "peer (ii)": together}
    for name in ("sampled", "statistics"):
        run = train(objectives[name], init, S_PEER, PEER_STEPS)
        final[name] = {w: run[w][:, -1] for w in ("W_P", "W_Q")}
    losses = {name: np.asarray(exact(weights), float) for name, weights in final.items()}
    start = float(exact(ic.initial_params(init, seeds=S_PEER))[0])
    error = {name: value.std(ddof=1) / np.sqrt(S_PEER) for name, value in losses.items()}
    said = ", ".join(f"{name} {losses[name].mean():.4f} +- {error[name]:.4f}" for name in losses)
    print(f"Exact loss after {PEER_STEPS} steps (from {start:.4f}), mean of {S_PEER} seeds +- standard error: {said}.")
    for name in ("peer (i)", "peer (ii)"):
        gap = np.abs(losses[name] - losses["sampled"]).max()
        if not gap < 1e-4 * start:  # float32 round-off through 20 steps
            raise AssertionError(f"{name} and sampled differ by {gap:.2g} in the exact loss of a seed.")
    difference = losses["statistics"].mean() - losses["sampled"].mean()
    apart = abs(difference) / np.hypot(error["statistics"], error["sampled"])
    print(f"Peers and sampled agree seed by seed to round-off; statistics is {apart:.1f} standard errors away.\n")
    if not apart < 4.5:
        raise AssertionError(f"statistics and sampled differ by {apart:.1f} standard errors.")


def _loss(objective: Any, params: Any) -> jax.Array:
    return objective.loss(params)


def context_length(settings: Settings) -> list[dict[str, Any]]:
    """Cost of a seed-step against N at S = 16, prompt-free and sampled."""
    runs: dict[tuple[str, int], Run] = {}
    steps: dict[tuple[str, int], int] = {}
    for name, make, lengths in (("statistics", ic.statistics, (32, 2048)), ("sampled", ic.sampled, (32, 256))):
        for N in lengths:
            task, model, init = setting(settings.D, N)
            runs[name, N], steps[name, N] = prepared(make(task, model, settings.batch), init, S_PEER, settings.seconds)
    found = interleaved(runs, settings.repeats)
    cost = {key: found[key].seconds / (S_PEER * steps[key]) for key in runs}
    return [
        {
            "objective": name,
            "N": N,
            "microseconds": 1e6 * cost[name, N],
            "over_N32": cost[name, N] / cost[name, 32],
            "spread": found[name, N].spread,
        }
        for name, N in runs
    ]


def block_sizes(settings: Settings) -> list[dict[str, Any]]:
    """Seed-steps a second of `statistics` against the seeds in a block, with blocks for every worker, by (D, batch)."""
    rows = []
    sizes = (8, 16, 32, 64) if jax.default_backend() == "cpu" else (64, 256, 1024, 4096)
    for D, batch in ((4, 32), (8, 256)):
        task, model, init = setting(D, 32)
        objective, S = ic.statistics(task, model, batch), 2 * sizes[-1] * workers()
        runs, steps = {}, {}
        for block in sizes:
            runs[block], steps[block] = prepared(objective, init, S, settings.seconds, block)
        found: dict[int, Timing] = interleaved(runs, settings.repeats)
        default = train(objective, init, 1, 1).attrs["block"]
        rows += [
            {
                "D": D,
                "batch": batch,
                "block": block,
                "default": block == default,
                "seed_steps_per_second": S * steps[block] / found[block].seconds,
                "spread": found[block].spread,
            }
            for block in sizes
        ]
    return rows


def throughput_table(rows: list[dict[str, Any]]) -> str:
    header = ("program", "S", "compile s", "seed-steps/s", "over (ii)", "cores", "spread")
    return table(
        header,
        [
            (
                r["program"],
                r["S"],
                f"{r['compile_seconds']:.1f}",
                figures(r["seed_steps_per_second"]),
                figures(r["over_ii"], 2),
                f"{r['cores']:.1f}",
                f"{r['spread']:.0%}",
            )
            for r in rows
        ],
    )


def context_table(rows: list[dict[str, Any]]) -> str:
    return table(
        ("objective, S = 16", "N", "us a seed-step", "over N = 32", "spread"),
        [
            (r["objective"], r["N"], figures(r["microseconds"]), f"{r['over_N32']:.2f}", f"{r['spread']:.0%}")
            for r in rows
        ],
    )


def block_table(rows: list[dict[str, Any]]) -> str:
    return table(
        ("(D, batch)", "seeds in a block", "prompts in flight", "seed-steps/s", "spread"),
        [
            (
                f"({r['D']}, {r['batch']})",
                f"{'default: ' if r['default'] else ''}{r['block']}",
                f"{r['block'] * r['batch']:,}",
                figures(r["seed_steps_per_second"]),
                f"{r['spread']:.0%}",
            )
            for r in rows
        ],
    )


def verdict(what: str, value: float, promise: str, kept: bool) -> str:
    return f"{what}: {value:.3g} (promised {promise}): {'pass' if kept else 'FAIL'}"


def main(settings: Settings) -> None:
    began = time.perf_counter()
    if settings.quick:
        settings = dataclasses.replace(settings, repeats=3, seconds=0.3, seeds=settings.seeds or (1, S_PEER))
    D, N, batch = settings.D, settings.N, settings.batch
    default = (1, 16, 64, 256) if jax.default_backend() == "cpu" else (1, 16, 64, 256, 1024, 4096)
    print(f"{machine()}\nensemble: {workers()} workers. D = {D}, N = {N}, batch {batch}\n")

    rows, drawn = throughput(settings, settings.seeds or default)
    print(throughput_table(rows))
    best = max(r["seed_steps_per_second"] for r in rows if r["program"] == "ensemble, statistics")
    per_step = batch * (D * (D + 1) // 2 + 2 * D)
    print(
        f"\nNormals on {workers()} workers: {drawn['both_words'] / 1e6:,.0f} million/s from both words of each hash, "
        f"{drawn['stock'] / 1e6:,.0f} million/s from jax.random.normal. {per_step:,} a step bound `statistics` at "
        f"{figures(drawn['both_words'] / per_step)} seed-steps/s, of which it reaches "
        f"{best * per_step / drawn['both_words']:.0%}.\n"
    )
    lengths = context_length(settings)
    print(context_table(lengths))
    sizes = block_sizes(settings) if settings.blocks else []
    if sizes:
        print(f"\n{block_table(sizes)}")

    speedup = next(r["over_ii"] for r in rows if (r["program"], r["S"]) == ("ensemble, statistics", S_PEER))
    busy = {r["program"]: r["cores"] for r in rows if r["S"] == S_PEER}
    a_core = speedup * busy[PEER_II] / busy["ensemble, statistics"]
    cost = next(r["over_N32"] for r in lengths if (r["objective"], r["N"]) == ("statistics", 2048))
    what = f"Prompt-free over peer (ii) at D = {D}, N = {N}, batch {batch}, S = {S_PEER}"
    print(f"\n{verdict(what, speedup, f'at least {PROMISED_SPEEDUP}', speedup >= PROMISED_SPEEDUP)}")
    if jax.default_backend() == "cpu":
        print(f"  (for each core that was busy: {a_core:.3g}; the rest is that `ensemble` keeps more cores busy)")
    what = "Cost of a prompt-free step, N = 2048 over N = 32"
    print(verdict(what, cost, f"below {PROMISED_COST}", cost < PROMISED_COST))
    print(f"{time.perf_counter() - began:.0f} s in all.")
    if settings.json is not None:
        found = {"machine": machine(), "throughput": rows, "normals_per_second": drawn}
        settings.json.write_text(json.dumps(found | {"context_length": lengths, "blocks": sizes}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__.splitlines()[0]))
