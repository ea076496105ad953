"""Linear probes: what a linear read-out of activations x (n, d) knows of a label.

`train` (n,) holds 1 for rows that fit the probe, and 0 for those it is tested on: shapes do not depend on the split, so that
probes vectorise over layers, records and seeds. Activations and labels are centred on the training rows: the probe has an
intercept without penalty. `linear` solves by LAPACK: use it on records, after training.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from .. import checks


class Scores(NamedTuple):
    """A score on the rows that fitted the probe, and on all others."""

    train: Array
    test: Array


def linear(x: Array, y: Array, train: Array, penalty: float = 1e-6) -> Scores:
    """R^2 of every output of y (n, O) under ridge regression, 1 - sum (y - yhat)^2 / sum (y - mean)^2: (O,) each.

    The penalty is a multiple of the mean squared activation. Outputs that do not vary have R^2 = -inf or NaN.
    """
    yhat = _ridge(x, y, train, penalty)

    def score(rows: Array) -> Array:
        mean = rows @ y / jnp.sum(rows)
        return 1 - rows @ (y - yhat) ** 2 / (rows @ (y - mean[None]) ** 2)

    return Scores(score(train), score(1 - train))


def linear_classes(x: Array, label: Array, train: Array, classes: int, penalty: float = 1e-6) -> Scores:
    """Accuracy of the largest output of ridge regression to one-hot labels (n,), of 0 ... classes - 1."""
    yhat = _ridge(x, jax.nn.one_hot(label, classes, dtype=x.dtype), train, penalty)
    return _accuracies(yhat, label, train)


def logistic(x: Array, label: Array, train: Array, classes: int, penalty: float = 1e-3, num_steps: int = 100) -> Scores:
    """Accuracy of softmax regression, mean cross-entropy + (penalty / 2) ||W||^2, by steps of L-BFGS.

    Activations are scaled to a mean square of 1 first, all by the same number.

    Raises:
        icldyn.BadArgument: if there are fewer than 2 classes or no step.
    """
    checks.integer("classes", classes, 2), checks.integer("num_steps", num_steps, 1)
    x, _ = _centred(x, train)
    x = x / jnp.sqrt(_mean_square(x, train))
    wanted, solver = jax.nn.one_hot(label, classes, dtype=x.dtype), optax.lbfgs()

    def loss(w: tuple[Array, Array]) -> Array:
        f = x @ w[0] + w[1][None]
        errors = jax.nn.logsumexp(f, axis=1) - jnp.sum(f * wanted, axis=1)
        return train @ errors / jnp.sum(train) + penalty / 2 * jnp.sum(w[0] ** 2)

    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(_, carry):
        w, state = carry
        value, grad = value_and_grad(w, state=state)
        update, state = solver.update(grad, state, w, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(w, update), state

    start = (jnp.zeros((x.shape[1], classes), x.dtype), jnp.zeros(classes, x.dtype))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes its own counters
        (W, b), _ = lax.fori_loop(0, num_steps, step, (start, solver.init(start)))
    return _accuracies(x @ W + b[None], label, train)


def _ridge(x: Array, y: Array, train: Array, penalty: float) -> Array:
    """yhat (n, O) of all rows."""
    (x, _), (y, mean) = _centred(x, train), _centred(y, train)
    gram = (x.T * train[None]) @ x
    strength = penalty * _mean_square(x, train) * jnp.sum(train)
    W = jnp.linalg.solve(gram + strength * jnp.eye(len(gram), dtype=x.dtype), (x.T * train[None]) @ y)
    return x @ W + mean[None]


def _centred(x: Array, train: Array) -> tuple[Array, Array]:
    mean = train @ x / jnp.sum(train)
    return x - mean[None], mean


def _mean_square(x: Array, train: Array) -> Array:
    return jnp.sum(train @ x**2) / (jnp.sum(train) * x.shape[1])


def _accuracies(f: Array, label: Array, train: Array) -> Scores:
    right = (jnp.argmax(f, axis=1) == label).astype(f.dtype)
    return Scores(train @ right / jnp.sum(train), (1 - train) @ right / jnp.sum(1 - train))
