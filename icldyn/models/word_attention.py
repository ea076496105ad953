"""Softmax attention over orthonormal words and a linear MLP, written in words (Hongru Yang et al. 2024).

    F(X) = sum_l sum_j a_j <w_j, W_V X softmax(X^T W_K^T W_Q x_l / sqrt m)>,    a_j = +-1 fixed, j = 1 ... m1,

the softmax over all L words, x_l among them. Words enter through G(mu) = sum_j a_j <w_j, W_V mu> (d,) and S = W_K^T W_Q (d, d)
in the basis of the words, and sentences through their counts N (n, d):

    F_i = sum_q N_iq (sum_k N_ik e^(S_kq / sqrt m) G_k) / (sum_k N_ik e^(S_kq / sqrt m)).

The m1 neurons are one: the loss depends on W through W^T a alone, so every gradient of W is a (...)^T, and what W has across a
stays as it was. With w = W^T a / sqrt m1, which starts N(0, sigma1^2) as an entry of W does, G = sqrt m1 W_V^T w, and gradient
descent on w is gradient descent on W at the same rate, exactly; W^T W moves by that of w w^T.

Weights are "w" (m,), "W_V", "W_K", "W_Q" (m, d). Exponents are not shifted: |S| / sqrt m has to stay below 80 in float32.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from .. import checks
from ..struct import static, struct

Params = dict[str, Array]


@struct
class WordAttention:
    """The model. Make one with `word_attention`."""

    d: int = static()
    m: int = static()
    m1: int = static()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights."""
        return {"w": (self.m,)} | dict.fromkeys(("W_V", "W_K", "W_Q"), (self.m, self.d))

    def values(self, params: Params) -> Array:
        """G (d,)."""
        return jnp.asarray(self.m1**0.5, params["w"].dtype) * (params["w"] @ params["W_V"])

    def scores(self, params: Params) -> Array:
        """S (d, d), keys first, before the division by sqrt m."""
        return params["W_K"].T @ params["W_Q"]

    def answers(self, G: Array, S: Array, N: Array) -> Array:
        """F (n,)."""
        weight = jnp.exp(S / np.sqrt(self.m).astype(S.dtype))
        return jnp.sum(N * (N @ (G[:, None] * weight)) / (N @ weight), axis=1)

    def value_invariant(self, params: Params) -> Array:
        """w w^T - W_V W_V^T (m, m), W^T W - W_V W_V^T but for a constant: gradient flow keeps it."""
        return jnp.outer(params["w"], params["w"]) - params["W_V"] @ params["W_V"].T

    def key_invariant(self, params: Params) -> Array:
        """W_K W_K^T - W_Q W_Q^T (m, m): gradient flow keeps it."""
        return params["W_K"] @ params["W_K"].T - params["W_Q"] @ params["W_Q"].T


def word_attention(d: int, m: int, m1: int) -> WordAttention:
    """Attention of width m over d words, and m1 neurons.

    Raises:
        icldyn.BadArgument: if a size is below 1, or d below 4.
    """
    return WordAttention(checks.integer("d", d, 4), checks.integer("m", m, 1), checks.integer("m1", m1, 1))
