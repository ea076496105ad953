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
STRIDE = 64  # steps between two looks for seeds that are lost


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


def slope(objective: Objective, params: Any, key: Array, i: Array) -> Any:
    """Gradient of the loss of step i, whose batch comes from `fold_in(key, i)`: a run can be cut in time anywhere."""
    with jax.default_matmul_precision("highest"):
        return jax.grad(objective.loss)(params, jax.random.fold_in(key, i))


def slopes(objective: Objective, params: Any, key: Array | None, i: Array) -> Any:
    """`slope` of many seeds in the last axis, by an objective that is written for them; the key is that of all."""
    with jax.default_matmul_precision("highest"):
        return objective.slopes(params, None if key is None else jax.random.fold_in(key, i))


def descend(optimiser: OptimiserFactory, lr: Array, grads: Any, params: Any, opt_state: Any) -> tuple[Any, Any]:
    """Weights and optimiser state of one seed after a step along its gradient."""
    with jax.numpy_dtype_promotion("standard"):  # optax mixes its own counters and rates
        updates, opt_state = optimiser(lr).update(grads, opt_state, params)
    return jax.tree.map(lambda w, u: w + u.astype(w.dtype), params, updates), opt_state


def read(objective: Objective, measures: Measures, key: Array, i: Array, state) -> dict[str, Array]:
    """The measures of one seed before step i; "loss", unless among them, is the loss of the batch that step i will see."""
    with jax.default_matmul_precision("highest"):
        seen = {name: measure(state[0]) for name, measure in measures.items()}
        if "loss" not in seen:
            seen["loss"] = objective.loss(state[0], jax.random.fold_in(key, i))
    return seen


@dataclass(frozen=True)
class SideBySide:
    """What many seeds side by side do, given the number i of a step and the state of all of them.

    `step` (i, state) returns the state after step i, `look` (i, state) the measures before it. `calm` (state) says whether every
    seed is trained and finite; `settle` (i, old, new) puts back seeds that are not, and says whether one was lost in step i.
    """

    step: Callable[[Array, Any], Any]
    look: Callable[[Array, Any], dict[str, Array]]
    calm: Callable[[Any], Array]
    settle: Callable[[Array, Any, Any], tuple[Any, Array]]


def in_time(seeds: SideBySide, state: Any, first: Array, gaps: Array, keep: Array, unroll: int = 1):
    """Advance by `gaps[0]` steps from number `first` on, look if `keep[0]`, by `gaps[1]`, look if `keep[1]`, and so on.

    `gaps` and `keep` (R,) are traced: another schedule runs the same program. Returns the state and what was seen, stacked
    (R, ...). `unroll` as in `_steps`.
    """

    def record(carry, gap_and_keep):
        (state, i), (gap, kept) = carry, gap_and_keep
        state = _advanced(seeds, state, i, i + gap, unroll)
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(seeds.look, i, state))
        return (state, i + gap), lax.cond(kept, seeds.look, lambda *_: nothing, i + gap, state)

    (state, _), seen = lax.scan(record, (state, jnp.asarray(first)), (gaps, keep))
    return state, seen


def _advanced(seeds: SideBySide, state: Any, i: Array, end: Array, unroll: int) -> Any:
    """Steps i, i + 1, ..., end - 1 of all seeds; one that leaves the finite numbers stays at its last finite state.

    Looking for such seeds after every step costs as much as a step of a small model. So one looks after STRIDE steps, and puts
    seeds that are no longer trained back to where they were. If another was lost, these steps are done again one by one, by
    the same loop, so that the other seeds keep their bits and the lost one its step.
    """

    def kept(i, count, old, new):
        return new, jnp.asarray(False)

    def settled(i, count, old, new):
        new, lost = seeds.settle(i, old, new)
        again = lost & (count > 1)
        return jax.tree.map(lambda a, b: jnp.where(again, a, b), old, new), again

    def stride(carry):
        state, i, careful = carry
        count = jnp.where(i < careful, 1, jnp.minimum(end - i, STRIDE))
        new = _steps(seeds.step, state, i, i + count, unroll)
        state, again = lax.cond(seeds.calm(new), kept, settled, i, count, state, new)
        return state, jnp.where(again, i, i + count), jnp.where(again, i + count, careful)

    return lax.while_loop(lambda carry: carry[1] < end, stride, (state, i, i))[0]


def _steps(step: Callable, state: Any, i: Array, end: Array, unroll: int) -> Any:
    """Steps i, ..., end - 1, `unroll` of them in the body of a loop: it then copies the weights once for all of these.

    Step n is always the (n mod unroll)-th of a body, wherever time is cut: it keeps its bits. Those outside [i, end) do nothing.
    """
    if unroll == 1:
        return lax.fori_loop(i, end, step, state)

    def body(k, state):
        for n in (k * unroll + j for j in range(unroll)):
            inside = (i <= n) & (n < end)
            state = jax.tree.map(lambda new, old: jnp.where(inside, new, old), step(n, state), state)  # noqa: B023
        return state

    return lax.fori_loop(i // unroll, -(-end // unroll), body, state)


def finite(params: Any) -> Array:
    """Whether every weight of one seed is finite: largest and smallest are (they are NaN where one is). Vectorises over seeds."""
    return jnp.all(jnp.isfinite(jnp.stack([f(w) for w in jax.tree.leaves(params) for f in (jnp.max, jnp.min)])))
