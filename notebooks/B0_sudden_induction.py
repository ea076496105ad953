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
# # The moment in which in-context learning appears
#
# A network that has only attention is shown sequences, each written by a Markov chain of its own. To predict the next token it
# must learn the chain *from the sequence*: that is in-context learning. With two layers it does so suddenly, after a long
# plateau; with one layer never. Here we watch it happen in many seeds at once, and look at what the weights do meanwhile.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
from jax.tree_util import Partial

import icldyn as ic

SEEDS = max(8, int(os.environ.get("ICLDYN_SEEDS", 64)) // 4)  # tests run this notebook with fewer
STEPS, EVERY = 750, 25

# %% [markdown]
# ## The task, and what can be known
#
# Eight tokens. Every sequence draws a fresh 8 x 8 matrix of transitions, with few likely ones in a row. Two exact references:
# whoever counts *tokens* reaches the unigram level, whoever counts *transitions* in the right way is Bayes.

# %%
task = ic.markov(k=8, T=48, alpha=0.1)
tokens = jax.jit(task.sample, static_argnums=1)(jax.random.key(10**6), 256)
print("one sequence:", *np.asarray(tokens[0]))
predictors = {"unigram": ic.markov_predictors.unigram, "Bayes": ic.markov_predictors.bayes}
level = {}
for name, predictor in predictors.items():
    losses = np.asarray(ic.markov_predictors.losses(predictor(tokens, task.k, task.alpha), tokens))
    level[name] = losses[:, 36:].mean()  # the last quarter of the positions, where much of the chain has been seen
print({name: round(float(value), 3) for name, value in level.items()}, "nats; a guess is", round(np.log(8), 3))

# %% [markdown]
# ## Train one layer and two layers
#
# `ic.next_token` is the loss of the next token on fresh sequences, `ic.ensemble` trains all seeds. What we want to see is given
# as measures: the late loss on the sequences above, what every head attends to, and the matrices of queries and keys.


# %%
def late_loss(objective, params):
    return objective.losses(params, tokens)[:, 36:].mean()


def scores(objective, params):
    """For every head: attention to the previous token, and to what followed earlier copies of this token."""
    return ic.head_scores.head_scores(objective.patterns(params, tokens[:64, :-1]), tokens[:64, :-1])


def queries_and_keys(objective, params):
    layers = [params[f"layer_{n}"] for n in range(objective.net.layers)]
    return jax.numpy.stack([jax.numpy.stack([layer["W_Q"], layer["W_K"]]) for layer in layers])


runs = {}
for layers in (1, 2):
    net = ic.transformer(task.k, task.T, layers=layers, d=32, H=2, d_head=8)
    objective = ic.next_token(task, net, batch=32)
    runs[layers] = ic.ensemble(
        objective,
        objective.start,
        seeds=SEEDS,
        lr=4e-3,
        steps=STEPS,
        records=STEPS // EVERY + 1,
        optimiser=ic.optimisers.clipped_adamw,
        measures={f.__name__: Partial(f, objective) for f in (late_loss, scores, queries_and_keys)},
    )

# %%
steps = runs[2].coords["step"][1]
with ic.style():
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    for ax, (layers, run) in zip(axes, runs.items(), strict=True):
        ax.plot(steps, run["late_loss"].T, color="C0", linewidth=0.8)
        for (name, value), dashes in zip(level.items(), ("--", ":"), strict=True):
            ax.axhline(value, color="k", linestyle=dashes, linewidth=1, label=name)
        ax.set(title=f"{layers} layer{'s' * (layers > 1)}, every seed", xlabel="step")
    axes[0].set_ylabel("late loss (nats)")
    axes[1].legend()

# %% [markdown]
# One layer stops at the unigram level. Two layers wait there too, and then drop: each seed at its own time.

# %%
emerged = ic.icl_score.emergence(np.asarray(runs[2]["late_loss"]), level["unigram"])  # records of 10, 50 and 90 %
t50 = np.where(emerged[1] < 0, np.nan, steps[emerged[1]])
print("half of the way, by seed:", t50)
assert runs[1]["late_loss"][:, -1].min() > level["unigram"] - 0.1

# %% [markdown]
# ## Two heads that work together
#
# A head of the first layer learns to look one token back; a head of the second then finds what came after earlier copies of the
# present token. Neither is of use without the other, which is why nothing happens for so long.

# %%
with ic.style():
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    names = ("previous token, best head of layer 0", "induction, best head of layer 1")
    for layer, (ax, name) in enumerate(zip(axes, names, strict=True)):
        best = runs[2]["scores"][:, :, layer, layer].max(-1)
        ax.plot(steps, best.T, color=f"C{layer}", linewidth=0.8)
        ax.set(title=name, xlabel="step", ylim=(0, 1))
    axes[0].set_ylabel("score")

# %% [markdown]
# ## Seen from far away: ranks and subspaces
#
# Mainali and Teixeira look at macroscopic quantities. The *effective rank* of a head's matrix W_Q W_K^T says how many directions
# it uses; without its two leading ones it tells of those that are still to grow. The *subspace distance* says how far the space
# that it uses is from where it ends (here: the last record, so only its fall means something, not its end).


# %%
def each(function):
    """Over seeds, records and layers."""
    return jax.vmap(jax.vmap(jax.vmap(function)))


W_Q, W_K = np.moveaxis(runs[2]["queries_and_keys"], 3, 0)  # (seed, record, layer, head, d, d_head)
spectra = each(jax.vmap(ic.spectra.qk))(W_Q, W_K)  # rows are the key side, columns the query side
rank = each(lambda s: jax.vmap(lambda s: ic.spectra.effective_rank_of(s, 2))(s).mean())(spectra.s)  # mean over heads
head = jax.tree.map(lambda a: a[:, :, 1, 0], spectra)  # the first head of layer 1
to_the_end = jax.vmap(jax.vmap(ic.subspace.distance, (0, None)))  # over records, over seeds
key_side = to_the_end(head, jax.tree.map(lambda a: a[:, -1], head))

with ic.style():
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for layer in (0, 1):
        axes[0].plot(steps, np.median(rank[:, :, layer], 0), color=f"C{layer}", label=f"layer {layer}")
    axes[1].plot(steps, key_side.T, color="C1", linewidth=0.8)
    axes[1].axhline(float(ic.subspace.chance(8, 32)), color="k", linestyle=":", linewidth=1, label="a random space")
    for ax in axes:
        ax.axvspan(*np.nanquantile(t50, (0, 1)), color="0.9", zorder=0)
        ax.set(xlabel="step")
    axes[0].set(title="effective rank without two directions, median", ylabel="er$_2$ of W$_{QK}$")
    axes[1].set(title="distance of the key side of layer 1 from its end", ylabel="distance")
    axes[0].legend()
    axes[1].legend()

# %% [markdown]
# The grey strip is where seeds emerge. The subspace turns towards its end before; the rank goes through a minimum near it.
# Whether that minimum is *the* sign of in-context learning needs more seeds, the one-layer control and an intervention:
#
#     icldyn run mainali2025_attention_only
#
# does all three, with confidence intervals: remove the directions that keys are about to use, and the moment comes later;
# remove as many random ones, and it does not.
