"""Looped linear attention on scalar tasks: one layer applied L times, after Bordelon, Letey and Pehlevan (2025).

Every token carries an estimate of its label error, r_mu = y_mu at the start for the P pairs, and the query carries the answer f,

    r_mu <- r_mu - (1/(L P)) sum_nu x_mu^T Gamma x_nu r_nu,    f <- f + (1/(L P)) sum_nu x_q^T Gamma x_nu r_nu,

L times, with Gamma = (w_o^T W_v w_y) W_x^T W_k^T W_q W_x the one matrix to which the weights reduce. That is

    f = x_q^T what_L,    what_L = (1/L) sum_{l<L} (I - Gamma C / L)^l Gamma h,    C = (1/P) X^T X,    h = (1/P) X^T y.

Trained is "w": Gamma = w^power I ("scalar"; power 5 stands for the five matrices of the reduction), Gamma = diag(w) or Gamma = w.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from numpy.typing import ArrayLike

from .. import checks
from ..struct import static, struct
from .linear_attention import Init, Params

KINDS = ("scalar", "diagonal", "matrix")


@struct
class LoopedAttention:
    """The model. Make one with `looped`. Weights are {"w": () or (D,) or (D, D)}."""

    D: int = static()
    L: int = static()
    kind: str = static(default="scalar")
    power: ArrayLike = 1.0

    @property
    def O(self) -> int:  # noqa: E743
        """Output dimension."""
        return 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights."""
        return {"scalar": (), "diagonal": (self.D,), "matrix": (self.D, self.D)}[self.kind]

    def precondition(self, params: Params, v: Array) -> Array:
        """Gamma v for columns v (D, B)."""
        w = params["w"]
        if w.shape != self.shape:
            raise checks.BadArgument(f"Argument `init` must make `w` of shape {self.shape}, but makes shape {w.shape}.")
        if self.kind == "matrix":
            return w @ v
        return (w**self.power if self.kind == "scalar" else w[:, None]) * v

    def apply(self, params: Params, x: Array, y: Array, x_q: Array) -> Array:
        """f (B, 1) for contexts x (B, P, D), y (B, P, 1) and queries x_q (B, D), token by token at O(L P D) a prompt."""
        P, r, f = x.shape[1], y[:, :, 0], jnp.zeros(x_q.shape[:1], x.dtype)
        for _ in range(self.L):
            step = self.precondition(params, jnp.einsum("bpd,bp->db", x, r)) / (self.L * P)  # (D, B)
            r, f = r - jnp.einsum("bpd,db->bp", x, step), f + jnp.einsum("bd,db->b", x_q, step)
        return f[:, None]


def looped(D: int, L: int, kind: str = "scalar", power: int = 1) -> LoopedAttention:
    """Looped attention of depth L on D inputs; `power` belongs to the scalar kind.

    Raises:
        icldyn.BadArgument: for sizes below 1, an unknown kind, or a power of weights that are not a scalar.
    """
    kind, power = checks.one_of("kind", kind, KINDS), checks.integer("power", power, 1)
    if kind != "scalar" and power != 1:
        raise checks.refuse("power", f"be 1 for kind {kind!r}", power)
    return LoopedAttention(checks.integer("D", D, 1), checks.integer("L", L, 1), kind, np.float64(power))


def constant(model: LoopedAttention, w: ArrayLike = 0.0) -> Init:
    """w as given, of the model's shape, or a number that stands for w, w (1, ..., 1) or w I; times scale, in every seed."""
    w = checks.array("w", w)
    if w.ndim == 0:
        w = w * (np.eye(model.D) if model.kind == "matrix" else np.ones(model.shape))
    return Partial(_constant, checks.array("w", w, shape=model.shape))


def _constant(w: Array, key: Array, scale: Array) -> Params:
    del key
    return {"w": scale * w}
