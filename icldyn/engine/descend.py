"""Stochastic gradient descent of one seed, as a pure function of its key."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from .. import checks
from ..objectives import Objective

Measures = Mapping[str, Callable[[Any], Array]]
OptimiserFactory = Callable[[Array], optax.GradientTransformation]


@dataclass(frozen=True)
class _Configured:
    """`functools.partial` that compares by value, so that an equal optimiser does not compile anew."""

    factory: OptimiserFactory
    keywords: tuple[tuple[str, Any], ...]

    def __call__(self, lr: Array) -> optax.GradientTransformation:
        return self.factory(lr, **dict(self.keywords))


def optimiser_factory(optimiser: Any) -> OptimiserFactory:
    """`optimiser` as a hashable function lr -> optax transformation.

    Takes `optax.sgd`, `optax.adam`, ... themselves, or `functools.partial(optax.sgd, momentum=0.9)`.
    """
    if isinstance(optimiser, functools.partial) and not optimiser.args:
        optimiser = _Configured(optimiser.func, tuple(sorted(optimiser.keywords.items())))
    if not callable(optimiser) or isinstance(optimiser, optax.GradientTransformation):
        raise checks.BadArgument(
            "Argument `optimiser` must be a function of the learning rate, such as optax.adam or "
            f"functools.partial(optax.sgd, momentum=0.9), but is a {type(optimiser).__name__}."
        )
    return optimiser


def descend(
    objective: Objective,
    measures: Measures,
    optimiser: OptimiserFactory,
    lr: Array,
    key: Array,
    state: tuple[Any, Any, Array],
    step: Array,
    gaps: Array,
    keep: Array,
) -> tuple[tuple[Any, Any, Array], dict[str, Array]]:
    """Advance a seed by `gaps[0]` steps, record if `keep[0]`, by `gaps[1]`, record if `keep[1]`, and so on.

    The state is (params, optimiser state, diverged step). The batch of step i comes from `fold_in(key, i)`, so a run can be
    cut in time anywhere. `gaps` and `keep` (R,) are traced: another schedule runs the same program. Returns the state and the
    measures, stacked (R, ...); "loss", unless given among the measures, is the loss of the batch that the next step will see.

    A seed whose weights would become non-finite in step i stays at its last finite state, and its diverged step, -1 until
    then, becomes i + 1.
    """
    transform = optimiser(lr)

    def one_step(i: Array, state):
        params, opt_state, diverged = state
        grads = jax.grad(objective.loss)(params, jax.random.fold_in(key, i))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its own counters and rates
            updates, new_opt_state = transform.update(grads, opt_state, params)
        new_params = jax.tree.map(lambda w, u: w + u.astype(w.dtype), params, updates)
        diverged = jnp.where((diverged < 0) & ~finite(new_params), i + 1, diverged)
        new, old = (new_params, new_opt_state), (params, opt_state)
        return (*jax.tree.map(lambda a, b: jnp.where(diverged < 0, a, b), new, old), diverged)

    def read(params, i):
        seen = {name: measure(params) for name, measure in measures.items()}
        if "loss" not in seen:
            seen["loss"] = objective.loss(params, jax.random.fold_in(key, i))
        return seen

    def record(carry, gap_and_keep):
        (state, i), (gap, kept) = carry, gap_and_keep
        state = lax.fori_loop(i, i + gap, one_step, state)
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(read, state[0], i))
        return (state, i + gap), lax.cond(kept, read, lambda *_: nothing, state[0], i + gap)

    with jax.default_matmul_precision("highest"):
        (state, _), seen = lax.scan(record, (state, jnp.asarray(step)), (gaps, keep))
    return state, seen


def finite(params: Any) -> Array:
    """Whether every weight of one seed is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(w)) for w in jax.tree.leaves(params)]))
