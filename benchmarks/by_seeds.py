"""How many seed-steps a second does this device do, as seeds grow?

On an accelerator a step of few seeds costs as much as one of many, until their numbers fill the chip: this script says where
that is, for every way of training one layer of heads (H = 8, N = 31) of the benchmarks against peers, and for one layer on
vector tasks. All seeds of a column are one block on one device; the unit is optimiser steps of one seed per second of wall
time, compilation apart. A row ends where a column does not fit in memory.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from _timing import figures, machine, table

import icldyn as ic

H, N, P, B = 8, 31, 5000, 256
SCALE, LR = 0.1, 1e-3


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long."""

    seeds: tuple[int, ...] = (8, 64, 512)
    """Seeds of the columns, ascending; on an accelerator 64 4096 65536, say."""
    seconds: float = 2.0
    """Of one measurement, roughly; the middle one of three counts."""
    json: Path | None = None
    """Keep the numbers here."""
    only: str = ""
    """Rows whose names hold this."""


def programs() -> dict[str, tuple[Any, Any]]:
    """Objective and initialiser, by name."""
    found = {}
    fixed = ic.linear_regression(N, [0.4, 0.3, 0.2, 0.1], family="scalar").sample(jax.random.key(0), P)
    x, y, x_q, y_q = (np.asarray(a, np.float32) for a in fixed)
    online = ic.linear_regression(N, np.arange(8, 0, -1) / 36, family="scalar")
    for zero in (False, True):
        blocks = "zero blocks" if zero else "all blocks"
        model = ic.merged(4, H, zero_blocks=zero)
        found[f"fixed prompts, {blocks}"] = ic.dataset(model, x, y[..., 0], x_q, y_q[:, 0]), ic.heads.gaussian(model)
        model = ic.merged(8, H, zero_blocks=zero)
        for data in ("own", "shared"):
            objective = ic.statistics(online, model, B, data=data)
            found[f"{data} data, {blocks}"] = objective, ic.heads.gaussian(model)
    layer = ic.linear_regression(32, np.arange(1, 9) ** -0.5)
    model = ic.linear_attention(8)
    found["one layer, vector tasks, statistics"] = ic.statistics(layer, model, B), ic.gaussian(model)
    found["one layer, vector tasks, exact loss"] = ic.population(layer, model), ic.gaussian(model)
    model = ic.softmax_attention.softmax_attention(8, H, query_attends_itself=False)
    objective = ic.attended(ic.block_regression(N, [range(8)], size=1.0), model, B)
    found["softmax, attended"] = objective, ic.heads.gaussian(model)
    return found


def rate(objective: Any, init: Any, S: int, seconds: float) -> float | None:
    """Seed-steps a second, or None where it does not fit."""

    def trained(steps: int) -> float:
        settings = {"seeds": S, "lr": LR, "steps": steps, "records": 2, "init_scale": SCALE}
        return ic.ensemble(objective, init, **settings, block=-(-S // 8) * 8).attrs["run_seconds"]

    try:
        trained(64)  # compiles
        spent = trained(64)
        steps = min(2**20, max(64, round(64 * seconds / spent)))
        return S * steps / float(np.median([trained(steps) for _ in range(3)]))
    except (ic.BadArgument, jax.errors.JaxRuntimeError) as error:
        print(str(error).splitlines()[0][:200], flush=True)
        return None


def main(settings: Settings) -> None:
    """Measure and print."""
    print(machine(), flush=True)
    rows, kept = [], {}
    for name, (objective, init) in programs().items():
        if settings.only not in name:
            continue
        rates: list[float] = []
        for S in settings.seeds:
            found = rate(objective, init, S, settings.seconds)
            if found is None:
                break
            rates.append(found)
        kept[name] = dict(zip(settings.seeds, rates, strict=False))
        shown = [figures(r) for r in rates]
        print(name, *shown, flush=True)
        rows.append([name, *shown, *["-"] * (len(settings.seeds) - len(rates))])
    print(table(["seed-steps a second", *(f"S = {S:,}" for S in settings.seeds)], rows))
    if settings.json:
        settings.json.write_text(json.dumps({"machine": machine(), "rates": kept}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Settings))
