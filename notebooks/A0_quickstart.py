# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A thousand seeds and one theory
#
# A linear transformer sees a prompt: $N$ pairs $(x_n, y_n)$ with $y_n = W x_n$, then a query $x_q$, and must answer $W x_q$.
# Every prompt has a new $W$, so nothing can be memorised: it must learn to *regress in context*. How does it learn that?
#
# We train a thousand copies, lay the exact theory over them, change the context length and look again. It takes a minute.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from jax.tree_util import Partial

import icldyn as ic

SEEDS = int(os.environ.get("ICLDYN_SEEDS", 1000))  # tests run this notebook with fewer

# %% [markdown]
# ## The prompts, the model, and how it is trained
#
# The inputs $x$ have covariance eigenvalues $s_1 > s_2 > s_3 > s_4$. The model is one layer of linear attention with full weight
# matrices. It starts with small aligned weights, $p_\alpha = q_\alpha = 0.22$ in every mode $\alpha$.

# %%
s = np.array([1.0, 0.7, 0.5, 0.35])
START, LR, T_END = 0.22, 0.02, 60.0
model = ic.linear_attention(D=4)
start = ic.aligned(model, p=START, q=START)


def train(N):
    """Train SEEDS models by SGD on fresh prompts of N pairs; the mode strengths a = p q and the exact loss are recorded."""
    task = ic.linear_regression(N, s)
    exact_loss = ic.population(task, model).loss
    return ic.ensemble(
        ic.statistics(task, model, batch=32),
        start,
        seeds=SEEDS,
        lr=LR,
        t_end=T_END,
        measures=ic.modes.measures(task.U) | {"loss": exact_loss},
    )


seeds = train(N=20)
speed = seeds.attrs["seed_steps_per_second"]
print(f"{seeds.num_seeds} seeds of {seeds.attrs['steps']} steps, {speed:,.0f} seed-steps per second")

# %% [markdown]
# ## The theory
#
# Mainali and Teixeira (2025) solve the learning curve of every mode in closed form: a logistic curve with time scale
# $\tau_\alpha = 1/s_\alpha^2$. It ignores that at finite $N$ the modes disturb one another; `null_blocks.modes_flow` does not.


# %%
def coupled(s, N, w):
    dp, dq = ic.null_blocks.modes_flow(w["p"], w["q"], s, N)
    return {"p": dp, "q": dq}


def strength(w):
    return w["p"] * w["q"]


def theory(N, t):
    """The exact coupled flow and the paper's closed form of the mode strengths."""
    at_start = {"p": np.full(4, START), "q": np.full(4, START)}
    exact = ic.flow(Partial(coupled, s, float(N)), at_start, t, measures={"strength": strength})
    a = np.asarray(ic.logistic.strength(t, np.full(4, START**2), s, N))
    closed = ic.Trajectory({"strength": a}, {"strength": ("time", "mode")}, {"t": (("time",), t)})
    return {"exact flow": exact, "closed form": closed}


# %%
def show(seeds, N):
    with ic.style():
        figure, ax = plt.subplots(figsize=(5.5, 3.2))
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        ic.overlay(seeds, theory(N, seeds.t), "strength", ax, labels=[f"s = {v:g}" for v in s], legend=beside)
        ax.set(
            title=f"N = {N} pairs in the context, N/d = {N / 4:g}",
            ylabel=r"mode strength $a_\alpha = p_\alpha q_\alpha$",
        )
        plt.show()
    for label, curve in theory(N, seeds.t).items():
        gap = np.abs(seeds.mean("strength") - curve["strength"]).max() / curve["strength"][-1].min()
        print(f"largest distance of the seeds' mean from the {label}: {gap:.1%} of the smallest final strength")


show(seeds, 20)

# %% [markdown]
# The modes are learned one after another, the strongest first. The exact flow lies on the seeds; the closed form is early for the
# weak modes. What if the context is ten times longer?

# %%
longer = train(N=200)  # the same compiled program: a new N is only a new number
show(longer, 200)

# %% [markdown]
# With $N/d = 50$ the closed form is right too. Note that the second run compiled nothing and cost no more than the first: the
# model sees a prompt only through a few context statistics, and `statistics` draws those exactly instead of the prompts.

# %%
print(f"compilation: first run {seeds.attrs['compile_seconds']} s, second run {longer.attrs['compile_seconds']} s")
print(f"training:    first run {seeds.attrs['run_seconds']} s, second run {longer.attrs['run_seconds']} s")

# %% [markdown]
# ## Next
#
# - `icldyn run mainali2025` trains the whole study: conservation laws, phase plane, escape times, unaligned starts.
# - `seeds.to_xarray()` hands everything to xarray; `seeds["strength"]` is an array (seed, time, mode).
# - Change `s`, `family="iid"`, `rho=0.1` in `linear_regression`, or start unaligned with `ic.gaussian(model)` and solve
#   `ic.gradient_flow(ic.population(task, model))` from the same weights (`ic.initial_params`).
