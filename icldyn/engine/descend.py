"""Stochastic gradient descent of one seed, as pure functions of its key; and loops over time, of any number of seeds."""

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


def one_step(objective: Objective, optimiser: OptimiserFactory, lr: Array, key: Array, i: Array, state):
    """Step i of one seed, from (params, optimiser state, diverged step) to the same.

    The batch of step i comes from `fold_in(key, i)`, so that a run can be cut in time anywhere. A seed whose weights would
    become non-finite in step i stays at its last finite state, and its diverged step, -1 until then, becomes i + 1.
    """
    params, opt_state, diverged = state
    with jax.default_matmul_precision("highest"):
        grads = jax.grad(objective.loss)(params, jax.random.fold_in(key, i))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes its own counters and rates
        updates, new_opt_state = optimiser(lr).update(grads, opt_state, params)
    new_params = jax.tree.map(lambda w, u: w + u.astype(w.dtype), params, updates)
    diverged = jnp.where((diverged < 0) & ~finite(new_params), i + 1, diverged)
    new, old = (new_params, new_opt_state), (params, opt_state)
    return (*jax.tree.map(lambda a, b: jnp.where(diverged < 0, a, b), new, old), diverged)


def read(objective: Objective, measures: Measures, key: Array, i: Array, state) -> dict[str, Array]:
    """The measures of one seed before step i; "loss", unless among them, is the loss of the batch that step i will see."""
    with jax.default_matmul_precision("highest"):
        seen = {name: measure(state[0]) for name, measure in measures.items()}
        if "loss" not in seen:
            seen["loss"] = objective.loss(state[0], jax.random.fold_in(key, i))
    return seen


def in_time(
    step: Callable[[Array, Any], Any],
    look: Callable[[Array, Any], dict[str, Array]],
    state: Any,
    first: Array,
    gaps: Array,
    keep: Array,
) -> tuple[Any, dict[str, Array]]:
    """Advance by `gaps[0]` steps from number `first` on, look if `keep[0]`, by `gaps[1]`, look if `keep[1]`, and so on.

    `step` (i, state) and `look` (i, state) are those of one seed or of many side by side. `gaps` and `keep` (R,) are traced:
    another schedule runs the same program. Returns the state and what was seen, stacked (R, ...).
    """

    def record(carry, gap_and_keep):
        (state, i), (gap, kept) = carry, gap_and_keep
        state = lax.fori_loop(i, i + gap, step, state)
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(look, i, state))
        return (state, i + gap), lax.cond(kept, look, lambda *_: nothing, i + gap, state)

    (state, _), seen = lax.scan(record, (state, jnp.asarray(first)), (gaps, keep))
    return state, seen


def finite(params: Any) -> Array:
    """Whether every weight of one seed is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(w)) for w in jax.tree.leaves(params)]))
