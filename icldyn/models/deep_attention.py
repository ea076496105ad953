"""Linear attention of L layers with a residual stream: the model of von Oswald et al. (2212.07677) and Ahn et al. (2306.00297).

    z_j <- z_j + P_l (1/N) sum_n z_n z_n^T Q_l z_j,    z_n = (x_n; y_n),   z_q = (x_q; 0),

for context and query alike; the query is masked as key, and the answer is minus its label slot after L layers (both papers). So
every token is multiplied by the same matrix M_l = I + P_l G_l Q_l, G_l = (1/N) sum_n z_n z_n^T, and the answer is linear in the
query, yhat = W_hat x_q, with weights read off the context alone: -(0; I)^T M_{L-1} ... M_0. `weights` returns them.

- Full form (von Oswald): P_l and Q_l any (D+O) x (D+O) matrices; one pair for all layers if `looped`.
- Sparse form (Ahn): P_l = [[B_l, 0], [0, I]], Q_l = [[-A_l, 0], [0, 0]], that is, with C_l = (1/N) sum_n x_n x_n^T,
  h_l = (1/N) sum_n x_n y_n^T,   x <- (I - B_l C_l A_l) x,   y <- y - h_l^T A_l x: a step of gradient descent preconditioned
  by A_l, after which the inputs are transformed. In the last layer B has no effect.

An initialiser is a function (key, scale) -> params. Arrays inside have the prompts in the last axis, where the vector lanes are.
"""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from numpy.typing import ArrayLike

from .. import checks
from ..struct import static, struct
from .linear_attention import Init, Params


