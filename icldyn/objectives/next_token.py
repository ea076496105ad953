"""The next token of fresh sequences, by cross-entropy at every position.

L = mean over B sequences and T positions of -log softmax(logits_t)_{x_{t+1}}.
"""

import functools
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array, lax

from .. import checks
from ..models import attention_only
from ..models.transformer import Transformer
from ..struct import static, struct
from .in_pieces import mean_of_pieces, on_cpu, pieces_of


@struct
class NextToken:
    """The loss of `batch` fresh sequences a step, of any task with `sample(key, B)`. Make one with `next_token`."""

    task: Any
    net: Transformer = static()
    batch: int = static()

    @property
    def in_turn(self) -> bool:
        """On a CPU one seed after another: a batch of one fills the caches of a core."""
        return True

    def start(self, key: Array, scale: Array) -> Any:
        """Initial weights: the `init` of an experiment."""
        return self.net.start(key, scale)

    def weights(self, params: Any) -> Any:
        """Of the network: all there are."""
        return params

    def draw(self, key: Array) -> Array:
        """The sequences of a step, (batch, T + 1)."""
        return self.task.sample(key, self.batch)

    def losses(self, params: Any, tokens: Array) -> Array:
        """-log p(x_{t+1}) of sequences (B, T + 1): (B, T), in nats."""
        if self._folds:
            folded = attention_only.folded(self.net, params)
            return lax.map(functools.partial(self._of_one, folded), tokens)
        return _surprise(self.net.logits(params, tokens[:, :-1]), tokens[:, 1:], -1)

    def patterns(self, params: Any, tokens: Array) -> Array:
        """Where heads look on tokens (B, t), (layers, B, H, t, t)."""
        return self.net.traced(params, tokens)[1]

    def loss(self, params: Any, key: Array) -> Array:
        """L; on a CPU a few sequences at a time, or one by folded weights where the network has them."""
        tokens = self.draw(key)
        if self._folds:
            folded = attention_only.folded(self.net, params)
            return mean_of_pieces(lambda w, one: jnp.mean(self._of_one(w, one[0])), folded, tokens, self.batch)
        pieces = pieces_of(self.batch, self.task.T)
        return mean_of_pieces(lambda w, piece: jnp.mean(self.losses(w, piece)), params, tokens, pieces)

    @property
    def _folds(self) -> bool:
        return on_cpu() and attention_only.folds(self.net)

    def _of_one(self, folded: Any, tokens: Array) -> Array:
        """-log p of one sequence (T + 1,), by weights of `attention_only`."""
        return _surprise(attention_only.logits(self.net, folded, tokens[:-1]), tokens[1:], 0)


def _surprise(logits: Array, tokens: Array, axis: int) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens, axis=axis)


def next_token(task: Any, net: Transformer, batch: int) -> NextToken:
    """The next token of sequences of the task, by this network.

    Raises:
        icldyn.BadArgument: if the network is too short, knows too few tokens or is not causal, or the batch is below 1.
    """
    seen = task.k + getattr(task, "started", False)
    if min(net.k, net.outputs) < seen:
        raise checks.refuse("net", f"know the task's {seen} tokens", min(net.k, net.outputs))
    if net.T < task.T:
        raise checks.refuse("net", f"take the task's T = {task.T} positions", net.T)
    if not net.causal:
        raise checks.BadArgument("Argument `net` must be causal, but sees the tokens that it is to predict.")
    return NextToken(task, net=net, batch=checks.integer("batch", batch, 1))
