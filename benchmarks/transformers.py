"""How much faster than what people run today does an ensemble of small transformers train, per CPU-second?

Two layers, attention-only, width 64, four heads of 16, 64 tokens of 8 kinds, batch 64, Adam: the network of the study of
attention-only transformers, twice as wide. All draw their batches from one set of Markov sequences, made before.

Peers: PyTorch (its fused attention, one seed in a Python loop), an ensemble by torch.func, JAX with a jitted step in a loop
over seeds and steps, and `vmap` over a scan. icldyn: `next_token` through `icldyn.ensemble`, seed after seed, a few sequences at
a time. One process, repeats interleaved, medians; the unit is optimiser steps of one seed per CPU-second. First the script
checks that PyTorch and icldyn have the same loss and train alike. Memory: what the program of a block needs by the
compiler's own count, against its seeds.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from _timing import by_count, figures, interleaved, machine, table

import icldyn as ic
from icldyn.engine.blocks import cells_of
from icldyn.engine.programs import Placer, footprint
from icldyn.struct import static, struct

try:
    import torch
    from peers import torch_transformer
except ImportError:
    raise SystemExit('The peers need PyTorch: pip install "icldyn[benchmarks]".') from None

K, T, B, LAYERS, D, H = 8, 64, 64, 2, 64, 4
LR, POOL, PROMISED = 1e-3, 64, 3.0
NET = ic.transformer(K, T, layers=LAYERS, d=D, H=H, d_head=D // H)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long."""

    repeats: int = 5
    """Repeats, interleaved; medians are printed."""
    seconds: float = 4.0
    """Of one repeat of one program, roughly."""
    seeds: int = 16
    """Seeds of ensembles."""
    json: Path | None = None
    """Keep the numbers here."""


@struct
class Pool:
    """A task that draws one of the batches made before."""

    batches: Any  # (POOL, B, T + 1)
    k: int = static(default=K)
    T: int = static(default=T)

    def sample(self, key: jax.Array, B: int) -> jax.Array:
        """(B, T + 1)."""
        return jnp.asarray(self.batches)[jax.random.randint(key, (), 0, POOL)]


def trained(objective: Any, S: int, steps: int, **more: Any) -> Any:
    """A run of `icldyn.ensemble`."""
    return ic.ensemble(objective, objective.start, seeds=S, lr=LR, steps=steps, optimiser=optax.adam, records=2, **more)


def as_torch(params: Any) -> dict[str, torch.Tensor]:
    """Weights of one seed or many (S, ...), layers stacked behind the seeds."""
    layers = [params[f"layer_{n}"] for n in range(LAYERS)]
    axis = np.ndim(params["W_E"]) - 2
    stacked = {name: np.stack([layer[name] for layer in layers], axis) for name in ("W_Q", "W_K", "W_V", "W_O")}
    named = {name: np.array(params[name]) for name in ("W_E", "W_U", "W_pos")}
    return {name: torch.tensor(w) for name, w in (named | stacked).items()}


def check(objective: Any, tokens: np.ndarray, params: Any) -> None:
    """PyTorch and icldyn have the same loss, and it falls alike over 20 steps on one batch."""
    one = jax.tree.map(lambda a: a[0], params)
    theirs = torch_transformer.loop(as_torch(one), 20, LR, lambda _: torch.tensor(tokens[0].astype(np.int64)))
    same = dataclasses.replace(objective, task=Pool(np.broadcast_to(tokens[:1], tokens.shape)))
    run = ic.ensemble(same, same.start, seeds=1, lr=LR, steps=19, optimiser=optax.adam, records=20)
    np.testing.assert_allclose(run["loss"][0], theirs, rtol=1e-4)  # float32
    print(f"losses over 20 steps agree to {np.abs(run['loss'][0] / theirs - 1).max():.1e}")


