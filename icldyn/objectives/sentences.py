"""The logistic loss of attention over words on a data set that every seed has for itself, by full batch.

    L = (1/n) sum_i log(1 + exp(-y_i F_i)),    g_i = 1 / (1 + exp(y_i F_i)).

The params hold the data set too, its counts "N" (n, d), which no step changes: their gradient is 0.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial

from .. import checks
from ..models.word_attention import Params, WordAttention
from ..struct import struct
from ..tasks.cooccurrence import Cooccurrence, labels, types
from ..theory import word_space

State = dict[str, Array]


@struct
class Sentences:
    """The loss, and what is read off the weights. Make one with `sentences`."""

    model: WordAttention

    def loss(self, params: Params, key: Array | None = None) -> Array:
        """L; the key is ignored."""
        return jnp.mean(jax.nn.softplus(-self.margins(params)))

    def margins(self, params: Params) -> Array:
        """y_i F_i (n,)."""
        N = lax.stop_gradient(params["N"])
        return labels(N) * self.model.answers(self.model.values(params), self.model.scores(params), N)

    def by_type(self, params: Params) -> Array:
        """L over the sentences of each type (4,); 0 for a type without any."""
        kinds = types(params["N"])
        return kinds @ jax.nn.softplus(-self.margins(params)) / jnp.maximum(jnp.sum(kinds, 1), 1)

    def unsure(self, params: Params) -> Array:
        """Sums of g_i over each type (4,)."""
        return types(params["N"]) @ jax.nn.sigmoid(-self.margins(params))

    def wrong(self, params: Params) -> Array:
        """The share of sentences whose sign is not right."""
        return jnp.mean(self.margins(params) <= 0, dtype=params["N"].dtype)

    def G(self, params: Params) -> Array:
        """G(mu_1), G(mu_2), G(mu_3)."""
        return self.model.values(params)[:3]

    def S(self, params: Params) -> Array:
        """W_K^T W_Q (3, 3) of mu_1, mu_2, mu_3, keys first."""
        return params["W_K"][:, :3].T @ params["W_Q"][:, :3]

    def V(self, params: Params) -> Array:
        """W_V^T W_V (3, 3)."""
        return params["W_V"][:, :3].T @ params["W_V"][:, :3]

    def field(self, params: Params) -> Params:
        """Gradient flow, and what a step size lr adds to the invariants of the flow: lr D, to first order.

        A step changes ww^T - W_V W_V^T by lr^2 (gg^T - hh^T), g and h the gradients, and so dD/dt = gg^T - hh^T; with
        "D_V" and "D_K" (m, m) from 0.
        """
        held = {name: params[name] for name in ("D_V", "D_K")}
        slope = jax.grad(self.loss)({name: w for name, w in params.items() if name not in held})
        D_V = jnp.outer(slope["w"], slope["w"]) - slope["W_V"] @ slope["W_V"].T
        D_K = slope["W_K"] @ slope["W_K"].T - slope["W_Q"] @ slope["W_Q"].T
        return jax.tree.map(jnp.negative, slope) | {"D_V": D_V, "D_K": D_K}

    def in_words(self, params: Params) -> State:
        """The weights as `word_space` has them, with their data set."""
        W_V, W_K, W_Q, w = (params[name] for name in ("W_V", "W_K", "W_Q", "w"))
        state = {"G": self.model.values(params), "V": W_V.T @ W_V, "u": w @ w}
        return state | {"S": self.model.scores(params), "P": W_K.T @ W_K, "R": W_Q.T @ W_Q, "N": params["N"]}

    def loss_in_words(self, state: State) -> Array:
        """L of such a state."""
        N = lax.stop_gradient(state["N"])
        return jnp.mean(jax.nn.softplus(-labels(N) * self.model.answers(state["G"], state["S"], N)))

    def field_in_words(self, state: State) -> State:
        """Gradient flow of all weights, closed in the space of words."""
        slope = jax.grad(self.loss_in_words)(state)
        return word_space.field(state, slope["G"], slope["S"], self.model.m1) | {"N": jnp.zeros_like(state["N"])}


def sentences(model: WordAttention) -> Sentences:
    """The loss on the data set that the params hold."""
    return Sentences(model)


def word_start(task: Cooccurrence, model: WordAttention, sigma0: float, sigma1: float) -> Partial:
    """(key, scale) -> params: a fresh data set, w ~ N(0, sigma1^2) and W_V, W_K, W_Q ~ N(0, sigma0^2), times the scale.

    Raises:
        icldyn.BadArgument: if task and model differ in d, or a scale is negative.
    """
    if task.d != model.d:
        raise checks.BadArgument(f"Argument `model` must have the task's d = {task.d}, but has d = {model.d}.")
    sigma = [checks.real(name, value, least=0) for name, value in (("sigma0", sigma0), ("sigma1", sigma1))]
    return Partial(_start, task, model, *sigma)


def _start(task: Cooccurrence, model: WordAttention, sigma0: Array, sigma1: Array, key: Array, scale: Array) -> Params:
    key_data, key_weights = jax.random.split(key)
    sizes = [math.prod(shape) for shape in model.shapes.values()]
    drawn = jnp.split(jax.random.normal(key_weights, (sum(sizes),), scale.dtype), np.cumsum(sizes)[:-1])
    out = {"N": task.counts(key_data, scale.dtype)}
    for (name, shape), numbers in zip(model.shapes.items(), drawn, strict=True):
        sigma = jnp.asarray(sigma1 if name == "w" else sigma0, scale.dtype)
        out[name] = scale * sigma * numbers.reshape(shape)
    return out
