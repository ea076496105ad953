"""Full-batch training on pairs of tokens, every seed with a split of its own.

    cross-entropy   L = mean over training pairs of -log softmax(f(a, b))[answer]
    squared         L = mean over training pairs and the p outputs of (f(a, b) - one-hot(answer))^2, without 1/2

The params hold the split too, "order" (`icldyn.tasks.modular`), which no step changes: its gradient is 0. Weight decay would
change it: `icldyn.engine.optimisers.adamw` leaves it out.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from .. import checks
from ..models.modular_transformer import ModularTransformer
from ..models.quadratic_mlp import QuadraticMLP
from ..struct import static, struct
from ..tasks.modular import Modular, Pairs

Params = dict[str, Array]
ERRORS = ("cross-entropy", "squared")


@struct
class ModularPairs:
    """The loss, and what is read off the weights. Make one with `modular_pairs`."""

    task: Modular
    model: QuadraticMLP | ModularTransformer
    error: str = static()

    @property
    def batch(self) -> int:
        """Rows of a step: few seeds fit side by side."""
        return self.task.train * (2 if self.task.symmetric else 1)

    @property
    def in_turn(self) -> bool:
        """The pairs of one seed fill the caches of a core."""
        return True

    def start(self, key: Array, scale: Array) -> Params:
        """A split and the model's initial weights; the dtype is that of `scale`."""
        key_split, key_model = jax.random.split(key)
        return self.model.init(key_model, scale) | {"order": self.task.order(key_split, scale.dtype)}

    def loss(self, params: Params, key: Array | None = None) -> Array:
        """L; the key is ignored."""
        return self._loss(params, self._training(params))

    def test_loss(self, params: Params) -> Array:
        """L over the other pairs."""
        return self._loss(params, self._test(params))

    def train_accuracy(self, params: Params) -> Array:
        """Share of training pairs whose largest output is the answer."""
        return self._accuracy(params, self._training(params))

    def test_accuracy(self, params: Params) -> Array:
        """Share of the other pairs."""
        return self._accuracy(params, self._test(params))

    def logits(self, params: Params) -> Array:
        """f of all pairs, (p, p, p)."""
        pairs = self.task.all_pairs(params["order"].dtype)
        return self.model.apply(params, pairs.a, pairs.b).reshape((self.task.p,) * 3)

    def _training(self, params: Params) -> Pairs:
        return self.task.training(lax.stop_gradient(params["order"]))

    def _test(self, params: Params) -> Pairs:
        return self.task.test(lax.stop_gradient(params["order"]))

    def _loss(self, params: Params, pairs: Pairs) -> Array:
        f = self.model.apply(params, pairs.a, pairs.b)
        return pairs.weight @ errors(f, pairs.answer, self.error) / jnp.sum(pairs.weight)

    def _accuracy(self, params: Params, pairs: Pairs) -> Array:
        right = jnp.argmax(self.model.apply(params, pairs.a, pairs.b), axis=1).astype(jnp.int32) == pairs.answer
        return pairs.weight @ right.astype(pairs.weight.dtype) / jnp.sum(pairs.weight)


def errors(f: Array, answer: Array, error: str) -> Array:
    """The error of every row of outputs f (n, p), (n,).

    Cross-entropy as softplus(logsumexp over the wrong answers of f - f[answer]): small ones keep all their digits.
    """
    wanted = jax.nn.one_hot(answer, f.shape[1], dtype=f.dtype)
    if error == "squared":
        return jnp.mean((f - wanted) ** 2, axis=1)
    behind = f - jnp.sum(f * wanted, axis=1, keepdims=True)
    return jax.nn.softplus(jax.nn.logsumexp(jnp.where(wanted > 0, -jnp.inf, behind), axis=1))


def modular_pairs(
    task: Modular, model: QuadraticMLP | ModularTransformer, error: str = "cross-entropy"
) -> ModularPairs:
    """Training of a model on a task; its `start` is the `init` of an experiment.

    Args:
        task: `icldyn.modular`.
        model: anything of p tokens with `init(key, scale)` and `apply(params, a, b)`.
        error: "cross-entropy" or "squared".

    Raises:
        icldyn.BadArgument: if task and model differ in p.
    """
    if task.p != model.p:
        raise checks.refuse("model", f"have the task's p = {task.p}", model.p)
    return ModularPairs(task, model, error=checks.one_of("error", error, ERRORS))
