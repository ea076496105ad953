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
# # Grokking: right on what it saw, and long after on everything
#
# A network is given some of the additions modulo 31. It knows them by heart soon. On the others it is no better than a guess,
# for hundreds of steps, and then it is right on nearly all. What has changed meanwhile? Here we train many seeds of two networks
# and look inside.

# %%
import functools
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import icldyn as ic

SEEDS = max(8, int(os.environ.get("ICLDYN_SEEDS", 64)) // 4)  # tests run this notebook with fewer

# %% [markdown]
# ## A network that can be solved
#
# Gromov's network has one hidden layer of squares, f(a, b) = W^T (A_a + B_b)^2, and plain gradient descent with momentum trains
# it: no weight decay, no attention. Pairs (a, b) and (b, a) go together into training or test; otherwise half of the test
# would be given away by symmetry.

# %%
p, N = 31, 128
task = ic.modular(p, fraction=0.6)
objective = ic.modular_pairs(task, ic.quadratic_mlp(p, N), "squared")
neurons = {"participation": lambda params: ic.fourier.inverse_participation(params["A"]).mean()}
accuracies = {name: getattr(objective, name) for name in ("train_accuracy", "test_accuracy")}
run = ic.ensemble(
    objective,
    objective.start,
    seeds=SEEDS,
    lr=10.0,
    steps=600,
    records=61,
    measures=accuracies | neurons,
    optimiser=functools.partial(optax.sgd, momentum=0.9),
)
steps = run.coords["step"][1]

# %%
with ic.style():
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for name, color in (("train_accuracy", "C0"), ("test_accuracy", "C1")):
        axes[0].plot(steps, run[name].T, color=color, linewidth=0.7)
        axes[0].plot([], [], color=color, label=name.replace("_", " "))
    axes[0].set(title="every seed", xlabel="step", ylabel="accuracy")
    axes[0].legend()
    axes[1].plot(steps, run["participation"].T, color="C2", linewidth=0.7)
    axes[1].axhline(ic.modular_features.random_participation(p), color="k", linestyle=":", linewidth=1, label="random")
    axes[1].set(
        title="how few frequencies a neuron has", xlabel="step", ylabel="inverse participation (1: a single one)"
    )
    axes[1].legend()

# %% [markdown]
# ## What it is on the way to
#
# Neurons turn into waves. With A_a = cos(2 pi k a/p + phi_1), B_b = cos(2 pi k b/p + phi_2) and
# W_q = cos(2 pi k q/p + phi_1 + phi_2) the square of their sum has a term that is largest where q = a + b. That is an exact
# solution, with no training at all: its accuracy needs enough neurons for all other terms to cancel.

# %%
rng = np.random.default_rng(0)
for count in (N // 4, N, 4 * N):
    phases = rng.uniform(0, 2 * np.pi, (2, count))
    solution = ic.modular_features.weights(p, ic.modular_features.cycled(p, count), *phases)
    print(f"{count} neurons in closed form: accuracy {ic.modular_features.accuracy(solution):.3f} over all pairs")

# %% [markdown]
# ## Attention, and the subspace of the embedding
#
# Now a transformer of one layer, as Nanda et al. took apart, trained by AdamW. Mainali and Teixeira look at where subspaces
# are: how far is the space that the embedding spans, seen as waves over tokens, from the one it ends in? That distance needs no
# reading of circuits; the power of the leading waves, beside it, is what a reading finds.


# %%
def embedding(params):
    return params["W_E"][:37]


task = ic.modular(37, fraction=0.75)
net = ic.modular_transformer(37, d=48, H=4, d_head=12, d_mlp=192)
objective = ic.modular_pairs(task, net, "cross-entropy")
accuracies = {name: getattr(objective, name) for name in ("train_accuracy", "test_accuracy")}
run = ic.ensemble(
    objective,
    objective.start,
    seeds=8,
    lr=3e-3,
    steps=500,
    records=51,
    measures=accuracies | {"embedding": embedding},
    optimiser=functools.partial(ic.optimisers.adamw, weight_decay=3.0),
)
steps = run.coords["step"][1]

# %%
r = 8  # leading directions that are compared: columns of the embedding, waves over tokens
spectra = jax.vmap(jax.vmap(ic.spectra.svd))(run["embedding"])  # over seeds, over records
to_the_end = jax.vmap(jax.vmap(lambda now, end: ic.subspace.chordal_distance(now, end, r, "column"), (0, None)))
distance = to_the_end(spectra, jax.tree.map(lambda a: a[:, -1], spectra))
power = np.asarray(jax.jit(jax.vmap(jax.vmap(ic.fourier.power)))(run["embedding"]))
few = np.sort(power, -1)[..., -4:].sum(-1) / power.sum(-1)

with ic.style():
    figure, axes = plt.subplots(1, 3, figsize=(11, 3))
    for ax, value, title in zip(
        axes, (run["test_accuracy"], distance, few),
        ("test accuracy", "distance of the embedding's space from its end", "power of its four leading waves"), strict=True,
    ):  # fmt: skip
        ax.plot(steps, value.T, linewidth=0.8)
        ax.set(title=title, xlabel="step", ylim=(0, 1))
    axes[1].axhline(float(ic.subspace.chance(r, 37)), color="k", linestyle=":", linewidth=1)

# %% [markdown]
# The space turns while the test accuracy is still low, and has arrived when it is high: seen from far away, this is when the
# network finds the waves. Is it a coincidence in time, or a cause? In
#
#     icldyn run mainali2025_grokking
#
# every seed gives the difference of the two times, with controls that do not grok, and an intervention: keep the embedding to its
# own leading waves, or to as many random directions, and see who generalises.
