"""One layer of linear attention with full weight matrices, as in Mainali and Teixeira (2025).

    f(Z) = Z + W_P (Z Z^T / N) W_Q Z,    Z = [z_1 ... z_N z_q],   z_n = (x_n; y_n),   z_q = (x_q; 0)

W_P and W_Q are (D+O) x (D+O), and the answer yhat_q is the label slot of the query's column. Only four blocks reach it,

    W_P = [[., .], [p1, p2]],   W_Q = [[q1, .], [q2, .]],   yhat_q = [p1 p2] G [q1; q2] x_q,
    G = (1/N) sum_n z_n z_n^T  (+ z_q z_q^T / N when the query attends to itself);

the other blocks have zero gradient. The query's label slot is 0, so attending to itself adds x_q x_q^T / N to the xx block
of G and nothing else. The sum is divided by N, not N + 1, either way.

An initialiser is a function (key, scale) -> params, so that `scale` can be swept without compiling anew.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from numpy.typing import ArrayLike

from .. import checks
from ..struct import static, struct

Params = dict[str, Array]
Init = Callable[[Array, Array], Params]


@struct
class LinearAttention:
    """The model: input dimension D, output dimension O, and whether the query token attends to itself."""

    D: int = static()
    O: int = static()  # noqa: E741
    query_attends_itself: bool = static(default=True)

    def apply(self, params: Params, x: Array, y: Array, x_q: Array) -> Array:
        """yhat_q (B, O) for contexts x (B, N, D), y (B, N, O) and queries x_q (B, D), at O(N (D + O)) a prompt."""
        p1, p2, q1, q2 = self.blocks(params)
        u = jnp.einsum("ad,bd->ba", q1, x_q)
        k = jnp.einsum("od,bd->bo", q2, x_q)
        score = (jnp.einsum("bnd,bd->bn", x, u) + jnp.einsum("bno,bo->bn", y, k)) / x.shape[1]
        a = jnp.einsum("bn,bnd->bd", score, x)
        if self.query_attends_itself:
            a = a + x_q * jnp.einsum("bd,bd->b", x_q, u)[:, None] / x.shape[1]
        b = jnp.einsum("bn,bno->bo", score, y)
        return jnp.einsum("oa,ba->bo", p1, a) + jnp.einsum("oc,bc->bo", p2, b)

    def blocks(self, params: Params) -> tuple[Array, Array, Array, Array]:
        """p1 (O, D), p2 (O, O), q1 (D, D), q2 (O, D): the four blocks that reach the answer."""
        D, n = self.D, self.D + self.O
        for name in ("W_P", "W_Q"):
            if params[name].shape != (n, n):
                must = f"make `{name}` of shape ({n}, {n}) for this model"
                raise checks.BadArgument(f"Argument `init` must {must}, but makes shape {params[name].shape}.")
        P, Q = params["W_P"][D:, :], params["W_Q"][:, :D]
        return P[:, :D], P[:, D:], Q[:D], Q[D:]

    def forward(self, params: Params, Z: Array) -> Array:
        """f(Z) for one prompt, (D+O, N+1), every column computed: the definition, and the oracle of `apply`."""
        attended = Z if self.query_attends_itself else Z[:, :-1]
        return Z + params["W_P"] @ (attended @ attended.T / (Z.shape[1] - 1)) @ params["W_Q"] @ Z


def linear_attention(D: int, O: int | None = None, *, query_attends_itself: bool = True) -> LinearAttention:  # noqa: E741
    """The one-layer linear transformer on D inputs and O outputs (O = D, vector tasks, by default).

    Raises:
        icldyn.BadArgument: if D or O is below 1.
    """
    D = checks.integer("D", D, 1)
    return LinearAttention(D, D if O is None else checks.integer("O", O, 1), bool(query_attends_itself))


def from_blocks(p1: Array, p2: Array, q1: Array, q2: Array) -> Params:
    """Full weights with these four blocks, and zeros where nothing reaches the answer."""
    D, n = p1.shape[1], sum(p1.shape)
    W_P = jnp.zeros((n, n), p1.dtype).at[D:, :D].set(p1).at[D:, D:].set(p2)
    W_Q = jnp.zeros((n, n), p1.dtype).at[:D, :D].set(q1).at[D:, :D].set(q2)
    return {"W_P": W_P, "W_Q": W_Q}


def aligned(model: LinearAttention, U: ArrayLike | None = None, p: ArrayLike = 1.0, q: ArrayLike = 1.0) -> Init:
    """p2 = scale U diag(p) U^T and q1 = scale U diag(q) U^T, the rest 0: balanced when p = q.

    `U` (D, D) is the eigenbasis of Sigma (the identity by default); `p` and `q` are numbers or one number a mode.
    With scalar tasks (O = 1) p2 = scale p is a number.
    """
    D, O = model.D, model.O  # noqa: E741
    if O not in (1, D):
        raise checks.BadArgument(f"Argument `model` must have O = 1 or O = D = {D} for an aligned start, but O is {O}.")
    U = np.eye(D) if U is None else checks.array("U", U, shape=(D, D))
    V = U if O == D else np.eye(1)
    p = np.broadcast_to(checks.array("p", p), (O,)) if np.ndim(p) == 0 else checks.array("p", p, shape=(O,))
    q = np.broadcast_to(checks.array("q", q), (D,)) if np.ndim(q) == 0 else checks.array("q", q, shape=(D,))
    n = D + O
    W_P, W_Q = np.zeros((n, n)), np.zeros((n, n))
    W_P[D:, D:], W_Q[:D, :D] = (V * p) @ V.T, (U * q) @ U.T
    return given(model, W_P, W_Q)


def gaussian(model: LinearAttention, null_blocks: bool = True) -> Init:
    """Independent N(0, scale^2) weights: isotropic and unaligned.

    `null_blocks=False` starts the blocks p1 and q2 (and those that never reach the answer) at 0, as the aligned starts do.
    """
    D, n = model.D, model.D + model.O
    P, Q = np.ones((n, n)), np.ones((n, n))
    if not null_blocks:
        P[:D], P[:, :D], Q[D:], Q[:, D:] = 0, 0, 0, 0
    return Partial(_gaussian, P, Q)


def given(model: LinearAttention, W_P: ArrayLike, W_Q: ArrayLike) -> Init:
    """Any weights, (D+O, D+O) each, multiplied by scale; every seed starts from them."""
    n = model.D + model.O
    return Partial(_given, checks.array("W_P", W_P, shape=(n, n)), checks.array("W_Q", W_Q, shape=(n, n)))


def _gaussian(P: Array, Q: Array, key: Array, scale: Array) -> Params:
    key_P, key_Q = jax.random.split(key)
    return {
        "W_P": scale * P * jax.random.normal(key_P, P.shape, scale.dtype),
        "W_Q": scale * Q * jax.random.normal(key_Q, Q.shape, scale.dtype),
    }


def _given(P: Array, Q: Array, key: Array, scale: Array) -> Params:
    del key
    return {"W_P": scale * P, "W_Q": scale * Q}
