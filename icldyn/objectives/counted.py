"""The batch loss of a label head on a dictionary, from counts of tokens."""

import jax
import jax.numpy as jnp
from jax import Array

from ..models.label_head import LabelHead
from ..models.linear_attention import Params
from ..normals import normals
from ..struct import static, struct
from ..tasks.dictionary import Dictionary


@struct
class Counted:
    """The same law as `sampled`: equal tokens share their attention, and no token is drawn. Make one with `statistics`.

    yhat_q - y_q = sum_m (a_m - 1[m = k]) w_m, with a_m the attention on all tokens e_m and k the query. A prompt costs N + 1
    words and K normals. Kernel layout: prompts in the last axis, where the vector lanes are.
    """

    task: Dictionary
    model: LabelHead
    batch: int = static()
    generator: str = static()

    def loss(self, params: Params, key: Array) -> Array:
        """1/2 mean (y_q - yhat_q)^2 over the batch."""
        key_tokens, key_w = jax.random.split(key)
        n, query = self.task.counts(key_tokens, self.batch)
        w = normals(key_w, n.shape, n.dtype, self.generator)
        error = jnp.sum((self.model.attention(params, n, query) - query) * w, axis=0)
        return jnp.sum(error**2) / (2 * self.batch)
