"""Factorisations by LAPACK that never wait for each other.

On the CPU jaxlib 0.10 gives the matrices of one call, be it one, to the few threads that run programs, and waits for them on
such a thread: as many calls at once as there are threads stop for ever (seen on two cores). So arrays that are known go to
numpy, all matrices at once; what is mapped within a compiled program goes one after another. Two compiled programs at once
with a factorisation each can still stop: keep these out of programs that train.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_batching import custom_vmap


def one_by_one(known: Callable[[np.ndarray], Any], traced: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """A factorisation of matrices (..., m, n): `known` is numpy's, `traced` that of jax, to which gradients are left too."""

    @custom_vmap
    def looped(M: Array) -> Any:
        if M.ndim == 2:
            return traced(M)
        flat = M.reshape(-1, *M.shape[-2:])
        found = jax.lax.platform_dependent(flat, cpu=lambda M: jax.lax.map(traced, M), default=traced)
        return jax.tree.map(lambda a: a.reshape(*M.shape[:-2], *a.shape[1:]), found)

    def factorised(M: Array) -> Any:
        elsewhere = isinstance(M, Array) and (
            isinstance(M, jax.core.Tracer) or any(device.platform != "cpu" for device in M.devices())
        )
        return looped(M) if elsewhere else jax.tree.map(jnp.asarray, known(np.asarray(M)))

    @looped.def_vmap
    def _(axis_size: int, in_batched: list[bool], M: Array) -> tuple[Any, Any]:
        del axis_size, in_batched  # one argument, which is batched
        found = factorised(M)
        return found, jax.tree.map(lambda _: True, found)

    mapped = jax.custom_jvp(factorised)  # custom_vmap alone has no gradient

    @mapped.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
        return jax.jvp(traced, primals, tangents)

    return mapped
