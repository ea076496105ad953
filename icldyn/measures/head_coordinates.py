"""Where softmax attention stands beside its manifold of diagonal heads: omega and mu of every head and task, and what is left.

For a model with `key_query` (H, n, D) and `value` (H, O, n), whose labels come last, and blocks of coordinates, one for each
task. Use a measure as `jax.tree_util.Partial(omega, model, indicator(blocks))`.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

Params = dict[str, Array]
DIMS = {"omega": ("head", "task"), "mu": ("head", "task")}


def omega(model: Any, where: Array, params: Params) -> Array:
    """Mean of the diagonal of Q_h over the block of every task, (H, I); where (I, D) has 1 on the block of a task."""
    Q = model.key_query(params)
    diagonal = jnp.diagonal(Q[:, : Q.shape[2]], axis1=1, axis2=2)
    return diagonal @ (where / jnp.sum(where, axis=1, keepdims=True)).T


def mu(model: Any, params: Params) -> Array:
    """Diagonal of the label block of P_h, (H, I)."""
    P = model.value(params)
    return jnp.diagonal(P[:, :, P.shape[2] - P.shape[1] :], axis1=1, axis2=2)


def rest(model: Any, where: Array, params: Params) -> Array:
    """Norm of what lies off the manifold over that of all, for key-query and for value matrices, (2,); disjoint blocks."""
    Q, P = model.key_query(params), model.value(params)
    held = jnp.sum((omega(model, where, params) ** 2) @ jnp.sum(where, axis=1)), jnp.sum(mu(model, params) ** 2)
    whole = jnp.sum(Q**2), jnp.sum(P**2)
    return jnp.stack([jnp.sqrt(jnp.maximum(1 - h / w, 0)) for h, w in zip(held, whole, strict=True)])


def indicator(blocks: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """(I, D): 1 where a task reads a coordinate."""
    D = 1 + max(map(max, blocks))
    return np.array([[a in block for a in range(D)] for block in blocks], float)


def at_times(t: np.ndarray, value: np.ndarray, times: np.ndarray) -> np.ndarray:
    """A value (T, ...) recorded at t (T,), linearly in between, at other times."""
    columns = np.asarray(value).reshape(t.size, -1).T
    return np.stack([np.interp(times, t, column) for column in columns], axis=1).reshape(-1, *value.shape[1:])


def gap(run: Mapping[str, np.ndarray], theory: Any) -> float:
    """Largest distance over time, heads and tasks, over the theory's largest value; the worse of omega and mu."""
    return max(np.abs(run[name] - theory[name]).max() / np.abs(theory[name]).max() for name in DIMS)
