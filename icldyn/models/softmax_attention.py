"""One layer of softmax attention with H heads, read at the query.

    yhat_q = sum_h sum_m a_hm P_h z_m,    a_h = softmax_m(z_m^T Q_h x_q),

over the tokens z_m = (x_m, y_m) of the context and, if the query attends to itself, z_q = (x_q, 0). P_h (O x n, n = D + O) are
the last O rows of head h's value matrix and Q_h (n x D) the first D columns of its key-query matrix, as in `heads`: nothing
else reaches the answer, for the query's labels are 0. The softmax is the only normalisation: no division by N.

- merged: Q_h itself is trained;
- separate: Q_h = scale K_h^T Q'_h, a key K_h (R, n) and a query Q'_h (R, D); `scale` is 1, or 1 / n^(1/2) in much code;
- with values and output apart, P_h = O_h V_h, a value V_h (n, n) and an output O_h (O, n).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from .. import checks
from ..struct import static, struct
from .heads import _given
from .linear_attention import Init, Params


@struct
class SoftmaxAttention:
    """The model. Make one with `softmax_attention`.

    Weights are a dict, as those of `Heads` with all blocks: "v" (H, n) for one label, else (H, O, n), or "V" (H, n, n) and "O"
    (H, O, n); with "U" (H, n, D) or with "K" (H, R, n) and "Q" (H, R, D). The entries of labels come last.
    """

    D: int = static()
    H: int = static()
    R: int | None = static(default=None)
    query_attends_itself: bool = static(default=True)
    O: int = static(default=1)  # noqa: E741
    scale: float = static(default=1.0)
    values_apart: bool = static(default=False)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights."""
        H, n = self.H, self.D + self.O
        value: dict[str, tuple[int, ...]] = {"v": (H, n) if self.O == 1 else (H, self.O, n)}
        if self.values_apart:
            value = {"V": (H, n, n), "O": (H, self.O, n)}
        if self.R is None:
            return value | {"U": (H, n, self.D)}
        return value | {"K": (H, self.R, n), "Q": (H, self.R, self.D)}

    def key_query(self, params: Params) -> Array:
        """Q_h of every head, (H, n, D)."""
        if self.R is None:
            return params["U"]
        return self.scale * jnp.einsum("hra,hrk->hak", params["K"], params["Q"])

    def value(self, params: Params) -> Array:
        """P_h of every head, (H, O, n)."""
        if self.values_apart:
            return jnp.einsum("hor,hra->hoa", params["O"], params["V"])
        return params["v"].reshape(self.H, self.O, self.D + self.O)

    def apply(self, params: Params, x: Array, y: Array, x_q: Array) -> Array:
        """yhat_q (B, O) for contexts x (B, N, D), y (B, N, O) and queries x_q (B, D)."""
        z = jnp.concatenate([x, y], axis=2)
        if self.query_attends_itself:
            z_q = jnp.concatenate([x_q, jnp.zeros_like(y[:, 0])], axis=1)
            z = jnp.concatenate([z, z_q[:, None]], axis=1)
        u = jnp.einsum("hak,bk->bha", self.key_query(params), x_q)
        a = jax.nn.softmax(jnp.einsum("bna,bha->bhn", z, u), axis=2)
        seen = jnp.einsum("bhn,bna->bha", a, z)
        return jnp.einsum("hoa,bha->bo", self.value(params), seen)


def softmax_attention(
    D: int,
    H: int = 1,
    R: int | None = None,
    *,
    query_attends_itself: bool = True,
    O: int = 1,  # noqa: E741
    scale: float = 1.0,
    values_apart: bool = False,
) -> SoftmaxAttention:
    """H heads with merged key-query matrices, or with keys and queries of rank R.

    Args:
        D: input dimension.
        H: heads.
        R: rank of keys and queries; None trains their product.
        query_attends_itself: whether the query is one of its keys.
        O: labels of an input.
        scale: of the logits, with keys and queries apart (a merged matrix has it in itself).
        values_apart: whether values V_h and outputs O_h are trained instead of their product.

    Raises:
        icldyn.BadArgument: if D, H, R or O is below 1, or the scale is not positive, or not 1 for merged matrices.
    """
    sizes = {"D": checks.integer("D", D, 1), "H": checks.integer("H", H, 1), "O": checks.integer("O", O, 1)}
    rank, scale = None if R is None else checks.integer("R", R, 1), checks.real("scale", scale, above=0)
    if rank is None and scale != 1:
        raise checks.refuse("scale", "be 1 for merged key-query matrices", scale)
    return SoftmaxAttention(
        **sizes, R=rank, query_attends_itself=bool(query_attends_itself), scale=scale, values_apart=bool(values_apart)
    )


