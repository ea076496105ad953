"""Extreme eigenvalues and trace of the Hessian of a loss, from Hessian-vector products alone.

A product is the jvp of the gradient. Lanczos with full re-orthogonalisation gives the ends of the spectrum, Hutchinson's random
signs the trace. `loss(params) -> scalar` must be the same in every product: one fixed batch, in float64 if the bulk matters
(float32 loses it below 1e-7 of the top).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from .. import checks
from .one_by_one import one_by_one

_eigenvalues = one_by_one(np.linalg.eigvalsh, lambda T: jnp.linalg.eigvalsh(T))


class Estimate(NamedTuple):
    """A mean over random probes and its standard error."""

    mean: Array
    standard_error: Array


def product(loss: Callable[[Any], Array], params: Any, v: Any) -> Any:
    """H v at params, v a pytree as params."""
    return jax.jvp(jax.grad(loss), (params,), (v,))[1]


def ritz_values(loss: Callable[[Any], Array], params: Any, key: Array, products: int = 30) -> Array:
    """Ritz values of Lanczos from a random start, ascending: the first and the last approach the ends of the spectrum.

    T = Q H Q^T is tridiagonal, q_{j+1} = (H q_j - alpha_j q_j - beta_{j-1} q_{j-1}) / beta_j, every q orthogonalised twice
    against all before. Where beta is rounding, an invariant space is complete: a new random direction starts the next. No more
    products than parameters are made.
    """
    w, unravel = ravel_pytree(params)
    m = min(checks.integer("products", products, 1), w.size)
    start, *fresh = jax.random.normal(key, (m + 1, w.size), w.dtype)

    def flat_product(v: Array) -> Array:
        return ravel_pytree(product(loss, params, unravel(v)))[0]

    def orthogonal(v: Array, Q: Array) -> Array:
        v = v - Q.T @ (Q @ v)
        return v - Q.T @ (Q @ v)

    def step(
        carry: tuple[Array, Array], inputs: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        Q, q = carry
        j, other = inputs
        Q = Q.at[j].set(q)
        Hq = flat_product(q)
        left = orthogonal(Hq, Q)
        beta = jnp.linalg.norm(left)
        ended = beta <= 10 * jnp.finfo(w.dtype).eps * jnp.linalg.norm(Hq)
        left = jnp.where(ended, orthogonal(other, Q), left)
        return (Q, left / jnp.linalg.norm(left)), (jnp.vdot(q, Hq), jnp.where(ended, 0, beta))

    first = (jnp.zeros((m, w.size), w.dtype), start / jnp.linalg.norm(start))
    _, (alpha, beta) = jax.lax.scan(step, first, (jnp.arange(m), jnp.stack(fresh)))
    return _eigenvalues(jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1))


def trace(loss: Callable[[Any], Array], params: Any, key: Array, probes: int = 200) -> Estimate:
    """tr H = E z^T H z over random signs z, with its standard error; at least two probes, one after another."""
    w, unravel = ravel_pytree(params)
    checks.integer("probes", probes, 2)

    def probe(key: Array) -> Array:
        z = jax.random.rademacher(key, w.shape, w.dtype)
        return jnp.vdot(z, ravel_pytree(product(loss, params, unravel(z)))[0])

    found = jax.lax.map(probe, jax.random.split(key, probes))
    return Estimate(jnp.mean(found), jnp.std(found, ddof=1) / jnp.sqrt(jnp.asarray(probes, w.dtype)))
