"""Sigma_g, the covariance of one prompt's gradient, as a function (clock, flat weights, unflatten) -> (n, n) for `spread`.

In closed form for heads with zero blocks on fresh tasks; a function of the params, from the caller; else sampled along the flow.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from .. import checks
from ..objectives import Folded, Objective
from ..theory.gradient_noise import answer_noise
from .flow import flow
from .placing import placed, traceable

KNOTS = 33  # times at which a noise without a closed form is sampled
TOGETHER = 1024  # prompts sampled at a time


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A noise without a closed form, to be `sampled` along the flow of every start."""

    objective: Any
    prompts: int


def prompt_noise(noise: Any, prompts: int, template: Any, n: int) -> Partial | Unknown:
    """Sigma_g of a stochastic objective, or of a function params -> (n, n).

    Raises:
        icldyn.BadArgument: for anything else, for data shared by the seeds, and for another shape than (n, n).
    """
    if getattr(noise, "shared", False):
        raise checks.BadArgument("Argument `noise` must draw its own data for every seed, but shares one stream.")
    if isinstance(noise, Folded) and noise.model.zero_blocks and noise.pool is None:
        U, root = np.asarray(noise.U), np.asarray(noise.root_w)
        S, Sw = (U * noise.s) @ U.T, U @ root @ root.T @ U.T
        return Partial(_of_heads, noise.model, S, Sw, noise.rho, noise.N)
    if isinstance(noise, Objective) and hasattr(noise, "batch"):
        return Unknown(noise, prompts)
    if isinstance(noise, Objective) or not callable(noise):
        raise checks.refuse("noise", "be an objective with a `batch`, or a function params -> (n, n)", noise)
    with jax.enable_x64(True):
        found = jax.eval_shape(traceable(noise), placed(template, "float64")).shape
    if found != (n, n):
        raise checks.BadArgument(f"Argument `noise` must return shape {(n, n)} at these weights, but returns {found}.")
    return Partial(_given, traceable(noise))


def sampled(loss: Callable, noise: Unknown, start: Any, end: float) -> Partial:
    """Sigma_g at `KNOTS` times along the flow, from fresh prompts at each, interpolated in between."""
    knots = np.linspace(0, max(end, 1e-12), KNOTS)
    path = flow(Partial(_descent, loss), start, knots, measures={"w": _flat}, many=True)["w"][0]
    one, template = dataclasses.replace(noise.objective, batch=1), jax.tree.map(operator.itemgetter(0), start)
    with jax.enable_x64(False):
        args = placed((one, template, path), "float32")
        found = _covariances(*args, jax.random.key(0), chunks=-(-noise.prompts // TOGETHER))
        return Partial(_between, knots, np.asarray(found, float))


@functools.partial(jax.jit, static_argnames="chunks")
def _covariances(objective, template, path: Array, key: Array, chunks: int) -> Array:
    """Covariance of one prompt's gradient at every point of the path, (K, n, n)."""
    _, back = ravel_pytree(template)

    def gradient(w, key):
        return ravel_pytree(jax.grad(objective.loss)(back(w), key))[0]

    def at(inputs):
        w, key = inputs

        def more(sums, key):
            g = jax.vmap(gradient, (None, 0))(w, jax.random.split(key, TOGETHER))
            return (sums[0] + g.sum(0), sums[1] + g.T @ g), None

        nothing = (jnp.zeros_like(w), jnp.zeros(2 * w.shape, w.dtype))
        (mean, square), _ = lax.scan(more, nothing, jax.random.split(key, chunks))
        num = chunks * TOGETHER
        return square / num - jnp.outer(mean / num, mean / num)

    return lax.map(at, (path, jax.random.split(key, path.shape[0])))


def _given(noise: Callable, clock: Array, w: Array, back: Callable) -> Array:
    del clock
    return noise(back(w))


def _of_heads(model, S: Array, Sw: Array, rho: Array, N: Array, clock: Array, w: Array, back: Callable) -> Array:
    """J^T Sigma_g J with J = dA / dweights."""
    del clock
    J = jax.jacrev(lambda w: model.matrix(back(w)).ravel())(w)  # (D D, n)
    return J.T @ answer_noise(model.matrix(back(w)), S, N, Sw, rho).reshape(2 * (J.shape[0],)) @ J


def _between(knots: Array, sampled: Array, clock: Array, w: Array, back: Callable) -> Array:
    """Linear interpolation in time."""
    del w, back
    k = jnp.clip(jnp.searchsorted(knots, clock) - 1, 0, knots.size - 2)
    share = (clock - knots[k]) / (knots[k + 1] - knots[k])
    return sampled[k] + share * (sampled[k + 1] - sampled[k])


def _descent(loss: Callable, params: Any) -> Any:
    return jax.tree.map(jnp.negative, jax.grad(loss)(params))


def _flat(params: Any) -> Array:
    return ravel_pytree(params)[0]