def uniform(model: SoftmaxAttention) -> Init:
    """Independent weights, uniform within scale / n^(1/2): at scale 1 the default of PyTorch's layers of n inputs."""
    bound = (model.D + model.O) ** -0.5
    return Partial(_uniform, {name: np.full(shape, bound) for name, shape in model.shapes.items()})


def manifold(model: SoftmaxAttention, blocks: tuple[tuple[int, ...], ...], omega: Array, mu: Array) -> Init:
    """Merged weights Q_h = scale (sum_i omega_hi 1_{J_i}), P_h = scale (mu_hi on the labels), omega and mu (H, I); all else 0.

    With R keys and queries, and values apart, entries omega_hi and mu_hi of *each* factor, so that they start balanced.
    """
    return Partial(_given, manifold_weights(model, blocks, omega, mu))


def random_manifold(model: SoftmaxAttention, blocks: tuple[tuple[int, ...], ...]) -> Init:
    """Merged weights as of `manifold`, with omega_hi ~ N(0, scale^2 / d_i) and mu_hi ~ N(0, scale^2)."""
    size = np.array([len(block) ** -0.5 for block in blocks])
    one = manifold_weights(model, blocks, np.tile(size, (model.H, 1)), np.ones((model.H, model.O)))
    return Partial(_drawn, one, _indicator(model.D, blocks))


def manifold_weights(model: SoftmaxAttention, blocks, omega: Array, mu: Array) -> dict[str, np.ndarray]:
    """Weights of `manifold`."""
    D, O, H = model.D, model.O, model.H  # noqa: E741
    omega, mu = checks.array("omega", omega, shape=(H, O)), checks.array("mu", mu, shape=(H, O))
    diagonal = np.einsum("hi,ia,ak->hak", omega, _indicator(D, blocks), np.eye(D))
    label = np.einsum("hi,ij->hij", mu, np.eye(O))
    padded = {"key": np.pad(diagonal, ((0, 0), (0, O), (0, 0))), "value": np.pad(label, ((0, 0), (0, 0), (D, 0)))}
    if model.R is None:
        held = {"U": padded["key"]}
    else:
        held = {"K": np.zeros(model.shapes["K"]), "Q": np.zeros(model.shapes["Q"])}
        held["K"][:, :D, :D], held["Q"][:, :D] = diagonal, diagonal
    if not model.values_apart:
        return held | {"v": padded["value"].reshape(model.shapes["v"])}
    V = np.zeros(model.shapes["V"])
    V[:, D:, D:] = label
    return held | {"V": V, "O": padded["value"]}


def _indicator(D: int, blocks: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """(I, D): 1 where a block holds a coordinate."""
    return np.array([[a in block for a in range(D)] for block in blocks], float)


def _uniform(bounds: Params, key: Array, scale: Array) -> Params:
    keys = jax.random.split(key, len(bounds))
    return {
        name: scale * b * jax.random.uniform(k, b.shape, scale.dtype, -1, 1)
        for k, (name, b) in zip(keys, sorted(bounds.items()), strict=True)
    }


def _drawn(weights: Params, where: Array, key: Array, scale: Array) -> Params:
    H = weights["U"].shape[0]
    a, b = scale * jax.random.normal(key, (2, H, where.shape[0]), scale.dtype)
    value = weights["v"].reshape(H, where.shape[0], -1) * b[:, :, None]
    return {"U": weights["U"] * (a @ where)[:, None], "v": value.reshape(weights["v"].shape)}
