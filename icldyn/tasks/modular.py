"""Modular arithmetic: pairs (a, b) of p tokens and their answer a o b mod p, some pairs for training and the others for test.

A *unit* of the split is an ordered pair, or, by default, an unordered pair {a <= b}: its mirror (b, a) goes where it goes. A
split over ordered pairs leaks for a commutative operation: most test pairs then have their mirror in training, and a network
learns the symmetry long before the rule.

A split is an order of all units, a permutation drawn from a key, of which the first floor(fraction x units) train. An array of
it has a static size; pairs come in rows, first the units and then their mirrors, and a mirror that is its own unit (a = b) has
weight 0. Sums over rows with these weights are sums over pairs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .. import checks
from ..struct import static, struct

LARGEST = 1024  # tokens: an order of their pairs is still exact in float32
OPERATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "a^2+b^2": lambda a, b: a**2 + b**2,
    "a^2+ab+b^2": lambda a, b: a**2 + a * b + b**2,
    "a^3+ab": lambda a, b: a**3 + a * b,
}


class Pairs(NamedTuple):
    """Rows (n,) of pairs: tokens `a` and `b`, their answer, and the weight 1 or 0 of a row."""

    a: Array
    b: Array
    answer: Array
    weight: Array


@struct
class Modular:
    """The task. Make one with `modular`."""

    table: ArrayLike  # (p, p) answers, 0 ... p - 1
    p: int = static()
    train: int = static()  # units that train
    symmetric: bool = static()

    @property
    def units(self) -> int:
        """p (p + 1) / 2 unordered pairs, or p^2 ordered ones."""
        return self.p * (self.p + 1) // 2 if self.symmetric else self.p**2

    def order(self, key: Array, dtype: jnp.dtype) -> Array:
        """A split (units,): a permutation of the units as numbers of `dtype`."""
        return jax.random.permutation(key, self.units).astype(dtype)

    def training(self, order: Array) -> Pairs:
        """The pairs that train, in rows."""
        return self._pairs(order[: self.train], order.dtype)

    def test(self, order: Array) -> Pairs:
        """All other pairs."""
        return self._pairs(order[self.train :], order.dtype)

    def all_pairs(self, dtype: jnp.dtype) -> Pairs:
        """All p^2 ordered pairs, a p + b in order."""
        a, b = (jnp.asarray(c.ravel(), jnp.int32) for c in np.indices((self.p, self.p)))
        return Pairs(a, b, jnp.asarray(self.table, jnp.int32).ravel(), jnp.ones(a.shape, dtype))

    def _pairs(self, units: Array, dtype: jnp.dtype) -> Pairs:
        unit = units.astype(jnp.int32)
        if self.symmetric:
            upper = np.triu_indices(self.p)
            a, b = (jnp.asarray(c, jnp.int32)[unit] for c in upper)
            weight = jnp.concatenate([jnp.ones(unit.shape, dtype), (a != b).astype(dtype)])
            a, b = jnp.concatenate([a, b]), jnp.concatenate([b, a])
        else:
            a, b, weight = unit // self.p, unit % self.p, jnp.ones(unit.shape, dtype)
        return Pairs(a, b, jnp.asarray(self.table, jnp.int32)[a, b], weight)


def modular(
    p: int, *, operation: str | ArrayLike | Callable = "+", fraction: float = 0.5, split: str = "unordered"
) -> Modular:
    """Pairs of p tokens and their answers.

    Args:
        p: tokens, and possible answers; it need not be prime.
        operation: one of `OPERATIONS`, taken mod p; a function of two integer arrays, taken mod p; or a table (p, p).
        fraction: of the units that train, rounded down.
        split: "unordered" keeps (a, b) and (b, a) together, "ordered" does not.

    Raises:
        icldyn.BadArgument: if the table does not hold p x p answers 0 ... p - 1, or the split leaves no pair to train on.
    """
    p = checks.integer("p", p, 2, LARGEST)
    symmetric = checks.one_of("split", split, ("ordered", "unordered")) == "unordered"
    units = p * (p + 1) // 2 if symmetric else p**2
    train = int(checks.real("fraction", fraction, above=0, most=1) * units)
    if not train:
        raise checks.refuse("fraction", f"leave a pair to train on, of {units}", fraction)
    return Modular(_table(p, operation), p=p, train=train, symmetric=symmetric)


def _table(p: int, operation: str | ArrayLike | Callable) -> np.ndarray:
    if isinstance(operation, str):
        operation = OPERATIONS[checks.one_of("operation", operation, OPERATIONS)]
    if callable(operation):
        operation = np.mod(operation(*np.indices((p, p))), p)
    table = checks.array("operation", operation, shape=(p, p))
    if (table != np.floor(table)).any() or table.min() < 0 or table.max() >= p:
        raise checks.refuse("operation", f"hold whole answers from 0 to {p - 1}", operation)
    return table.astype(np.int32)