def programs(settings: Settings, objective: Any, tokens: np.ndarray, params: Any) -> dict[str, tuple[Any, int]]:
    """Calls and the seed-steps of each."""
    S, s, rng = settings.seeds, settings.seconds, np.random.default_rng(0)
    one, pool = jax.tree.map(lambda a: a[0], params), torch.tensor(tokens)

    def drawn(_: int) -> torch.Tensor:
        return pool[rng.integers(POOL)]

    def drawn_many(_: int) -> torch.Tensor:
        return pool[rng.integers(POOL, size=S)]

    adam = optax.adam(LR)

    def descended(state: Any, key: jax.Array) -> Any:
        params, held = state
        updates, held = adam.update(jax.grad(plain)(params, key), held, params)
        return optax.apply_updates(params, updates), held

    def plain(params: Any, key: jax.Array) -> jax.Array:
        tokens = objective.draw(key)
        logits = NET.logits(params, tokens[:, :-1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]))

    step = jax.jit(descended)

    def jax_loop(steps: int) -> Any:
        state = one, adam.init(one)
        for key in jax.random.split(jax.random.key(0), steps):
            state = step(state, key)
        return jax.block_until_ready(state)

    @functools.partial(jax.jit, static_argnums=0)
    def scanned(steps: int, params: Any, keys: jax.Array) -> Any:
        def seed(params, key):
            keys = jax.random.split(key, steps)
            return jax.lax.scan(lambda state, key: (descended(state, key), None), (params, adam.init(params)), keys)[0]

        return jax.vmap(seed)(params, keys)

    def jax_many(steps: int) -> Any:
        return jax.block_until_ready(scanned(steps, params, jax.random.split(jax.random.key(0), S)))

    def ours(steps: int) -> float:
        return trained(objective, S, steps).attrs["run_seconds"]

    rows = {"PyTorch, one seed": by_count(lambda n: torch_transformer.loop(as_torch(one), n, LR, drawn), s, 1)}
    many = functools.partial(torch_transformer.ensemble, lr=LR, batch=drawn_many)
    rows[f"torch.func, S = {S}"] = by_count(lambda n: many(as_torch(params), n), s, S)
    rows["JAX, loop over seeds"] = by_count(jax_loop, s, 1)
    rows[f"JAX vmap + scan, S = {S}"] = by_count(jax_many, s, S)
    return rows | {f"icldyn, S = {S}": by_count(ours, s, S)}


def memory(objective: Any) -> list[tuple[int, float]]:
    """Seeds in a block, and megabytes of its program."""
    found = []
    for block in (8, 16, 32, 64, 128):
        settings = {"seeds": block, "lr": LR, "steps": 2, "records": 2, "block": block, "optimiser": optax.adam}
        experiment = ic.Experiment(objective, objective.start, **settings)
        lanes = Placer([experiment]).lanes((cells_of(0, experiment)[0],), jax.local_devices()[0])
        found.append((block, footprint(lanes) / 1e6))
    return found


def main(settings: Settings) -> None:
    torch.set_num_threads(1)  # more threads only lower its steps per CPU-second
    print(machine(), f"\nPyTorch {torch.__version__}, 1 thread")
    tokens = np.asarray(ic.markov(K, T, alpha=0.1).sample(jax.random.key(0), POOL * B)).reshape(POOL, B, T + 1)
    tokens = tokens.astype(np.int64 if jax.config.jax_enable_x64 else np.int32)
    objective = ic.next_token(Pool(tokens), NET, B)
    params = ic.initial_params(objective.start, seeds=settings.seeds)
    torch_tokens = tokens.astype(np.int64)
    check(objective, tokens, params)
    rows = programs(settings, objective, torch_tokens, params)
    timings = interleaved({name: call for name, (call, _) in rows.items()}, settings.repeats)
    rates = {name: rows[name][1] / (t.seconds * t.cores) for name, t in timings.items()}
    base, mine = rates["PyTorch, one seed"], list(rates)[-1]
    shown = [
        (name, figures(rate), figures(rate / base), f"{timings[name].cores:.1f}", f"{timings[name].spread:.0%}")
        for name, rate in rates.items()
    ]
    print(f"\n{table(('2 layers, width 64', 'seed-steps per CPU-s', 'over PyTorch', 'cores', 'spread'), shown)}\n")
    for name, rate in list(rates.items())[:-1]:
        mark = "reached" if rates[mine] >= PROMISED * rate else "missed"
        print(f"over {name}: {figures(rates[mine] / rate)} times (target {PROMISED:g}): {mark}")
    needed = memory(objective)
    print(f"\n{table(('seeds in a block', 'MB'), [(block, figures(size)) for block, size in needed])}")
    if settings.json is not None:
        kept = {"machine": machine(), "seed_steps_per_cpu_second": rates, "megabytes": dict(needed)}
        settings.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__.splitlines()[0]))
