"""Ridge regression of linear attention on contexts of a finite task pool, as an experiment: one step of Newton solves it.

Setting and letters of `icldyn.theory.finite_pool`. A seed draws its own pool and data set at the start; the params hold their
sufficient statistics, which no step changes, beside Gamma = 0, the ridge `lam` of the next step and the ratio of successive
ridges. The loss is quadratic, so a step of `newton` with lr = 1 ends at its minimiser; then lam falls by the ratio. A
trajectory is the path of ridge solutions: the record at t = 1, 2, ... is that of lam = first ratio^(t-1), and t = 0
(Gamma = 0) that of an infinite ridge.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from numpy.typing import ArrayLike

from .. import checks
from ..struct import static, struct
from ..theory import finite_pool
from .wishart import chi_from_normal, chi_quantile_series

Params = dict[str, Array]
CHUNK = 256  # contexts drawn at a time


@struct
class RidgePath:
    """1/2 mean (y_q - yhat)^2 + lam/(2d) ||Gamma||_F^2 over the data set that the params hold. Make one with `ridge_path`.

    Only d and `most`, the largest pool, are shapes: other sizes run the same program.
    """

    k: ArrayLike  # tasks in the pool
    l: ArrayLike  # pairs in a context
    n: ArrayLike  # contexts
    rho: ArrayLike
    first: ArrayLike  # the largest ridge
    ratio: ArrayLike  # of a ridge and the one before
    chi: ArrayLike  # (1, degree + 1): quantiles of chi_l
    d: int = static()
    most: int = static()

    def start(self, key: Array, scale: Array) -> Params:
        """A fresh pool and data set, Gamma = 0 and the first ridge; the dtype is that of `scale`.

        C = (d/n) sum phi phi^T (p, p), b = (d/n) sum y_q phi (p,), yy = (1/n) sum y_q^2, with phi = vec(x_q v^T), p = d (d+1);
        mu (d,) and R (d, d) of the pool. Cost O(n p^2), independent of l.
        """
        d, p, dtype = self.d, self.d * (self.d + 1), scale.dtype
        key_pool, key_data = jax.random.split(key)
        n, k, first, ratio = (jnp.asarray(a, dtype) for a in (self.n, self.k, self.first, self.ratio))
        pool = jax.random.normal(key_pool, (self.most, d), dtype)
        pool = pool * (d**0.5 / jnp.linalg.norm(pool, axis=1, keepdims=True))
        held = jnp.where(jnp.arange(self.most, dtype=dtype) < k, 1 / k, 0)  # uniform over the first k

        def add(i: Array, carry):
            (C, b, yy), (x, v, y) = (
                carry  # drawn a turn earlier: what a loop carries is not computed again in every fusion
            )
            phi = (x[:, :, None] * v[:, None, :]).reshape(CHUNK, p)
            return (C + phi.T @ phi, b + y @ phi, yy + y @ y), self._contexts(key_data, i, pool)

        nothing = (jnp.zeros((p, p), dtype), jnp.zeros(p, dtype), jnp.zeros((), dtype))
        no_contexts = (jnp.zeros((CHUNK, d), dtype), jnp.zeros((CHUNK, d + 1), dtype), jnp.zeros(CHUNK, dtype))
        turns = jnp.ceil(n / CHUNK).astype(jnp.int32) + 1
        (C, b, yy), _ = lax.fori_loop(0, turns, add, (nothing, no_contexts))
        data = {"C": d / n * C, "b": d / n * b, "yy": yy / n}
        data |= {"mu": held @ pool, "R": (pool * held[:, None]).T @ pool}
        return data | {"Gamma": jnp.zeros((d, d + 1), dtype), "lam": first, "ratio": ratio}

    def _contexts(self, key: Array, i: Array, pool: Array) -> tuple[Array, Array, Array]:
        """x_q (CHUNK, d), v (CHUNK, d+1) and y_q (CHUNK,) of the i-th chunk of contexts; x_q and y_q are 0 beyond the n-th."""
        d, dtype = self.d, pool.dtype
        n, k, l, rho = (jnp.asarray(a, dtype) for a in (self.n, self.k, self.l, self.rho))
        key_task, key_normal = jax.random.split(jax.random.fold_in(key, i))
        w = pool[jnp.floor(k * jax.random.uniform(key_task, (CHUNK,), dtype)).astype(jnp.int32)]
        z = jax.random.normal(key_normal, (CHUNK, 2 * d + 3), dtype)
        chi = chi_from_normal(jnp.asarray(self.chi, dtype), z[None, :, 0])[0]
        v = finite_pool.context_statistics(w, chi, z[:, 1], z[:, 3 : 3 + d], l, rho)
        x = z[:, 3 + d :] / d**0.5
        y = jnp.sum(w * x, axis=1) + jnp.sqrt(rho) * z[:, 2]
        number = i * CHUNK + jnp.arange(CHUNK, dtype=jnp.int32)
        kept = (number < n.astype(jnp.int32)).astype(dtype)
        return x * kept[:, None], v, y * kept

    def loss(self, params: Params, key: Array | None = None) -> Array:
        """The loss; the key is ignored."""
        data = lax.stop_gradient({name: value for name, value in params.items() if name != "Gamma"})
        gamma = params["Gamma"].ravel()
        square = gamma @ (data["C"] @ gamma) + data["lam"] * (gamma @ gamma)
        return (data["yy"] + (square - 2 * (data["b"] @ gamma)) / self.d) / 2

    def icl(self, params: Params) -> Array:
        """E (y_q - yhat)^2 of Gamma on new tasks, exactly."""
        mu, R = jnp.zeros_like(params["mu"]), jnp.eye(self.d, dtype=params["R"].dtype)
        return self._error(params, mu, R)

    def idg(self, params: Params) -> Array:
        """E (y_q - yhat)^2 of Gamma on the pool's tasks, exactly."""
        return self._error(params, params["mu"], params["R"])

    def _error(self, params: Params, mu: Array, R: Array) -> Array:
        l, rho = (jnp.asarray(a, mu.dtype) for a in (self.l, self.rho))
        return finite_pool.error(params["Gamma"], *finite_pool.context_moments(mu, R, l, rho), rho)


