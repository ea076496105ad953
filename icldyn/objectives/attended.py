"""Softmax attention on fresh prompts, with its gradient by hand: little more work than drawing the numbers of the prompts."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .. import checks
from ..models.linear_attention import Params
from ..models.softmax_attention import SoftmaxAttention
from ..normals import stored
from ..struct import static, struct
from ..tasks.block_regression import BlockRegression
from .in_pieces import handed

PIECE = 128  # prompts at a time, which fit the caches


@struct
class Attended:
    """Mean loss of `batch` prompts. Make one with `attended`.

    With a_h = softmax(z . u_h), u_h = Q_h x_q, mean tokens s_h = sum_m a_hm z_m, values v_hm = P_h z_m, answers of a head
    w_h = sum_m a_hm v_hm and e = yhat_q - y_q = sum_h w_h - y_q,

        d loss / d P_h = e s_h^T,    d loss / d Q_h = (sum_m a_hm (v_hm - w_h).e z_m) x_q^T,

    averaged over prompts. So every sum over tokens is known before the error is, and one pass takes all of them. Prompts lie in
    the last axis, where the vectors of a CPU are, and sums are written out.
    """

    task: BlockRegression
    model: SoftmaxAttention
    batch: int = static()

    @property
    def in_turn(self) -> bool:
        """The tokens of one seed fill the caches of a core."""
        return True

    def loss(self, params: Params, key: Array) -> Array:
        """1/2 mean |y_q - yhat_q|^2 over the batch."""
        pieces = self.batch // PIECE if self.batch % PIECE == 0 else 1
        known = functools.partial(_of_pieces, pieces, self.batch // pieces)
        weights = self.model.value(params), self.model.key_query(params)
        return handed(lambda *given: known(*given)[0], known, weights, (self.task, key))


def _of_pieces(pieces: int, size: int, weights: tuple[Array, Array], drawn: tuple[BlockRegression, Array]) -> Any:
    """The loss of prompts of the task, drawn from the key piece by piece, and its gradients."""
    task, key = drawn
    keys = jax.random.split(key, pieces) if pieces > 1 else key[None]
    of_pieces = stored(lambda key: _slopes(*weights, *task.prompts_last(key, size)), keys)
    return jax.tree.map(lambda a: jnp.mean(a, axis=0), of_pieces)


def _slopes(P: Array, Q: Array, z: Array, x_q: Array, y_q: Array) -> tuple[Array, tuple[Array, Array]]:
    """The loss and its gradients by P (H, O, n) and Q (H, n, D), for z (n, N, B), x_q (D, B) and y_q (O, B)."""
    n, N, B = z.shape
    u = jnp.einsum("hak,kb->hab", Q, x_q)
    logits = _add(u[:, a, None] * z[a][None] for a in range(n))  # (H, N, B)
    top = _by_heads(lambda logits: functools.reduce(jnp.maximum, [logits[:, m] for m in range(N)]), logits)
    v = jnp.einsum("hoa,amb->homb", P, z)

    def sums(a, v):
        av = a[:, None] * v
        of_a = _add(a[:, m, None] * z[None, :, m] for m in range(N))
        of_av = _add(av[:, :, m, None] * z[None, None, :, m] for m in range(N))
        return _add(a[:, m] for m in range(N)), _add(av[:, :, m] for m in range(N)), of_a, of_av

    total, *rest = _by_heads(sums, jnp.exp(logits - top[:, None]), v)
    w, s, moved = (b / total.reshape(-1, *(1,) * (b.ndim - 2), B) for b in rest)  # (H, O, B), (H, n, B), (H, O, n, B)
    error = jnp.sum(w, axis=0) - y_q
    moved = jnp.sum(error[None, :, None] * (moved - w[:, :, None] * s[:, None]), axis=1)
    slopes = jnp.einsum("ob,hab->hoa", error, s) / B, jnp.einsum("hab,kb->hak", moved, x_q) / B
    return jnp.sum(error**2) / (2 * B), slopes


def _by_heads(function: Callable[..., Any], *heads: Array) -> Any:
    """`function` of arrays with heads in the first axis, stored: halves of the heads, or one by one, in a loop."""
    H = len(heads[0])
    halves = [a.reshape(2, H // 2, *a.shape[1:]) if H % 2 == 0 else a[:, None] for a in heads]
    return jax.tree.map(lambda a: a.reshape(H, *a.shape[2:]), stored(function, *halves))


def _add(terms: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, terms)


def attended(task: BlockRegression, model: SoftmaxAttention, batch: int) -> Attended:
    """SGD of softmax attention whose query is none of its own keys, on `batch` fresh prompts a step, drawn 128 at a time.

    Raises:
        icldyn.BadArgument: if the batch is below 1, task and model differ in size, or the query attends to itself.
    """
    if (task.D, task.O) != (model.D, model.O):
        raise checks.refuse("model", f"have the task's D = {task.D} and O = {task.O}", (model.D, model.O))
    if model.query_attends_itself:
        raise checks.refuse("model", "have query_attends_itself=False (use `sampled`)", True)
    return Attended(task, model, checks.integer("batch", batch, 1))
