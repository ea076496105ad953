"""One layer of softmax attention with H heads, read at the query.

    yhat_q = sum_h sum_m a_hm p_h.z_m,    a_h = softmax_m(z_m^T Q_h x_q),

over the tokens z_m = (x_m, y_m) of the context and, if the query attends to itself, z_q = (x_q, 0). p_h (D+1) is the last row of
head h's value matrix and Q_h (D+1) x D the first D columns of its key-query matrix, as in `heads`: nothing else reaches the
answer, for the query's label is 0. The softmax is the only normalisation: no division by N, none by the root of a dimension.

- merged: Q_h itself is trained;
- separate: Q_h = K_h^T Q'_h, a key K_h (R, D+1) and a query Q'_h (R, D).
"""

import jax
import jax.numpy as jnp
from jax import Array

from .. import checks
from ..struct import static, struct
from .linear_attention import Params


@struct
class SoftmaxAttention:
    """The model. Make one with `softmax_attention`.

    Weights are a dict, as those of `Heads` with all blocks: "v" (H, D+1), with "U" (H, D+1, D) or with "K" (H, R, D+1) and "Q"
    (H, R, D); the label's entry comes last.
    """

    D: int = static()
    H: int = static()
    R: int | None = static(default=None)
    query_attends_itself: bool = static(default=True)

    @property
    def O(self) -> int:  # noqa: E743
        """Output dimension."""
        return 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights."""
        value = {"v": (self.H, self.D + 1)}
        if self.R is None:
            return value | {"U": (self.H, self.D + 1, self.D)}
        return value | {"K": (self.H, self.R, self.D + 1), "Q": (self.H, self.R, self.D)}

    def apply(self, params: Params, x: Array, y: Array, x_q: Array) -> Array:
        """yhat_q (B, 1) for contexts x (B, N, D), y (B, N, 1) and queries x_q (B, D)."""
        z = jnp.concatenate([x, y], axis=2)
        if self.query_attends_itself:
            z_q = jnp.concatenate([x_q, jnp.zeros_like(x_q[:, :1])], axis=1)
            z = jnp.concatenate([z, z_q[:, None]], axis=1)
        if self.R is None:
            u = jnp.einsum("hak,bk->bha", params["U"], x_q)
        else:
            u = jnp.einsum("hra,hrk,bk->bha", params["K"], params["Q"], x_q)
        a = jax.nn.softmax(jnp.einsum("bna,bha->bhn", z, u), axis=2)
        seen = jnp.einsum("bhn,bna->bha", a, z)
        return jnp.einsum("ha,bha->b", params["v"], seen)[:, None]


def softmax_attention(
    D: int, H: int = 1, R: int | None = None, *, query_attends_itself: bool = True
) -> SoftmaxAttention:
    """H heads with merged key-query matrices, or with keys and queries of rank R.

    Raises:
        icldyn.BadArgument: if D, H or R is below 1.
    """
    sizes = {"D": checks.integer("D", D, 1), "H": checks.integer("H", H, 1)}
    rank = None if R is None else checks.integer("R", R, 1)
    return SoftmaxAttention(**sizes, R=rank, query_attends_itself=bool(query_attends_itself))
