"""Factorisations that a map over many matrices takes one after another on the CPU.

jaxlib 0.10 gives the matrices of one batch to the same few threads that run the program: two batches at once were seen to wait
for each other for ever (two cores, 12 matrices 768 x 64). Where cores are busy, OPENBLAS_NUM_THREADS=1 is faster by hundreds of
times.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.custom_batching import custom_vmap


def one_by_one(factorise: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """`factorise` of a matrix (m, n), whose vmap is a loop on the CPU and one batch elsewhere."""
    single = custom_vmap(factorise)

    @single.def_vmap
    def _(axis_size: int, in_batched: list[bool], M: Array) -> tuple[Any, Any]:
        del axis_size, in_batched  # one argument, which is batched
        out = jax.lax.platform_dependent(M, cpu=lambda M: jax.lax.map(single, M), default=jax.vmap(factorise))
        return out, jax.tree.map(lambda _: True, out)

    mapped = jax.custom_jvp(single)  # custom_vmap alone has no gradient

    @mapped.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
        return jax.jvp(factorise, primals, tangents)

    return mapped
