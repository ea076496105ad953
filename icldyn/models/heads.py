"""Linear attention with H heads on scalar tasks; every parametrisation folds into one tensor, and often into one matrix.

    yhat_q = sum_h p_h^T G Q_h x_q = sum_abk M_abk G_ab x_qk,    M_abk = sum_h p_ha Q_hbk,

with the context matrix G of `linear_attention`, p_h (D+1) the last row of head h's value matrix, and Q_h (D+1) x D the first D
columns of its key-query matrix: nothing else reaches the answer. The two parametrisations of Q_h:

- merged: Q_h itself is trained; H = 1 with zero blocks is the model of Zhang, Frei and Bartlett;
- separate: Q_h = K_h^T Q'_h, a key K_h (R, D+1) and a query Q'_h (R, D) of rank R.

With zero blocks p_h = v_h e_{D+1} and Q_h has no label row, so that yhat_q = h^T A x_q, h = (1/N) sum_n y_n x_n, with

    A = sum_h v_h U_h  (merged),    A = sum_h v_h K_h^T Q_h  (separate).

Gradient flow of the expected loss keeps these blocks at zero exactly; SGD keeps them so only in expectation.

An initialiser is a function (key, scale) -> params, as in `linear_attention`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from .. import checks
from ..struct import static, struct
from .linear_attention import Init, Params


@struct
class Heads:
    """The model. Make one with `merged` or `separate`.

    Weights are a dict: "v" (H,) with "U" (H, D, D), or with "K" and "Q" (H, R, D); with all blocks "v" is (H, D+1), "U"
    (H, D+1, D) and "K" (H, R, D+1), the label's entry last.
    """

    D: int = static()
    H: int = static()
    R: int | None = static(default=None)
    zero_blocks: bool = static(default=True)
    query_attends_itself: bool = static(default=True)

    @property
    def O(self) -> int:  # noqa: E743
        """Output dimension."""
        return 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights."""
        n = self.D if self.zero_blocks else self.D + 1
        value = {"v": (self.H,) if self.zero_blocks else (self.H, n)}
        if self.R is None:
            return value | {"U": (self.H, n, self.D)}
        return value | {"K": (self.H, self.R, n), "Q": (self.H, self.R, self.D)}

    def key_query(self, params: Params) -> Array:
        """Q_h of every head, (H, D, D) or (H, D+1, D)."""
        return params["U"] if self.R is None else jnp.einsum("hra,hrk->hak", params["K"], params["Q"])

    def matrix(self, params: Params) -> Array:
        """A (D, D), for zero blocks: yhat_q = h^T A x_q."""
        return jnp.einsum("h,hak->ak", params["v"], self.key_query(params))

    def tensor(self, params: Params) -> Array:
        """M (D+1, D+1, D): yhat_q = sum_abk M_abk G_ab x_qk."""
        D = self.D
        if self.zero_blocks:
            return jnp.zeros((D + 1, D + 1, D), params["v"].dtype).at[D, :D].set(self.matrix(params))
        return jnp.einsum("ha,hbk->abk", params["v"], self.key_query(params))

    def kernel(self, params: Params) -> Array:
        """(D, n): yhat_q = sum_k x_qk (kernel g)_k, g (n,) all that the answer takes from a context.

        With zero blocks g is h and the kernel A^T; else g holds the entries G_ab, a <= b, row by row.
        """
        if self.zero_blocks:
            return self.matrix(params).T
        return _folded(params["v"], self.key_query(params))

    def apply(self, params: Params, x: Array, y: Array, x_q: Array) -> Array:
        """yhat_q (B, 1) for contexts x (B, N, D), y (B, N, 1) and queries x_q (B, D)."""
        N, D = x.shape[1:]
        h = jnp.einsum("bn,bna->ba", y[:, :, 0], x) / N
        if self.zero_blocks:
            return jnp.einsum("ba,ak,bk->b", h, self.matrix(params), x_q)[:, None]
        C = jnp.einsum("bna,bnc->bac", x, x) / N
        if self.query_attends_itself:
            C = C + jnp.einsum("ba,bc->bac", x_q, x_q) / N
        c = jnp.einsum("bn,bn->b", y[:, :, 0], y[:, :, 0]) / N
        G = jnp.zeros((x.shape[0], D + 1, D + 1), x.dtype).at[:, :D, :D].set(C)
        G = G.at[:, :D, D].set(h).at[:, D, :D].set(h).at[:, D, D].set(c)
        return jnp.einsum("bac,ack,bk->b", G, self.tensor(params), x_q)[:, None]


