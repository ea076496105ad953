"""Ridge regression of linear attention on a finite data set, as an experiment: one step of Newton solves it exactly.

A seed draws its own pool of tasks and data set in `init`; the params hold its sufficient statistics (which no step changes)
beside Gamma = 0 and the ridge `lam` of the next step. The loss is quadratic, so a step of Newton with lr = 1 is its minimiser;
then lam falls by `ratio`. A trajectory is the path of ridge solutions: record t > 0 is that of lam = first ratio^(t-1).
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.tree_util import Partial

from ..struct import struct
from ..tasks import task_pool

Params = dict[str, Array]


@struct
class Ridge:
    """1/2 mean (y_q - yhat)^2 + lam/(2d) ||Gamma||^2 over the data set that the params hold."""

    def loss(self, params: Params, key: Array | None = None) -> Array:
        """The loss; the key is ignored."""
        held = lax.stop_gradient({name: value for name, value in params.items() if name != "Gamma"})
        gamma, d = params["Gamma"].ravel(), params["Gamma"].shape[0]
        twice = held["yy"] - 2 / d * (held["b"] @ gamma)
        return (twice + (gamma @ (held["C"] @ gamma) + held["lam"] * (gamma @ gamma)) / d) / 2


def ridge_start(d: int, most: int, k: float, l: float, n: float, rho: float, first: float) -> Partial:
    """(key, scale) -> params of a fresh data set (`task_pool.data_set`), Gamma = 0, and the first ridge."""
    return Partial(Partial(_start, _Shape(d, most)), k, l, n, rho, first)


def newton(lr: Array, ratio: float) -> optax.GradientTransformation:
    """Gamma <- Gamma - lr H^-1 grad with H = (C + lam I)/d, then lam <- ratio lam."""

    def update(grads: Params, state, params: Params):
        gradient, d = grads["Gamma"], grads["Gamma"].shape[0]
        H = (params["C"] + params["lam"] * jnp.eye(gradient.size, dtype=gradient.dtype)) / d
        step = jax.scipy.linalg.solve(H, gradient.ravel(), assume_a="pos").reshape(gradient.shape)
        return grads | {"Gamma": -lr * step, "lam": (ratio - 1) * params["lam"]}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
