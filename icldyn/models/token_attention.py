"""Softmax attention with H heads over a fixed dictionary, with a value weight for every head and token (Yang et al. 2024).

    yhat_k = sum_h w_hk <y_1:N, s_hk>,    s_hk = softmax(V_N^T Q_h v_k),    k = 1 ... K.

Keys and values are the N labelled tokens alone, so that a token k <= N attends to itself and a token k > N does not. Labels do
not enter the scores: the answer is linear in them, yhat = y_1:N a, with a_k = sum_h w_hk s_hk (N,). No mask, no division by
N or by the root of a dimension.

Weights are "w" (H, K) and "Q" (H, d, d). The tokens V (d, K) are an argument.
"""

import jax
import jax.numpy as jnp
from jax import Array

from .. import checks
from ..struct import static, struct


@struct
class TokenAttention:
    """The model. Make one with `token_attention`."""

    d: int = static()
    K: int = static()
    N: int = static()
    H: int = static()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights."""
        return {"w": (self.H, self.K), "Q": (self.H, self.d, self.d)}

    def attention(self, Q: Array, V: Array) -> Array:
        """s (N, H, K): how much token k attends to token i in head h."""
        scores = jnp.einsum("di,hde->ihe", V[:, : self.N], Q).reshape(-1, self.d) @ V
        return jax.nn.softmax(scores.reshape(self.N, self.H, self.K), axis=0)

    def combined(self, params: dict[str, Array], V: Array) -> Array:
        """a (N, K): yhat = y_1:N a."""
        return jnp.sum(params["w"][None] * self.attention(params["Q"], V), axis=1)

    def apply(self, params: dict[str, Array], V: Array, y: Array) -> Array:
        """yhat (B, K) for labels y (B, N)."""
        return y @ self.combined(params, V)


def token_attention(d: int, K: int, N: int, H: int = 1) -> TokenAttention:
    """H heads over K tokens in R^d, of which the first N are labelled.

    Raises:
        icldyn.BadArgument: if a size is below 1, or N above K.
    """
    K = checks.integer("K", K, 1)
    return TokenAttention(d=checks.integer("d", d, 1), K=K, N=checks.integer("N", N, 1, K), H=checks.integer("H", H, 1))
