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
# # Exact gradient flow, from any start
#
# For linear attention the expected loss is a closed form at *any* weights: large or small, aligned or not, one head or many,
# merged or separate key and query, all blocks or only those that the papers keep. So its gradient flow needs no data, no long
# contexts and no assumption. Here one task meets three parametrisations, each from its own start, with seeds of SGD beside it.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

import icldyn as ic

SEEDS = int(os.environ.get("ICLDYN_SEEDS", 256))  # tests run this notebook with fewer
LR, T = 0.04, 240.0

# %% [markdown]
# ## One task, three models
#
# Scalar in-context regression: 31 pairs, inputs of covariance diag(.4, .3, .2, .1). The same function `ic.population` gives the
# exact loss of every model, and `ic.flow` integrates its gradient flow from the weights that the seeds start from.

# %%
task = ic.linear_regression(31, s=[0.4, 0.3, 0.2, 0.1], family="scalar")
cases = {  # name: model, scale of its Gaussian start
    "merged, 4 heads, small start": (ic.merged(4, 4), 1e-2),
    "separate, 5 heads of rank 1, small start": (ic.separate(4, 5), 1e-1),
    "merged, 2 heads, all blocks, large start": (ic.merged(4, 2, zero_blocks=False), 1.5),
}
runs, flows = {}, {}


def conserved(weights):
    """|v|^2 - |U|^2 or |v|^2 - |K|^2 of every head: what gradient flow keeps (below)."""
    return next(iter(ic.heads.conserved(weights).values()))


for name, (model, scale) in cases.items():
    exact, init = ic.population(task, model), ic.heads.gaussian(model)
    runs[name] = ic.ensemble(
        ic.statistics(task, model, batch=128),
        init,
        seeds=SEEDS,
        lr=LR,
        t_end=T,
        init_scale=scale,
        measures={"loss": exact.loss},
    )
    start = ic.initial_params(init, seeds=[0], init_scale=scale)
    measures = {"loss": exact.loss, "conserved": conserved}
    flow = ic.flow(ic.gradient_flow(exact), start, runs[name].t, measures=measures, many=True, rtol=1e-6)
    flows[name] = flow.isel(seed=0)

# %% [markdown]
# Each grey curve is a seed of SGD, the blue one is seed 0, and the dashed one its exact flow. Small starts wait at saddles:
# merged heads at one, separate heads at a ladder of them (dotted). Large starts fall at once.

# %%
with ic.style():
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3), sharey=True)
    for ax, (name, run) in zip(axes, runs.items(), strict=True):
        ax.plot(run.t, run["loss"][:40].T, color="0.8", linewidth=0.5)
        ax.plot(run.t, run["loss"][0], color="C0", label="SGD, seed 0")
        ax.plot(run.t, flows[name]["loss"], "k--", linewidth=1, label="its exact flow")
        for rung in ic.saddles.ladder(np.asarray(task.s), task.N):
            ax.axhline(rung, color="0.5", linewidth=0.5, linestyle=":")
        ax.set(title=name, xlabel="time $t$", ylim=(0, 0.8))
    axes[0].set_ylabel("exact loss")
    axes[0].legend()

# %% [markdown]
# ## How far apart are they?
#
# The flow is the limit of small steps and large batches. Its own numerical error is in `attrs`; what is left is SGD's noise.

# %%
for name, run in runs.items():
    gap = np.abs(run["loss"][0] - flows[name]["loss"]).max()
    print(f"{name}: largest gap of seed 0 {gap:.3f}, error of the flow {flows[name].attrs['error']:.0e}")

# %% [markdown]
# ## What is conserved
#
# Scaling a head's value up and its key-query down changes no answer, so gradient flow conserves the difference of their norms,
# head by head, from any start. SGD at a finite rate drifts off in proportion to the rate.

# %%
for name, flow in flows.items():
    kept = flow["conserved"]
    print(f"{name}: {np.round(kept[0], 6)} at the start, moved by at most {np.ptp(kept, axis=0).max():.0e}")
    assert np.ptp(kept, axis=0).max() < 1e-5

# %% [markdown]
# ## Next
#
# - `ic.spread` follows the covariance of SGD along such a flow: how far seeds will lie apart, before any is trained.
# - `icldyn run zhang2025_separate` shows which head takes which mode, and when, over many seeds.
