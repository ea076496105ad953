"""The batch loss of one layer with all four blocks, drawn without prompts."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .. import checks
from ..models.linear_attention import LinearAttention, Params
from ..normals import normals, stored
from ..struct import static, struct
from ..tasks.linear_regression import LinearRegression, square_root


@struct
class Statistics:
    """The same law from O(D^2) normals a prompt, whatever N. Make one with `statistics`.

    Linear attention sees a context only through G, and with scores k_n = z_n^T Q x_q, u = q1 x_q, k = q2 x_q,

        (1/N) sum_n k_n x_n = a,   (1/N) sum_n k_n y_n = W a + c,   (a; c) = G' (u + W^T k; k),

    where G' = (1/N) sum_n (x_n; e_n)(x_n; e_n)^T is a Wishart matrix: N G' = L T T^T L^T with L = diag(sqrt s, sqrt rho) in
    the eigenbasis and T lower triangular, standard normals below the diagonal and T_ii^2 ~ chi^2_{N-i} (Bartlett). Without
    label noise e = c = 0 and the xx block is enough. Holds for N > D (N > D + O with noise).

    T_ii is its quantile function of a standard normal, as a Chebyshev series on [-6, 6] with an error below 1e-6; normals are
    clipped to that range, which moves a probability of 2e-9.
    Kernel layout: prompts in the last axis, where the vector lanes are; triangular products are written out over D.
    """

    root: ArrayLike  # (D,) or (D+O,): diagonal of L / sqrt(N)
    rotation: ArrayLike  # (D, D): U
    chi: ArrayLike  # (D or D+O, degree + 1): Chebyshev coefficients of the diagonal of T
    N: ArrayLike
    root_w: ArrayLike | None  # (D, D): square root of Sigma_w in the eigenbasis (scalar tasks)
    pool: ArrayLike | None  # (P, O, D) in the eigenbasis
    model: LinearAttention
    family: str = static()
    batch: int = static()
    generator: str = static()

    def loss(self, params: Params, key: Array) -> Array:
        """1/2 mean |y_q - yhat_q|^2 over the batch."""
        D, O, B, n = self.model.D, self.model.O, self.batch, np.shape(self.root)[0]  # noqa: E741
        root, U, N = jnp.asarray(self.root), jnp.asarray(self.rotation), jnp.asarray(self.N)
        V = U if O == D else jnp.ones((1, 1), U.dtype)
        p1, p2, q1, q2 = self.model.blocks(params)
        p1, p2 = V.T @ p1 @ U, V.T @ p2 @ V  # to the eigenbasis: the loss is the same
        q1, q2 = U.T @ q1 @ U, V.T @ q2 @ U

        key_task, key = jax.random.split(key) if self.pool is not None else (key, key)
        tasks = 0 if self.pool is not None else (O * D if self.family == "iid" else D)
        drawn = normals(key, (n * (n + 1) // 2 + D + tasks, B), root.dtype, self.generator)
        diagonal, below, x, g = jnp.split(drawn, (n, n * (n + 1) // 2, n * (n + 1) // 2 + D))
        x = x * (root[:D] * jnp.sqrt(N))[:, None]
        apply_W, apply_WT = self._task(key_task, g)

        u, k = q1 @ x, q2 @ x
        w = u + apply_WT(k)
        a = _wishart_apply(
            root, chi_from_normal(jnp.asarray(self.chi), diagonal), below, [*w] + ([*k] if n > D else [])
        )
        b = apply_W(a[:D]) + (a[D:] if n > D else 0)
        a = a[:D]
        if self.model.query_attends_itself:
            a = a + x * (jnp.sum(x * u, axis=0, keepdims=True) / N)
        error = apply_W(x) - p1 @ a - p2 @ b
        return jnp.sum(error**2) / (2 * B)

    def _task(self, key: Array, g: Array):
        """The maps v -> W v and v -> W^T v, prompts in the last axis, of a drawn task."""
        if self.pool is None and self.family == "shared_eigenbasis":
            return (lambda v: g * v), (lambda v: g * v)
        if self.pool is not None:
            pool = jnp.asarray(self.pool)
            W = pool[jax.random.randint(key, (self.batch,), 0, pool.shape[0])].transpose(1, 2, 0)
        elif self.family == "iid":
            W = g.reshape(self.model.O, self.model.D, self.batch)
        else:
            W = (jnp.asarray(self.root_w) @ g)[None]
        return (lambda v: jnp.sum(W * v[None], axis=1)), (lambda v: jnp.sum(W * v[:, None], axis=0))


def wishart_statistics(task: LinearRegression, model: LinearAttention, batch: int, generator: str) -> Statistics:
    """`Statistics` of a task and a model that match, for N > D (N > D + O with label noise)."""
    U, noisy = np.asarray(task.U), task.noisy
    n = task.D + (task.O if noisy else 0)
    if task.N <= n:
        size = f"D + O = {n} with label noise" if noisy else f"D = {n}"
        raise checks.BadArgument(
            f"Argument `N` must be above {size} to draw context statistics without prompts, but is {task.N}; use `sampled`."
        )
    V = U if task.O == task.D else np.eye(1)
    variances = np.concatenate([np.asarray(task.s), np.full(n - task.D, np.asarray(task.rho))])
    return Statistics(
        root=np.sqrt(variances / task.N),
        rotation=U,
        chi=chi_quantile_series(task.N - np.arange(n)),
        N=np.float64(task.N),
        root_w=square_root(U.T @ task.Sigma_w @ U) if task.family == "scalar" else None,
        pool=None if task.pool is None else np.einsum("io,pia,ab->pob", V, np.asarray(task.pool), U),
        model=model,
        family=task.family,
        batch=batch,
        generator=generator,
    )


def chi_quantile_series(freedom: ArrayLike) -> np.ndarray:
    """Chebyshev coefficients (n, degree + 1) on [-6, 6] of u -> F^-1(Phi(u)), F the law of sqrt(chi^2_k), per entry k >= 2.

    The lowest of the degrees 11, 19 and 31 whose error on the whole range is below 1e-6 for all k.
    """
    from numpy.polynomial import chebyshev
    from scipy import special

    k = np.asarray(freedom, float)[:, None]

    def quantile(u: np.ndarray) -> np.ndarray:
        low = special.gammaincinv(k / 2, special.ndtr(np.minimum(u, 0)))
        high = special.gammainccinv(k / 2, special.ndtr(-np.maximum(u, 0)))
        return np.sqrt(2 * np.where(u < 0, low, high))

    nodes, grid = np.cos(np.pi * (np.arange(256) + 0.5) / 256), np.linspace(-1, 1, 2001)
    wanted = quantile(6 * grid)
    for degree in (11, 19, 31):
        series = chebyshev.chebfit(nodes, quantile(6 * nodes).T, degree)
        error = np.abs(chebyshev.chebval(grid, series) - wanted).max()
        if error < 1e-6:
            break
    return series.T


def chi_from_normal(series: Array, u: Array) -> Array:
    """sum_j series[:, j] T_j(u / 6) by Clenshaw's recurrence.  series (n, degree+1), u (n, B)."""
    return stored(_chebyshev, series, jnp.clip(u / 6, -1, 1))


def _chebyshev(series: Array, v: Array) -> Array:
    first = second = jnp.zeros_like(v)
    for j in range(series.size - 1, 0, -1):
        first, second = series[j] + 2 * v * first - second, first
    return series[0] + v * first - second


def _wishart_apply(root: Array, diagonal: Array, below: Array, v: list[Array]) -> Array:
    """L T T^T L^T v / N with `root` = diag(L) / sqrt(N), written out over the n rows of T; v: n arrays (B,)."""
    n = len(v)
    rows = [[below[i * (i - 1) // 2 + j] for j in range(i)] + [diagonal[i]] for i in range(n)]
    v = [root[i] * v[i] for i in range(n)]
    tv = [sum((rows[i][j] * v[i] for i in range(j + 1, n)), rows[j][j] * v[j]) for j in range(n)]
    return jnp.stack([root[i] * sum((rows[i][j] * tv[j] for j in range(i)), rows[i][i] * tv[i]) for i in range(n)])
