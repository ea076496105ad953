"""A network of one hidden layer with squared units, on pairs of tokens (Gromov 2023, arXiv 2301.02679).

f(a, b) = (A[a] + B[b])^2 W,    A, B (p, N), W (N, p); no biases and no prefactors.
"""

import jax
from jax import Array

from .. import checks
from ..struct import static, struct

Params = dict[str, Array]


@struct
class QuadraticMLP:
    """The network. Make one with `quadratic_mlp`."""

    p: int = static()
    N: int = static()

    def init(self, key: Array, scale: Array) -> Params:
        """All entries N(0, s^2), s = scale / (2 (2N)^(1/3)), as in Doshi et al. 2023; the dtype is that of `scale`."""
        shapes = {"A": (self.p, self.N), "B": (self.p, self.N), "W": (self.N, self.p)}
        keys = jax.random.split(key, len(shapes))
        std = scale * 0.5 / (2 * self.N) ** (1 / 3)
        return {
            name: std * jax.random.normal(k, shape, scale.dtype)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def neurons(self, params: Params, a: Array, b: Array) -> Array:
        """(A[a] + B[b])^2, (n, N)."""
        return (params["A"][a] + params["B"][b]) ** 2

    def apply(self, params: Params, a: Array, b: Array) -> Array:
        """Answers (n, p) to pairs a, b (n,) of tokens."""
        return self.neurons(params, a, b) @ params["W"]


def quadratic_mlp(p: int, N: int) -> QuadraticMLP:
    """Of p tokens and N neurons.

    Raises:
        icldyn.BadArgument: if p is below 2 or N below 1.
    """
    return QuadraticMLP(p=checks.integer("p", p, 2), N=checks.integer("N", N, 1))
