"""Which head holds which mode, and when a loss falls, for the weights of `heads` with zero blocks.

Weights {"v" (H,), "U" (H, D, D)} or {"v" (H,), "K", "Q" (H, R, D)}. Use a measure as `jax.tree_util.Partial(strength, U)`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

Params = dict[str, Array]


def by_head(U: Array, params: Params) -> Array:
    """u_a^T A_h u_a, (H, D): the part of head h in mode a, A_h = v_h U_h or v_h K_h^T Q_h."""
    if "U" in params:
        return jnp.einsum("h,hij,ia,ja->ha", params["v"], params["U"], U, U)
    return params["v"][:, None] * jnp.sum((params["K"] @ U) * (params["Q"] @ U), axis=1)


def strength(U: Array, params: Params) -> Array:
    """u_a^T A u_a, (D,), A the sum over heads."""
    return jnp.sum(by_head(U, params), axis=0)


def share(params: Params) -> Array:
    """v_h^2 / |v|^2, (H,)."""
    return params["v"] ** 2 / jnp.sum(params["v"] ** 2)


DIMS: dict[str, Any] = {"strength": ("mode",), "by_head": ("head", "mode"), "share": ("head",)}


def crossing(t: ArrayLike, loss: ArrayLike, level: float) -> np.ndarray:
    """When a loss (..., T) is first below `level`, by a line between the records at t, (T,) or as the loss; inf if never."""
    loss = np.asarray(loss, float)
    t, below = np.broadcast_to(t, loss.shape), loss < level
    k = np.maximum(below.argmax(-1), 1)[..., None]
    high, low = (np.take_along_axis(loss, j, -1)[..., 0] for j in (k - 1, k))
    before, after = (np.take_along_axis(t, j, -1)[..., 0] for j in (k - 1, k))
    part = np.divide(high - level, high - low, out=np.zeros_like(high), where=(high >= level) & (low < level))
    return np.where(below.any(-1), before + (after - before) * part, np.inf)


def drops(t: np.ndarray, loss: np.ndarray, prominence: float = 0.05) -> np.ndarray:
    """How many separate drops every curve (S, T) has: peaks of -dL/dt that stand out by so much of the highest, (S,)."""
    return np.array([len(_peaks(t, one, prominence)[0]) for one in loss])


def plateaus(t: np.ndarray, loss: np.ndarray, prominence: float = 0.05) -> np.ndarray:
    """Places in a curve (T,) where it is flattest: before, between and after its drops, (number of drops + 1,)."""
    peaks, speed = _peaks(t, loss, prominence)
    edges = [0, *peaks, loss.size]
    return np.array([i + np.argmin(speed[i:j]) for i, j in zip(edges, edges[1:], strict=False)])


def _peaks(t: np.ndarray, loss: np.ndarray, prominence: float) -> tuple[np.ndarray, np.ndarray]:
    from scipy.signal import find_peaks

    speed = -np.gradient(loss, t)
    return find_peaks(np.pad(speed, 1), prominence=prominence * speed.max())[0] - 1, speed
