"""Heads on scalar tasks: the batch loss drawn without prompts, and full-batch training on fixed ones.

The answer is linear in the folded weights k of `Heads.kernel`, yhat = k . phi with phi = x_q (x) g, so a batch loss is a
quadratic in k with the matrix mean(phi phi^T), whatever the number of prompts and their length.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import ArrayLike

from .. import checks
from ..models.head_lanes import fold_lanes, unfold_lanes
from ..models.heads import Heads, fold, pair_number
from ..normals import normals
from ..struct import static, struct
from ..tasks.linear_regression import LinearRegression, square_root
from .wishart import chi_from_normal, chi_quantile_series

SMALLEST = 1e-10  # eigenvalues of a data set's matrix below this share of the largest are round-off
CHUNK = 1024  # prompts summed at a time


@jax.custom_jvp
def quadratic(C: Array, b: Array, k: Array) -> Array:
    """k^T C k / 2 - b^T k for symmetric C: its gradient C k - b at the price of one product with C."""
    return k @ (C @ k) / 2 - b @ k


quadratic.defjvps(
    lambda dC, _, C, b, k: k @ (dC @ k) / 2, lambda db, _, C, b, k: -db @ k, lambda dk, _, C, b, k: (C @ k - b) @ dk
)


@struct
class Folded:
    """The loss of `batch` prompts from O(D) normals a prompt with zero blocks, O(D^2) with all. Made by `statistics`.

    With zero blocks a context enters through h alone. Given the task w its labels are y_n ~ N(0, v), v = w^T S w + rho, and
    x_n = S w y_n / v + r_n with r_n independent of all labels, so with chi^2 of N degrees of freedom

        h = (chi^2 / N) S w + (chi sqrt(v) / N) r,    r = x' - S w y' / v,    (x', y') one more pair of the same task.

    With all blocks the xx block is N C = L T T^T L^T (Bartlett, as in `Statistics`), and then

        h = C w + sqrt(rho/N) L T g / sqrt N,    c = 2 w.h - w^T C w + (rho/N) (|g|^2 + chi'^2),  chi'^2 of N - D.

    All in the eigenbasis of Sigma, prompts in the last axis.
    """

    s: ArrayLike  # (D,)
    U: ArrayLike  # (D, D)
    root_w: ArrayLike  # (D, D): square root of Sigma_w in the eigenbasis
    pool: ArrayLike | None  # (P, D) in the eigenbasis
    rho: ArrayLike
    N: ArrayLike
    chi: ArrayLike  # (1 or D or D+1, degree + 1): series of the chi laws that are drawn
    model: Heads
    batch: int = static()
    generator: str = static()
    noisy: bool = static()
    shared: bool = static()
    aligned: bool = static()  # whether the eigenbasis is that of the weights

    def loss(self, params: Any, key: Array) -> Array:
        """1/2 mean (y_q - yhat_q)^2 over the batch."""
        k = self.rotated_kernel(params)
        of_x, of_g = self.scales(k.dtype)
        k = k * of_x[:, None] * of_g[None]
        x, g, y = self.draw(key, k.dtype)
        if not self.shared:
            return jnp.sum((y - jnp.sum(x * (k @ g), axis=0)) ** 2) / (2 * self.batch)
        phi = (x[:, None] * g[None]).reshape(-1, self.batch) / np.sqrt(self.batch).astype(k.dtype)  # (D n, B)
        y = y / np.sqrt(self.batch).astype(k.dtype)
        return y @ y / 2 + quadratic(phi @ phi.T, phi @ y, k.reshape(-1))  # one matrix for all seeds

    @property
    def lanes_last(self) -> bool:
        """With a shared stream seeds belong in the last axis, else prompts do."""
        return self.shared

    def slopes(self, params: Any, key: Array) -> Any:
        """Gradients of the loss of one stream for many seeds in the last axis: one matrix for all of them."""
        x, g, y = self.draw(key, params["v"].dtype)
        of_x, of_g = self.scales(x.dtype)
        x, g = x * of_x[:, None], g * of_g[:, None]
        if not self.aligned:
            x, g = self._turned(x, g)
        size = np.sqrt(self.batch).astype(x.dtype)
        phi = (g[:, None] * x[None]).reshape(-1, self.batch) / size  # (n D, B)
        return _slopes(self.model, phi @ phi.T, (phi @ (y / size))[:, None], 0, params)

    def _turned(self, x: Array, g: Array) -> tuple[Array, Array]:
        """x_q and g out of the eigenbasis."""
        n, U = self.model.D + 1, jnp.asarray(self.U, x.dtype)
        if self.model.zero_blocks:
            return U @ x, U @ g
        V = jnp.eye(n, dtype=x.dtype).at[:-1, :-1].set(U)
        return U @ x, jnp.einsum("abs,ca,db->cds", g[pair_number(n)], V, V)[np.triu_indices(n)]

    def rotated_kernel(self, params: Any) -> Array:
        """The kernel (D, n) in the eigenbasis."""
        D = self.model.D
        if self.aligned:
            return self.model.kernel(params)
        if self.model.zero_blocks:
            A = self.model.matrix(params)
            U = jnp.asarray(self.U, A.dtype)
            return (U.T @ A @ U).T
        M = self.model.tensor(params)
        U = jnp.asarray(self.U, M.dtype)
        V = jnp.eye(D + 1, dtype=M.dtype).at[:D, :D].set(U)
        return fold(jnp.einsum("abk,ai,bj,kl->ijl", M, V, V, U))

    def scales(self, dtype: Any) -> tuple[Array, Array]:
        """What the entries of x_q (D,) and of g (n,) of `draw` are to be multiplied by."""
        root = jnp.sqrt(jnp.asarray(self.s, dtype))
        if self.model.zero_blocks:
            return root, root
        both = jnp.concatenate([root, jnp.ones(1, dtype)])
        a, b = np.triu_indices(self.model.D + 1)
        return root, both[a] * both[b] / jnp.asarray(self.N, dtype)

    def draw(self, key: Array, dtype: Any) -> tuple[Array, Array, Array]:
        """x_q (D, B), g (n, B) and y_q (B,) of fresh prompts, in the eigenbasis and but for their `scales`."""
        D, B, zero = self.model.D, self.batch, self.model.zero_blocks
        key_task, key = jax.random.split(key) if self.pool is not None else (key, key)
        tasks = 0 if self.pool is not None else D
        below = 0 if zero else D * (D - 1) // 2
        chis = np.shape(self.chi)[0]
        sizes = [D, tasks, D if zero or self.noisy else 0, chis, int(zero and self.noisy), below]
        drawn = normals(key, (sum(sizes), B), dtype, self.generator)
        x, w, z, u, e, t = jnp.split(drawn, list(np.cumsum(sizes)[:-1]))
        s, N, rho = (jnp.asarray(a, dtype) for a in (self.s, self.N, self.rho))
        if self.pool is None:
            w = (jnp.sqrt(s)[:, None] * jnp.asarray(self.root_w, dtype)) @ w
        else:
            pool = jnp.asarray(self.pool, dtype) * jnp.sqrt(s)[None]
            w = pool[jax.random.randint(key_task, (B,), 0, pool.shape[0])].T
        y, chi = jnp.sum(w * x, axis=0), chi_from_normal(jnp.asarray(self.chi, dtype), u)
        return x, self._vector(w, z, chi[0], e, N, rho) if zero else self._matrix(x, w, z, chi, t, rho), y

    def _vector(self, w, z, chi, e, N, rho) -> Array:
        """h / sqrt s, (D, B); w here and below is sqrt(s) w."""
        v = jnp.sum(w**2, axis=0) + rho
        other = jnp.sum(w * z, axis=0) + (jnp.sqrt(rho) * e[0] if self.noisy else 0)
        spread = chi / N * jnp.sqrt(v)
        along = chi**2 / N - spread * other / jnp.maximum(v, jnp.finfo(v.dtype).tiny)
        return along[None] * w + spread[None] * z

    def _matrix(self, x, w, z, chi, t, rho) -> Array:
        """The entries (n, B) of N G, a <= b, those of x_a over sqrt s_a."""
        D = self.model.D
        rows = [[*(t[i * (i - 1) // 2 + j] for j in range(i)), chi[i]] for i in range(D)]
        Tw = [sum(rows[i][j] * w[i] for i in range(j, D)) for j in range(D)]
        h = [sum(rows[i][j] * Tw[j] for j in range(i + 1)) for i in range(D)]
        c = sum(a**2 for a in Tw)
        if self.noisy:
            e = [jnp.sqrt(rho) * z[j] for j in range(D)]
            c = c + 2 * sum(a * b for a, b in zip(Tw, e, strict=True)) + rho * (jnp.sum(z**2, axis=0) + chi[D] ** 2)
            h = [h[i] + sum(rows[i][j] * e[j] for j in range(i + 1)) for i in range(D)]
        own = x if self.model.query_attends_itself else jnp.zeros_like(x)
        out = []
        for a in range(D):
            for b in range(a, D):
                out.append(sum(rows[a][j] * rows[b][j] for j in range(a + 1)) + own[a] * own[b])
            out.append(h[a])
        return jnp.stack([*out, c])


@struct
class Quadratic:
    """L = least + 1/2 (k - center)^T C (k - center), k the folded weights (n, D), row by row. Made by `dataset`."""

    C: ArrayLike  # (n D, n D)
    center: ArrayLike  # (n D,)
    least: ArrayLike
    model: Heads

    def loss(self, params: Any, key: Array | None = None) -> Array:
        """The mean loss of all prompts at `params`; the key is ignored."""
        k = self.model.kernel(params).T.reshape(-1)
        gap = k - jnp.asarray(self.center, k.dtype)
        return jnp.asarray(self.least, k.dtype) + quadratic(jnp.asarray(self.C, k.dtype), jnp.zeros_like(gap), gap)

    def slopes(self, params: Any, key: Array | None = None) -> Any:
        """Gradients of the loss for many seeds in the last axis; the key is ignored."""
        C, center = (jnp.asarray(a, params["v"].dtype) for a in (self.C, self.center))
        return _slopes(self.model, C, 0, center[:, None], params)

    @property
    def lanes_last(self) -> bool:
        """Seeds belong in the last axis."""
        return True


def _slopes(model: Heads, C: Array, b: Array | int, center: Array | int, params: Any) -> Any:
    """Gradients of k^T C k / 2 - b^T k, k = folded weights (n, D, S) - center, for S seeds."""
    k = fold_lanes(model, params)
    # Barriers keep the sums over heads, the product and the way back apart: fused, they leave the layout with seeds last.
    ahead = lax.optimization_barrier(k.reshape(-1, k.shape[-1]))
    product = lax.optimization_barrier(C @ (ahead - center))
    return unfold_lanes(model, params, (product - b).reshape(k.shape))


def folded_statistics(task: LinearRegression, model: Heads, batch: int, generator: str, shared: bool) -> Folded:
    """`Folded` of a task and heads that match: for N >= 2 with zero blocks, N > D + 1 with all."""
    least = 2 if model.zero_blocks else task.D + 2
    if task.N < least:
        raise checks.BadArgument(
            f"Argument `N` must be at least {least} to draw context statistics without prompts, but is {task.N}; "
            "use `sampled`."
        )
    U, pool = np.asarray(task.U), task.pool
    freedom = [task.N] if model.zero_blocks else list(task.N - np.arange(task.D + task.noisy))
    return Folded(
        s=np.asarray(task.s),
        U=U,
        root_w=square_root(U.T @ task.Sigma_w @ U),
        pool=None if pool is None else np.asarray(pool)[:, 0] @ U,
        rho=np.float64(task.rho),
        N=np.float64(task.N),
        chi=chi_quantile_series(freedom),
        model=model,
        batch=batch,
        generator=generator,
        noisy=task.noisy,
        shared=shared,
        aligned=np.array_equal(U, np.eye(task.D)),
    )


def sufficient_statistics(
    model: Heads, x: np.ndarray, y: np.ndarray, x_q: np.ndarray, y_q: np.ndarray, length: float
) -> Quadratic:
    """`Quadratic` of fixed prompts, context sums divided by `length`; float64, in one pass."""
    P, N, D = x.shape
    size = D * (D if model.zero_blocks else (D + 1) * (D + 2) // 2)
    C, b, total = np.zeros((size, size)), np.zeros(size), 0.0
    for first in range(0, P, CHUNK):
        part = slice(first, first + CHUNK)
        g = _context(model, x[part], y[part], x_q[part]) / length
        phi = np.einsum("pi,pk->pik", g, x_q[part]).reshape(len(g), size)
        C, b, total = C + phi.T @ phi / P, b + phi.T @ y_q[part] / P, total + y_q[part] @ y_q[part] / P
    values, vectors = np.linalg.eigh(C)
    kept = values > SMALLEST * values[-1]
    center = vectors[:, kept] @ (vectors[:, kept].T @ b / values[kept])
    return Quadratic(C, center, np.float64(max(total - b @ center, 0.0) / 2), model)


def _context(model: Heads, x: np.ndarray, y: np.ndarray, x_q: np.ndarray) -> np.ndarray:
    """Sums over the pairs, (P, n): h, or the entries of G, a <= b."""
    h = np.einsum("pn,pna->pa", y, x)
    if model.zero_blocks:
        return h
    z = np.concatenate([x, y[..., None]], axis=2)
    G = np.einsum("pna,pnb->pab", z, z)
    if model.query_attends_itself:
        G[:, :-1, :-1] += np.einsum("pa,pb->pab", x_q, x_q)
    a, b = np.triu_indices(G.shape[1])
    return G[:, a, b]