def ridge_path(
    d: int, *, k: int, l: int, n: int, rho: float, first: float, ratio: float, most: int | None = None
) -> RidgePath:
    """The path of ridge solutions on n contexts of l pairs with tasks from a pool of k (and no more than `most`, a shape).

    Raises:
        icldyn.BadArgument: if a size or ridge is out of range.
    """
    d, k = checks.integer("d", d, 2), checks.integer("k", k, 1)
    most = k if most is None else checks.integer("most", most, k)
    l, n = checks.integer("l", l, 2), checks.integer("n", n, 1, 2**31 - 1 - CHUNK)
    rho, first = checks.real("rho", rho, least=0), checks.real("first", first, above=0)
    ratio = checks.real("ratio", ratio, above=0, most=1)
    chi = chi_quantile_series([l])
    return RidgePath(float(k), float(l), float(n), rho, first, ratio, chi, d=d, most=most)


def newton(lr: Array) -> optax.GradientTransformation:
    """Gamma <- Gamma - lr H^-1 grad with H = (C + lam I)/d the loss's Hessian, then lam <- ratio lam."""

    def update(grads: Params, state: optax.OptState, params: Params):
        g, lam = grads["Gamma"], params["lam"]
        H = (params["C"] + lam * jnp.eye(g.size, dtype=g.dtype)) / g.shape[0]
        step = solve_positive(H, g.ravel(), g.shape[0]).reshape(g.shape)
        return grads | {"Gamma": -lr * step, "lam": (params["ratio"] - 1) * lam}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def solve_positive(H: Array, g: Array, m: int) -> Array:
    """H^-1 g for symmetric positive definite H (p, p) and g (p,) or (p, r), by Gauss-Jordan elimination.

    In blocks of m rows, p = 0 mod m; no pivots are needed. The LAPACK calls behind `jnp.linalg` stop for ever where two
    programs run at once on a CPU of two cores (jax 0.10), as blocks of seeds do.
    """
    p = len(H)
    W = jnp.concatenate([H, g.reshape(p, -1)], axis=1)

    def eliminate(j: Array, W: Array) -> Array:
        rows = lax.dynamic_slice(W, (j * m, 0), (m, W.shape[1]))

        def one(i: Array, rows: Array) -> Array:
            row = lax.dynamic_slice(rows, (i, 0), (1, rows.shape[1]))
            row = row / lax.dynamic_slice(row, (0, j * m + i), (1, 1))
            column = lax.dynamic_slice(rows, (0, j * m + i), (m, 1))
            return lax.dynamic_update_slice(rows - column * row, row, (i, 0))

        rows = lax.fori_loop(0, m, one, rows)
        column = lax.dynamic_slice(W, (0, j * m), (p, m))
        return lax.dynamic_update_slice(W - column @ rows, rows, (j * m, 0))

    return lax.fori_loop(0, p // m, eliminate, W)[:, p:].reshape(g.shape)
