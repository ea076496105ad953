"""The exact expected loss."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .. import checks
from ..models.heads import Heads, Params
from ..models.linear_attention import LinearAttention
from ..struct import struct
from ..tasks.linear_regression import LinearRegression
from ..theory import moments as m
from ..theory import one_layer
from ..theory.population import population_loss, scalar_population_loss


@struct
class Population:
    """The exact expectation over prompts (`theory.population`). Make one with `population`."""

    moments: m.TaskMoments
    model: LinearAttention

    def loss(self, params: Params, key: Array | None = None) -> Array:
        """The exact loss at `params`; the key is ignored."""
        p1, p2, q1, q2 = self.model.blocks(params)
        P, Q = jnp.concatenate([p1, p2], axis=1), jnp.concatenate([q1, q2])
        return population_loss(P, Q, self.moments, self.model.query_attends_itself)


@struct
class HeadsPopulation:
    """The exact expectation over prompts for heads: in A alone with zero blocks, else in the whole tensor M."""

    Sigma: ArrayLike  # (D, D)
    Sigma_w: ArrayLike  # (D, D), second moment of the tasks
    rho: ArrayLike
    N: ArrayLike
    model: Heads

    def loss(self, params: Params, key: Array | None = None) -> Array:
        """The exact loss at `params`; the key is ignored."""
        M = self.model.tensor(params)
        S, Sw, rho, N = (jnp.asarray(a, M.dtype) for a in (self.Sigma, self.Sigma_w, self.rho, self.N))
        if self.model.zero_blocks:
            return one_layer.loss(M[self.model.D, : self.model.D], S, N, Sw, rho)
        return scalar_population_loss(M, S, Sw, rho, N, self.model.query_attends_itself)


def layer_population(task: LinearRegression, model: LinearAttention) -> Population:
    """`Population` of a task and a model that match."""
    if task.pool is None:
        moments = m.gaussian_task_moments(task.Sigma, task.task_covariance(), float(task.rho), task.N)
    else:
        moments = m.pool_task_moments(task.Sigma, task.pool, float(task.rho), task.N)
    return Population(moments, model)


def heads_population(task: LinearRegression, model: Heads) -> HeadsPopulation:
    """`HeadsPopulation` of a task and a model that match.

    With zero blocks the loss sees the tasks through their second moment alone, so that a pool is exact there too.
    """
    if task.pool is not None and not model.zero_blocks:
        raise checks.BadArgument("Argument `task` must have no pool for heads with all blocks, but has one.")
    pool = None if task.pool is None else np.asarray(task.pool)[:, 0]
    Sigma_w = task.Sigma_w if pool is None else pool.T @ pool / len(pool)
    return HeadsPopulation(task.Sigma, Sigma_w, np.float64(task.rho), np.float64(task.N), model)
