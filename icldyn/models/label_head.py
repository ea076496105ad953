"""One softmax head that reads labels, of which only the merged key-query matrix is trained.

    yhat_q = sum_{i <= N} softmax_i(x_i^T Q x_q) y_i,    Q (D, D):

`softmax_attention` with one head, value 1 on the label and 0 on the inputs, no label row in the key-query matrix, and the query
not among its own keys: the model of Huang, Cheng and Liang (2023). Nothing else normalises.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial

from .. import checks
from ..struct import static, struct
from .heads import _given
from .linear_attention import Init, Params


@struct
class LabelHead:
    """The model. Make one with `label_head`. Weights are {"Q": (D, D)}."""

    D: int = static()

    @property
    def O(self) -> int:  # noqa: E743
        """Output dimension."""
        return 1

    def apply(self, params: Params, x: Array, y: Array, x_q: Array) -> Array:
        """yhat_q (B, 1) for contexts x (B, N, D), y (B, N, 1) and queries x_q (B, D)."""
        a = jax.nn.softmax(jnp.einsum("bni,ij,bj->bn", x, params["Q"], x_q), axis=1)
        return jnp.einsum("bn,bno->bo", a, y)

    def attention(self, params: Params, n: Array, x_q: Array) -> Array:
        """The attention on all tokens that are e_i, (D, B), for contexts of n_i of them (D, B) and queries x_q (D, B)."""
        logits = jnp.where(n > 0, params["Q"] @ x_q, -jnp.inf)
        e = n * jnp.exp(logits - lax.stop_gradient(jnp.max(logits, axis=0, keepdims=True)))
        return e / jnp.sum(e, axis=0, keepdims=True)


def label_head(D: int) -> LabelHead:
    """The head on inputs of D dimensions.

    Raises:
        icldyn.BadArgument: if D is below 1.
    """
    return LabelHead(checks.integer("D", D, 1))


def zeros(model: LabelHead) -> Init:
    """Q = 0 in every seed, from where the paper trains."""
    return Partial(_given, {"Q": np.zeros((model.D, model.D))})