def merged(D: int, H: int = 1, *, zero_blocks: bool = True, query_attends_itself: bool = True) -> Heads:
    """H heads whose key-query matrices are trained as such.

    Raises:
        icldyn.BadArgument: if D or H is below 1.
    """
    sizes = {"D": checks.integer("D", D, 1), "H": checks.integer("H", H, 1)}
    return Heads(**sizes, zero_blocks=bool(zero_blocks), query_attends_itself=bool(query_attends_itself))


def separate(D: int, H: int = 1, R: int = 1, *, zero_blocks: bool = True, query_attends_itself: bool = True) -> Heads:
    """H heads with keys and queries of rank R, trained apart.

    Raises:
        icldyn.BadArgument: if D, H or R is below 1, or R is above D.
    """
    sizes = {"D": checks.integer("D", D, 1), "H": checks.integer("H", H, 1), "R": checks.integer("R", R, 1, D)}
    return Heads(**sizes, zero_blocks=bool(zero_blocks), query_attends_itself=bool(query_attends_itself))


def gaussian(model: Heads) -> Init:
    """Independent weights N(0, scale^2 / n), n the number of entries of a head's vector or matrix.

    So `scale` is the root mean square of its norm, whatever its shape.
    """
    return Partial(_gaussian, {name: np.zeros(shape) for name, shape in model.shapes.items()})


def given(model: Heads, **weights: Array) -> Init:
    """These weights, multiplied by scale; every seed starts from them.

    Raises:
        icldyn.BadArgument: if one is missing, unknown or of another shape than `model.shapes` says.
    """
    if set(weights) != set(model.shapes):
        wanted = ", ".join(model.shapes)
        raise checks.BadArgument(f"Argument `weights` must be {wanted}, but is {', '.join(sorted(weights))}.")
    return Partial(_given, {n: checks.array(n, weights[n], shape=shape) for n, shape in model.shapes.items()})


def conserved(params: Params) -> dict[str, Array]:
    """What gradient flow conserves head by head, (H,) or (H, R, R):

    merged: |v_h|^2 - |U_h|^2; separate: |v_h|^2 - |K_h|^2 and, where label rows of keys are left out, K_h K_h^T - Q_h Q_h^T.
    """
    v2 = jnp.sum(params["v"].reshape(params["v"].shape[0], -1) ** 2, axis=1)
    if "U" in params:
        return {"value_key_query": v2 - jnp.sum(params["U"] ** 2, axis=(1, 2))}
    gram = {name: jnp.einsum("hra,hsa->hrs", params[name], params[name]) for name in ("K", "Q")}
    return {"value_key": v2 - jnp.einsum("hrr->h", gram["K"]), "key_query": gram["K"] - gram["Q"]}


def fold(M: Array) -> Array:
    """(D, n): M_abk + M_bak for a < b, M_aak for a = b, the pairs row by row; G is symmetric."""
    both = (M + M.swapaxes(0, 1)).transpose(2, 0, 1)
    rows = [part for a in range(M.shape[0]) for part in (both[:, a, a : a + 1] / 2, both[:, a, a + 1 :])]
    return jnp.concatenate(rows, axis=1)


def pair_number(n: int) -> np.ndarray:
    """(n, n): the place of a pair {a, b} among all a <= b, row by row."""
    place = np.zeros((n, n), int)
    a, b = np.triu_indices(n)
    place[a, b] = place[b, a] = np.arange(a.size)
    return place


@jax.custom_vjp
def _folded(v: Array, U: Array) -> Array:
    """`fold` of sum_h v_h (x) U_h; its gradient unfolds by index, where jax would add up one padded slice a pair."""
    return fold(jnp.einsum("ha,hbk->abk", v, U))


def _folded_forward(v: Array, U: Array) -> tuple[Array, tuple[Array, Array]]:
    return _folded(v, U), (v, U)


def _folded_backward(held: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    v, U = held
    G = g[:, pair_number(v.shape[1])]  # (D, n, n)
    return jnp.einsum("kab,hbk->ha", G, U), jnp.einsum("kab,ha->hbk", G, v)


_folded.defvjp(_folded_forward, _folded_backward)


def _gaussian(like: Params, key: Array, scale: Array) -> Params:
    keys = jax.random.split(key, len(like))
    return {
        name: scale / np.sqrt(max(a[0].size, 1)).astype(scale.dtype) * jax.random.normal(k, a.shape, scale.dtype)
        for k, (name, a) in zip(keys, sorted(like.items()), strict=True)
    }


def _given(weights: Params, key: Array, scale: Array) -> Params:
    del key
    return {name: scale * w for name, w in weights.items()}
