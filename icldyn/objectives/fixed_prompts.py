"""Full-batch training on P fixed prompts: least squares where the answer is linear in folded weights, else one by one.

`LeastSquares` is `dataset` without its normal equations. With phi = x_q (x) g and k of `Heads.kernel`,

    L = 1/(2P) sum_p (k.phi_p - y_p)^2 = 1/2 |R (k, -1)|^2,    [phi, y] / sqrt(P) = (orthonormal columns) R,

so the condition number of the data is not squared and no eigenvalue has to be cut: the loss keeps its relative accuracy down to
zero, and inputs whose scales differ by 10^5 keep their weakest directions. R has at most min(P, D n + 1) rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import ArrayLike

from ..models.heads import Heads
from ..struct import static, struct
from .folded import CHUNK, _context

TOKENS = 2**17  # head-tokens answered at a time: a few arrays of 1 MB


@struct
class LeastSquares:
    """L = 1/2 |R (k, -1)|^2, k the folded weights of the heads. Made by `least_squares`."""

    R: ArrayLike  # (at most D n + 1, D n + 1)
    model: Heads

    def loss(self, params: Any, key: Array | None = None) -> Array:
        """The mean loss of all prompts at `params`; the key is ignored."""
        k = _kernel(self.model.tensor(params)).reshape(-1)
        R = jnp.asarray(self.R, k.dtype)
        error = R[:, :-1] @ k - R[:, -1]
        return error @ error / 2


@struct
class FixedPrompts:
    """L = 1/(2P) sum_p (y_q - scale yhat_q)^2, a chunk of prompts at a time. Made by `fixed_prompts`.

    Memory does not grow with P. The last chunk is filled up with prompts of zeros, which every model here answers with 0.
    """

    x: ArrayLike  # (chunks, B, N, D)
    y: ArrayLike  # (chunks, B, N, 1)
    x_q: ArrayLike  # (chunks, B, D)
    y_q: ArrayLike  # (chunks, B)
    scale: ArrayLike
    model: Any
    P: int = static()

    def loss(self, params: Any, key: Array | None = None) -> Array:
        """The mean loss of all prompts at `params`; the key is ignored."""
        dtype = params["v"].dtype
        chunks = tuple(jnp.asarray(a, dtype) for a in (self.x, self.y, self.x_q, self.y_q))
        scale = jnp.asarray(self.scale, dtype)

        def add(total: Array, chunk: tuple[Array, ...]) -> tuple[Array, None]:
            *prompt, y_q = chunk
            error = y_q - scale * self.model.apply(params, *prompt)[:, 0]
            return total + error @ error, None

        one_chunk = len(chunks[0]) == 1  # then nothing is saved by answering it twice
        total, _ = lax.scan(add if one_chunk else jax.checkpoint(add), jnp.zeros((), dtype), chunks)
        return total / (2 * self.P)


def _kernel(M: Array) -> Array:
    """`Heads.kernel` of M (D+1, D+1, D): (D, n), M_abk + M_bak for a < b, M_aak for a = b.

    A gather whose indices the compiler does not see: as constants they take it ten seconds at D = 12.
    """
    a, b = np.triu_indices(len(M))
    pairs = lax.optimization_barrier(jnp.asarray(a * len(M) + b))
    both = (M + M.swapaxes(0, 1)).reshape(-1, M.shape[2])[pairs]
    return jnp.where(jnp.asarray(a == b)[:, None], both / 2, both).T


def least_squares(
    model: Heads, x: np.ndarray, y: np.ndarray, x_q: np.ndarray, y_q: np.ndarray, length: float
) -> LeastSquares:
    """`LeastSquares` of heads with all blocks; x (P, N, D), y (P, N), x_q (P, D), y_q (P,), context sums divided by `length`."""
    P, size = len(x), model.D * (model.D + 1) * (model.D + 2) // 2
    R = np.zeros((0, size + 1))
    rows = max(CHUNK, size)
    for first in range(0, P, rows):
        part = [a[first : first + rows].astype(np.float64) for a in (x, y, x_q, y_q)]
        g = _context(model, *part[:3]) / length
        phi = np.einsum("pk,pi->pki", part[2], g).reshape(len(g), size)
        R = np.concatenate([R, np.column_stack([phi, part[3]]) / np.sqrt(P)])
        R = np.linalg.qr(R, mode="r") if len(R) > size else R
    return LeastSquares(R, model)


def fixed_prompts(
    model: Any, x: np.ndarray, y: np.ndarray, x_q: np.ndarray, y_q: np.ndarray, scale: float = 1.0
) -> FixedPrompts:
    """`FixedPrompts` of the same arrays; answers are multiplied by `scale`."""
    P, N = x.shape[:2]
    size = min(P, max(TOKENS // (model.H * (N + 1)), 1))
    chunks = -(-P // size)

    def cut(a: np.ndarray) -> np.ndarray:
        whole = np.zeros((chunks * size, *a.shape[1:]), a.dtype)
        whole[:P] = a
        return whole.reshape(chunks, size, *a.shape[1:])

    return FixedPrompts(cut(x), cut(y[..., None]), cut(x_q), cut(y_q), np.float64(scale), model, P)