@struct
class DeepAttention:
    """The model: D inputs, O outputs, L layers, sparse or full. Make one with `full` or `sparse`."""

    D: int = static()
    O: int = static()  # noqa: E741
    L: int = static()
    is_sparse: bool = static()
    looped: bool = static()

    @property
    def distinct(self) -> int:
        """Layers with weights of their own."""
        return 1 if self.looped else self.L

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Names and shapes of the params."""
        n = self.D if self.is_sparse else self.D + self.O
        return {name: (self.distinct, n, n) for name in (("A", "B") if self.is_sparse else ("P", "Q"))}

    def apply(self, params: Params, x: Array, y: Array, x_q: Array) -> Array:
        """yhat_q (B, O) for contexts x (B, N, D), y (B, N, O) and queries x_q (B, D)."""
        W_hat = self.weights(params, jnp.moveaxis(x, 0, -1), jnp.moveaxis(y, 0, -1))
        return jnp.einsum("odb,bd->bo", W_hat, x_q)

    def weights(self, params: Params, x: Array, y: Array) -> Array:
        """W_hat (O, D, B) with yhat = W_hat x_q, for contexts x (N, D, B), y (N, O, B): prompts last."""
        return self._sparse_weights(params, x, y) if self.is_sparse else self._full_weights(params, x, y)

    def _sparse_weights(self, params: Params, x: Array, y: Array) -> Array:
        """sum_l h_l^T A_l M_{l-1} ... M_0, with M = I - B C A, h <- M (h - C A^T h), C <- M C M^T (x-blocks, D x D)."""
        A, B = (self._layers(params[name]) for name in "AB")
        C, h = _pair(x, x) / x.shape[0], _pair(x, y) / x.shape[0]
        eye, Ms, hs = jnp.eye(self.D, dtype=C.dtype)[..., None], [], [h]
        for layer in range(self.L - 1):
            M = eye - _mix(B[layer], _T(_mix(A[layer].T, C)))
            h = _pair(_T(M), h - _pair(_mix(A[layer], C), h))
            Ms, hs = [*Ms, M], [*hs, h]
            if layer < self.L - 2:  # the last layer needs h alone
                C = _pair(_T(_pair(_T(M), C)), _T(M))
        W_hat = _T(_mix(A[-1].T, hs[-1]))
        for layer in reversed(range(self.L - 1)):
            W_hat = _T(_mix(A[layer].T, hs[layer])) + _pair(_T(W_hat), Ms[layer])
        return W_hat

    def _full_weights(self, params: Params, x: Array, y: Array) -> Array:
        """v^T M_{L-1} ... M_0 from v = -(0; I), back to front; tokens are carried to the last layer but one, not further."""
        P, Q = (self._layers(params[name]) for name in "PQ")
        Z = [_T(jnp.concatenate([x, y], axis=1))]  # (D+O, N, B)
        for layer in range(self.L - 2):
            Z.append(_forward(P[layer], Q[layer], Z[layer], Z[layer]))
        n, B = self.D + self.O, x.shape[-1]
        v = jnp.broadcast_to(-jnp.eye(n, dtype=x.dtype)[:, self.D :, None], (n, self.O, B))
        u = _mix(P[-1].T, v)
        if self.L == 1:
            u = _gram(Z[0], u)
        else:  # G_{L-1} = M G M^T of the layer before
            u = _gram(Z[-1], _backward(P[self.L - 2], Q[self.L - 2], Z[-1], u))
            u = _forward(P[self.L - 2], Q[self.L - 2], Z[-1], u)
        v = v + _mix(Q[-1].T, u)
        for layer in reversed(range(self.L - 1)):
            v = _backward(P[layer], Q[layer], Z[layer], v)
        return _T(v[: self.D])

    def _layers(self, w: Array) -> list[Array]:
        return [w[0 if self.looped else layer] for layer in range(self.L)]

    def matrices(self, params: Params) -> list[tuple[Array, Array]]:
        """(P_l, Q_l) of every layer, (D+O, D+O) each, in either form."""
        first, second = (self._layers(params[name]) for name in self.shapes())
        if not self.is_sparse:
            return list(zip(first, second, strict=True))
        n, D = self.D + self.O, self.D
        P = [jnp.eye(n, dtype=B.dtype).at[:D, :D].set(B) for B in second]
        return list(zip(P, [jnp.zeros((n, n), A.dtype).at[:D, :D].set(-A) for A in first], strict=True))

    def forward(self, params: Params, Z: Array) -> Array:
        """Z (D+O, N+1) of one prompt, query last, after L layers, every column computed: the definition and the oracle."""
        for P, Q in self.matrices(params):
            Z = Z + P @ (Z[:, :-1] @ Z[:, :-1].T / (Z.shape[1] - 1)) @ Q @ Z
        return Z


def full(D: int, L: int, O: int = 1, *, looped: bool = False) -> DeepAttention:  # noqa: E741
    """L layers with full matrices, params {"P", "Q"} (L or 1, D+O, D+O).

    Raises:
        icldyn.BadArgument: if D, L or O is below 1.
    """
    return _checked(D, L, O, False, looped)


def sparse(D: int, L: int, O: int = 1, *, looped: bool = False) -> DeepAttention:  # noqa: E741
    """L layers in Ahn's form, params {"A", "B"} (L or 1, D, D): `A` positive descends (their Q is -A, their P is B).

    Raises:
        icldyn.BadArgument: if D, L or O is below 1.
    """
    return _checked(D, L, O, True, looped)


def _checked(D: int, L: int, O: int, is_sparse: bool, looped: bool) -> DeepAttention:  # noqa: E741
    D, L, O = (checks.integer(n, v, 1) for n, v in (("D", D), ("L", L), ("O", O)))  # noqa: E741
    return DeepAttention(D, O, L, is_sparse, bool(looped))


def gaussian(model: DeepAttention) -> Init:
    """Independent N(0, scale^2) entries in every matrix."""
    return Partial(_gaussian, model)


def given(model: DeepAttention, **params: ArrayLike) -> Init:
    """These params, multiplied by scale; every seed starts from them.

    Raises:
        icldyn.BadArgument: if an array is missing or has another shape.
    """
    shapes = model.shapes()
    checks.gather(*(lambda n=n, s=s: checks.array(n, params.get(n, np.nan), shape=s) for n, s in shapes.items()))
    return Partial(_given, {n: checks.array(n, params[n]) for n in shapes})


def gradient_descent(
    model: DeepAttention, eta: ArrayLike, gamma: ArrayLike = 0.0, preconditioner: ArrayLike | None = None
) -> Init:
    """von Oswald's construction: layer l is w <- w + eta_l S (1/N) sum_n (y_n - w x_n) x_n, then x <- (I - gamma_l C S) x.

    gamma = 0 is gradient descent from w = 0, gamma > 0 is GD++ (their gamma is ours / N). `S` is the preconditioner, the
    identity by default; `eta` and `gamma` are numbers or one number a layer.

    Raises:
        icldyn.BadArgument: if an array has another shape.
    """
    k, D, n = model.distinct, model.D, model.D + model.O
    eta, gamma = (np.broadcast_to(v, k) for v in (_per_layer("eta", eta, k), _per_layer("gamma", gamma, k)))
    S = np.eye(D) if preconditioner is None else checks.array("preconditioner", preconditioner, shape=(D, D))
    eye = np.broadcast_to(np.eye(D), (k, D, D))
    if model.is_sparse:
        safe = np.where(eta == 0, 1.0, eta)  # a layer without a step cannot transform either: B C A = 0
        return given(model, A=eta[:, None, None] * S, B=(gamma / safe)[:, None, None] * eye)
    P, Q = np.zeros((2, k, n, n))
    P[:, :D, :D], Q[:, :D, :D] = -gamma[:, None, None] * eye, S
    P[:, D:, D:] = -eta[:, None, None] * np.eye(model.O)
    return given(model, P=P, Q=Q)


def _per_layer(name: str, value: ArrayLike, k: int) -> np.ndarray:
    return checks.array(name, value) if np.ndim(value) == 0 else checks.array(name, value, shape=(k,))


def _gaussian(model: DeepAttention, key: Array, scale: Array) -> Params:
    shapes = model.shapes()
    keys = jax.random.split(key, len(shapes))
    return {n: scale * jax.random.normal(k, s, scale.dtype) for k, (n, s) in zip(keys, shapes.items(), strict=True)}


def _given(params: Params, key: Array, scale: Array) -> Params:
    del key
    return {name: scale * w for name, w in params.items()}


class ContextTask(Protocol):
    """What `Averaged` needs of a task: contexts with their tasks, prompts last, and the covariance of the query."""

    D: int
    O: int  # noqa: E741

    def contexts(self, key: Array, B: int) -> tuple[Array, Array, Array]:
        """x (N, D, B), y (N, O, B), W (O, D, B)."""
        ...

    def query_covariance(self) -> Array:
        """Sigma (D, D)."""
        ...


@struct
class Averaged:
    """The loss of `batch` contexts, averaged over their queries exactly: 1/2 mean tr (W - W_hat) Sigma (W - W_hat)^T.

    The answer is linear in the query, so nothing is lost: the gradient is that of `sampled` with infinitely many queries a
    context. The same mean, less noise, and no query to draw. Make one with `averaged`.
    """

    task: Any
    model: DeepAttention
    batch: int = static()

    def loss(self, params: Params, key: Array) -> Array:
        """1/2 mean |y_q - yhat_q|^2 over contexts and all queries."""
        x, y, W = self.task.contexts(key, self.batch)
        return query_loss(W - self.model.weights(params, x, y), self.task.query_covariance())


def averaged(task: ContextTask, model: DeepAttention, batch: int) -> Averaged:
    """`Averaged` of a task and a model that match.

    Raises:
        icldyn.BadArgument: if the batch is below 1 or task and model differ in size.
    """
    if (task.D, task.O) != (model.D, model.O):
        sizes = f"but has D = {model.D} and O = {model.O}"
        raise checks.BadArgument(f"Argument `model` must have the task's D = {task.D} and O = {task.O}, {sizes}.")
    return Averaged(task, model, checks.integer("batch", batch, 1))


def query_loss(E: Array, Sigma: Array) -> Array:
    """1/2 mean over prompts of tr(E Sigma E^T), errors E (O, D, B) in the weights."""
    return jnp.sum(E * _T(_mix(Sigma.astype(E.dtype), _T(E)))) / (2 * E.shape[-1])


def _T(a: Array) -> Array:
    return jnp.swapaxes(a, 0, 1)


def _mix(W: Array, v: Array) -> Array:
    """W v, one matrix for all prompts: W (i, j), v (j, m, B)."""
    return (W @ v.reshape(v.shape[0], -1)).reshape(W.shape[0], *v.shape[1:])


@jax.custom_vjp
def _pair(a: Array, b: Array) -> Array:
    """a^T b in every prompt: a (i, n, B), b (i, m, B) -> (n, m, B), written out over i: 20 times as fast as a batched product.

    Its derivatives are such products again, which the compiler would not find. The product with the identity keeps it from
    making c anew in every term of the next product, twice to three times the time of a step.
    """
    c = functools.reduce(jnp.add, [a[i][:, None] * b[i][None] for i in range(a.shape[0])])
    return _mix(jnp.eye(c.shape[0], dtype=c.dtype), c)


def _pair_forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _pair(a, b), (a, b)


def _pair_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    a, b = kept
    return _pair(_T(b), _T(g)), _pair(_T(a), g)


_pair.defvjp(_pair_forward, _pair_backward)


def _gram(Z: Array, v: Array) -> Array:
    """G v = (1/N) sum_n z_n (z_n^T v): Z (i, N, B), v (i, m, B)."""
    return _pair(_T(Z), _pair(Z, v)) / Z.shape[1]


def _forward(P: Array, Q: Array, Z: Array, v: Array) -> Array:
    """M v = v + P G Q v, for the tokens Z of the layer."""
    return v + _mix(P, _gram(Z, _mix(Q, v)))


def _backward(P: Array, Q: Array, Z: Array, v: Array) -> Array:
    """M^T v = v + Q^T G P^T v."""
    return v + _mix(Q.T, _gram(Z, _mix(P.T, v)))
