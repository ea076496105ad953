"""Local learning coefficient of a loss at weights w*, by stochastic-gradient Langevin dynamics (SGLD).

    lam(w*) = nbeta (E[l(w)] - l(w*)),    w ~ p(w) proportional to exp(-nbeta l(w) - (gamma/2) ||w - w*||^2)
    w <- w - (eps/2) (nbeta grad l(w) + gamma (w - w*)) + sqrt(eps) xi

l is the mean negative log-likelihood (a mean square needs its 1/(2 sigma^2)). At a regular minimum lam is about half the number
of parameters, less where the minimum is a valley. Away from minima it is negative: such values are flagged, never clipped. eps
biases upwards, gamma downwards. Source: Lau et al. 2023, arXiv 2308.12108, after Watanabe.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike

from .. import checks


class LLC(NamedTuple):
    """An estimate, its standard error over chains, and what it was made of."""

    estimate: Array
    standard_error: Array
    negative: Array  # below 0: w* is no minimum, or the chains have not mixed
    finite: Array  # False: a chain diverged, take a smaller eps
    init_loss: Array  # l(w*)
    losses: Array  # (chains, burn_in + draws), each before its step


def default_nbeta(n: ArrayLike) -> Array:
    """n / log n: n times the inverse temperature 1 / log n. n counts the whole set, or a minibatch (devinterp): say which."""
    n = jnp.asarray(n, float)
    return n / jnp.log(n)


def estimate(
    loss: Callable[[Any, Array], Array],
    params: Any,
    key: Array,
    *,
    nbeta: ArrayLike,
    gamma: ArrayLike = 5.0,
    eps: ArrayLike = 1e-4,
    chains: int = 8,
    draws: int = 500,
    burn_in: int = 500,
    init_loss: ArrayLike | None = None,
) -> LLC:
    """lam at `params`, any pytree of one dtype, from `chains` independent chains; map it over checkpoints and seeds.

    Args:
        loss: `loss(params, key) -> scalar`, a fresh minibatch for every key; a full batch ignores it.
        params: w*.
        key: for minibatches and noise.
        nbeta: n beta, such as `default_nbeta(n)`.
        gamma: pull towards w*.
        eps: step size. Stable on a quadratic only below 4 / (nbeta h + gamma), h the largest eigenvalue of its Hessian.
        chains: at least two, for the standard error.
        draws: losses averaged in every chain. Neighbours are correlated; the standard error, over chains, knows.
        burn_in: steps before them. Long enough to forget w*.
        init_loss: l(w*) if it is known better than from the mean over one minibatch for every chain.
    """
    w_star, unravel = ravel_pytree(params)
    checks.integer("chains", chains, 2)
    checks.integer("draws", draws, 1)
    checks.integer("burn_in", burn_in, 0)
    nbeta, gamma, eps = (jnp.asarray(x, w_star.dtype) for x in (nbeta, gamma, eps))
    key_init, key_chains = jax.random.split(key)

    def flat_loss(w: Array, key: Array) -> Array:
        return loss(unravel(w), key)

    def step(key: Array, w: Array, k: Array) -> tuple[Array, Array]:
        key_data, key_noise = jax.random.split(jax.random.fold_in(key, k))
        l, g = jax.value_and_grad(flat_loss)(w, key_data)
        xi = jax.random.normal(key_noise, w.shape, w.dtype)
        return w - eps / 2 * (nbeta * g + gamma * (w - w_star)) + jnp.sqrt(eps) * xi, l

    def chain(key: Array) -> Array:
        return jax.lax.scan(partial(step, key), w_star, jnp.arange(burn_in + draws))[1]

    losses = jax.vmap(chain)(jax.random.split(key_chains, chains))
    if init_loss is None:
        init_loss = jnp.mean(jax.vmap(lambda key: flat_loss(w_star, key))(jax.random.split(key_init, chains)))
    l_star = jnp.asarray(init_loss, losses.dtype)
    each = nbeta * (jnp.mean(losses[:, burn_in:], axis=1) - l_star)  # (chains,)
    mean, error = jnp.mean(each), jnp.std(each, ddof=1) / jnp.sqrt(jnp.asarray(chains, each.dtype))
    return LLC(mean, error, mean < 0, jnp.isfinite(mean), l_star, losses)


def quadratic(h: ArrayLike, *, nbeta: ArrayLike, gamma: ArrayLike, eps: ArrayLike = 0.0) -> Array:
    """1/2 sum_i nbeta h_i / (a_i (1 - eps a_i / 4)), a_i = nbeta h_i + gamma: lam of l = 1/2 sum_i h_i w_i^2 at w* = 0, exactly.

    It is the stationary law of the discrete update, which exists while eps a_i < 4 for all i; infinite where it does not. eps = 0
    is continuous time.
    """
    h = jnp.asarray(h)
    a = nbeta * h + gamma
    variance = 1 / (a * (1 - eps * a / 4))
    return jnp.where(jnp.all(eps * a < 4), nbeta * jnp.sum(h * variance) / 2, jnp.inf)
