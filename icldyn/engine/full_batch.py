"""Gradient descent on fixed objectives, every step's loss recorded: a few runs side by side, from weights that are given."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


class FullBatch:
    """Runs side by side, advanced call by call; memory does not grow with the number of steps.

    Args:
        objective: what all runs descend, anything with `loss(params, key)` (its key is None); or a list, one for each run, of
            equal shapes.
        params: weights by name, runs along a leading axis S.
        lr: learning rates, of the shapes of the weights.
        dtype: "float32" or "float64".
        most: steps in one call at most.
    """

    def __init__(
        self, objective: Any, params: Mapping[str, np.ndarray], lr: Mapping[str, np.ndarray], dtype: str, most: int
    ):
        self.own = isinstance(objective, Sequence)
        if self.own:
            self.objective = jax.tree.map(lambda *a: jnp.stack([jnp.asarray(one, dtype) for one in a]), *objective)
        else:
            self.objective = jax.tree.map(lambda a: jnp.asarray(a, dtype), objective)
        self.params = {name: jnp.asarray(a, dtype) for name, a in params.items()}
        self.lr = {name: jnp.asarray(a, dtype) for name, a in lr.items()}
        self.most = most

    def advance(self, steps: int) -> np.ndarray:
        """Descend; returns the losses (S, steps) before each step."""
        self.params, losses = _descend(
            self.objective, self.params, self.lr, np.int32(steps), most=self.most, own=self.own
        )
        return np.asarray(losses)[:, :steps]


@functools.partial(jax.jit, static_argnames=("most", "own"))
def _descend(objective: Any, params: Any, lr: Any, steps: Array, *, most: int, own: bool) -> tuple[Any, Array]:
    """w <- w - lr dL/dw, `steps` times; the weights and losses (S, most). `steps` is traced: a shorter call compiles nothing."""

    def one(objective: Any, params: Any, lr: Any) -> tuple[Any, Array]:
        value_and_slope = jax.value_and_grad(objective.loss)

        def step(k: Array, state: tuple[Any, Array]) -> tuple[Any, Array]:
            params, losses = state
            loss, slope = value_and_slope(params, None)
            return jax.tree.map(lambda w, g, r: w - r * g, params, slope, lr), losses.at[k].set(loss)

        return lax.fori_loop(0, steps, step, (params, jnp.zeros(most, jax.tree.leaves(params)[0].dtype)))

    return jax.vmap(one, (0 if own else None, 0, 0))(objective, params, lr)
