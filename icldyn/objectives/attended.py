"""Softmax attention on fresh prompts, with its gradient by hand: little more work than drawing the numbers of the prompts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .. import checks
from ..models.linear_attention import Params
from ..models.softmax_attention import SoftmaxAttention
from ..struct import static, struct
from ..tasks.block_regression import BlockRegression

PIECE = 32  # prompts at a time, which fit the caches


@struct
class Attended:
    """Mean loss of `batch` prompts. Make one with `attended`.

    With a_h = softmax(z . u_h), u_h = Q_h x_q, the tokens seen s_h = sum_m a_hm z_m and e = yhat_q - y_q,

        d loss / d P_h = e s_h^T,    d loss / d Q_h = (sum_m a_hm (z_m - s_h).(P_h^T e) z_m) x_q^T,

    averaged over prompts. These lie in the last axis, where the vectors of a CPU are, and sums over tokens are written out. The
    gradient is handed to `jax.grad` through a term that is 0.
    """

    task: BlockRegression
    model: SoftmaxAttention
    batch: int = static()

    def loss(self, params: Params, key: Array) -> Array:
        """1/2 mean |y_q - yhat_q|^2 over the batch."""
        fixed = lax.stop_gradient(params)
        P, Q = self.model.value(fixed), self.model.key_query(fixed)
        pieces = self.batch // PIECE if self.batch % PIECE == 0 else 1

        def piece(key):
            z, x_q, y_q = self.task.prompts_last(key, self.batch // pieces)
            return _slopes(P, Q, _stored(z), x_q, y_q)

        keys = jax.random.split(key, pieces) if pieces > 1 else key[None]
        value, slopes = jax.tree.map(lambda a: jnp.mean(a, axis=0), lax.map(piece, keys))
        linear = sum(
            jnp.sum(w * slope)
            for w, slope in zip((self.model.value(params), self.model.key_query(params)), slopes, strict=True)
        )
        return value + linear - lax.stop_gradient(linear)


def _slopes(P: Array, Q: Array, z: Array, x_q: Array, y_q: Array) -> tuple[Array, tuple[Array, Array]]:
    """The loss and its gradients by P (H, O, n) and Q (H, n, D), for z (n, N, B), x_q (D, B) and y_q (O, B)."""
    n, N, B = z.shape
    u = jnp.einsum("hak,kb->hab", Q, x_q)
    logits = _add(u[:, a, None] * z[a][None] for a in range(n))  # (H, N, B)
    a = _stored(jnp.exp(logits - functools.reduce(jnp.maximum, [logits[:, m, None] for m in range(N)])))
    one_over_sum = 1 / _add(a[:, m] for m in range(N))  # (H, B)
    s = _add(a[:, m, None] * z[None, :, m] for m in range(N)) * one_over_sum[:, None]  # (H, n, B)
    error = jnp.einsum("hoa,hab->ob", P, s) - y_q
    back = jnp.einsum("hoa,ob->hab", P, error)
    along = _add(back[:, a, None] * z[a][None] for a in range(n)) - jnp.sum(back * s, axis=1)[:, None]  # (H, N, B)
    c = _stored(a * one_over_sum[:, None] * along)
    moved = _add(c[:, m, None] * z[None, :, m] for m in range(N))
    slopes = jnp.einsum("ob,hab->hoa", error, s) / B, jnp.einsum("hab,kb->hak", moved, x_q) / B
    return jnp.sum(error**2) / (2 * B), slopes


def _add(terms: Any) -> Array:
    return functools.reduce(jnp.add, terms)


def _stored(a: Array) -> Array:
    """Kept, where the compiler would make it anew wherever it is read."""
    return lax.optimization_barrier(a)


def attended(task: BlockRegression, model: SoftmaxAttention, batch: int) -> Attended:
    """SGD of softmax attention whose query is none of its own keys, on `batch` fresh prompts a step, drawn 32 at a time.

    Raises:
        icldyn.BadArgument: if the batch is below 1, task and model differ in size, or the query attends to itself.
    """
    if (task.D, task.O) != (model.D, model.O):
        raise checks.refuse("model", f"have the task's D = {task.D} and O = {task.O}", (model.D, model.O))
    if model.query_attends_itself:
        raise checks.refuse("model", "have query_attends_itself=False (use `sampled`)", True)
    return Attended(task, model, checks.integer("batch", batch, 1))
