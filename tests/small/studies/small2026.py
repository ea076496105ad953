"""A study of 8 cells that is trained, solved and drawn in a second or two, for tests of what may happen to a run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np

import icldyn as ic
from icldyn.study import Claim, Study


@dataclass(frozen=True)
class Config:
    """Settings."""

    seeds: int = 44
    """Seeds of the main run."""
    steps: int = 400
    """Steps of every run."""


def check(config: Config) -> None:
    """Refuse what cannot run."""
    ic.checks.integer("seeds", config.seeds, 1)
    ic.checks.integer("steps", config.steps, 8)


def experiments(config: Config) -> dict[str, ic.Experiment]:
    """Blocks of one program: six of the main run, and one that two rates share."""
    task, model = ic.linear_regression(20, [1.0, 0.6]), ic.linear_attention(2)
    settings = {"records": 9, "block": 8, "steps": config.steps, "measures": ic.modes.measures(task.U)}
    objective, init = ic.statistics(task, model, 16), ic.gaussian(model)
    main = ic.Experiment(objective, init, seeds=config.seeds, lr=0.02, init_scale=0.3, **settings)
    rates = ic.Experiment(objective, init, seeds=3, lr=[0.04, 0.02], init_scale=0.3, **settings)
    return {"main": main, "rates": rates}


def theories(config, seeds):
    """Two curves on the record times."""
    time.sleep(float(os.environ.get("SMALL_PAUSE", 0)))
    t = seeds["main"].t
    curves = {"rise": 1 - np.exp(-t), "fall": np.exp(-t)}
    coords = {"t": (("time",), t)}
    return {name: ic.Trajectory({"strength": a}, {"strength": ("time",)}, coords) for name, a in curves.items()}


def claims(config, seeds, theory):
    """Numbers in which every seed and every curve counts."""
    ends = [np.asarray(run["strength"])[..., -1, :].mean() for run in seeds.values()]
    curves = [np.asarray(run["strength"]).sum() for run in theory.values()]
    return [Claim(f"Number {k}", float(value)) for k, value in enumerate(ends + curves)]


def figures(config, seeds, theory):
    """Two curves in two figures."""
    import matplotlib.pyplot as plt

    time.sleep(float(os.environ.get("SMALL_PAUSE", 0)))
    drawn = {}
    for name, run in theory.items():
        drawn[name], ax = plt.subplots(figsize=(2, 2))
        ax.plot(run.t, np.asarray(run["strength"]))
    return drawn


STUDY = Study(
    title="A small study",
    paper="None",
    scales={"smoke": Config(), "laptop": Config()},
    check=check,
    experiments=experiments,
    theories=theories,
    claims=claims,
    figures=figures,
    panel=lambda *_: None,
)
