"""Functions and arrays made ready for a program: what a closure carries becomes an argument, in the run's dtype."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def traceable(function: Callable[..., Any]) -> Any:
    """A function as a pytree, so that the arrays it carries are arguments of the program and not constants in it.

    Carried are those of a `jax.tree_util.Partial` and those of a bound method's owner, if it is a pytree.
    """
    if inspect.ismethod(function) and not _is_leaf(function.__self__):
        return jax.tree_util.Partial(function.__func__, function.__self__)
    return jax.tree_util.Partial(function) if _is_leaf(function) else function


def _is_leaf(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    return len(leaves) == 1 and leaves[0] is tree


def placed(tree: Any, dtype: str, device: jax.Device | None = None) -> Any:
    """The tree on a device, numbers as arrays and floating arrays in `dtype`."""

    def leaf(a: Any) -> Any:
        if not isinstance(a, int | float | np.ndarray | np.generic | jax.Array):
            return a
        a = a if isinstance(a, jax.Array) and jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else np.asarray(a)
        return jax.device_put(a.astype(dtype) if np.issubdtype(a.dtype, np.floating) else a, device)

    return jax.tree.map(leaf, tree)
