"""In-context linear regression: N pairs (x, W x + e), then a query x_q.

x ~ N(0, Sigma) with Sigma = U diag(s) U^T, e ~ N(0, rho I), and a task W (O x D) drawn anew for every prompt, from one of
three families:

- `shared_eigenbasis`: W = U diag(l) U^T, l ~ N(0, I): the vector tasks of Mainali and Teixeira (2025);
- `iid`: W with independent N(0, 1) entries (O = D);
- `scalar`: W = w^T, w ~ N(0, Sigma_w) (O = 1);

or uniformly from a fixed pool of P tasks drawn once from the family.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .. import checks
from ..struct import static, struct

FAMILIES = ("shared_eigenbasis", "iid", "scalar")


class Prompts(NamedTuple):
    """B prompts: x (B, N, D), y (B, N, O), the query x_q (B, D) and its noiseless label y_q (B, O)."""

    x: Array
    y: Array
    x_q: Array
    y_q: Array


@struct
class LinearRegression:
    """The law of the prompts. Make one with `linear_regression`, which checks its arguments."""

    s: ArrayLike  # (D,), descending
    U: ArrayLike  # (D, D), eigenvectors of Sigma in its columns
    root_w: ArrayLike  # (D, D), square root of Sigma_w; used by the scalar family
    rho: ArrayLike  # label-noise variance
    pool: ArrayLike | None  # (P, O, D), or None for a fresh task in every prompt
    N: int = static()
    family: str = static()
    noisy: bool = static()  # whether rho > 0: labels without noise draw none

    @property
    def D(self) -> int:
        """Input dimension."""
        return np.shape(self.s)[0]

    @property
    def O(self) -> int:  # noqa: E743
        """Output dimension: D for vector tasks, 1 for scalar ones."""
        return 1 if self.family == "scalar" else self.D

    @property
    def Sigma(self) -> np.ndarray:
        """Covariance of the inputs, (D, D)."""
        U = np.asarray(self.U)
        return (U * np.asarray(self.s)) @ U.T

    @property
    def Sigma_w(self) -> np.ndarray:
        """Covariance of scalar tasks, (D, D)."""
        return np.asarray(self.root_w) @ np.asarray(self.root_w)

    def task_covariance(self) -> np.ndarray:
        """Lambda_iajb = E[W_ia W_jb], (O, D, O, D), of a fresh task (a Gaussian with mean 0)."""
        D, U = self.D, np.asarray(self.U)
        if self.family == "scalar":
            return self.Sigma_w[None, :, None, :]
        if self.family == "iid":
            return np.einsum("ij,ab->iajb", np.eye(D), np.eye(D))
        return np.einsum("ik,ak,jk,bk->iajb", U, U, U, U)

    def sample_tasks(self, key: Array, B: int) -> Array:
        """B tasks W, (B, O, D)."""
        s, U = jnp.asarray(self.s), jnp.asarray(self.U)
        if self.pool is not None:
            pool = jnp.asarray(self.pool)
            return pool[jax.random.randint(key, (B,), 0, pool.shape[0])]
        if self.family == "iid":
            return jax.random.normal(key, (B, self.D, self.D), s.dtype)
        g = jax.random.normal(key, (B, self.D), s.dtype)
        if self.family == "scalar":
            return jnp.einsum("ab,nb->na", jnp.asarray(self.root_w), g)[:, None, :]
        return jnp.einsum("ik,nk,jk->nij", U, g, U)

    def sample(self, key: Array, B: int) -> Prompts:
        """B prompts, every number of them drawn."""
        key_task, key_x, key_noise = jax.random.split(key, 3)
        s, U = jnp.asarray(self.s), jnp.asarray(self.U)
        W = self.sample_tasks(key_task, B)
        g = jax.random.normal(key_x, (B, self.N + 1, self.D), s.dtype)
        x = jnp.einsum("ab,mnb->mna", U * jnp.sqrt(s)[None], g)
        y = jnp.einsum("moa,mna->mno", W, x)
        x, x_q, y, y_q = x[:, :-1], x[:, -1], y[:, :-1], y[:, -1]
        if self.noisy:
            y = y + jnp.sqrt(jnp.asarray(self.rho, s.dtype)) * jax.random.normal(key_noise, y.shape, s.dtype)
        return Prompts(x, y, x_q, y_q)


def square_root(M: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix (singular ones too)."""
    values, vectors = np.linalg.eigh(M)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def isotropic(D: int, scale: float = 1.0) -> np.ndarray:
    """Eigenvalues s_a = scale, (D,)."""
    return np.full(checks.integer("D", D, 1), checks.real("scale", scale, above=0))


def power_law(D: int, exponent: float = 1.0, trace: float | None = None) -> np.ndarray:
    """Eigenvalues s_a = a^-exponent for a = 1 ... D, (D,), scaled to the given trace."""
    D, exponent = checks.integer("D", D, 1), checks.real("exponent", exponent, least=0)
    s = np.arange(1, D + 1, dtype=float) ** -exponent
    return s if trace is None else s * (checks.real("trace", trace, above=0) / s.sum())


def linear_regression(
    N: int,
    s: ArrayLike | None = None,
    *,
    Sigma: ArrayLike | None = None,
    U: ArrayLike | None = None,
    family: str = "shared_eigenbasis",
    Sigma_w: ArrayLike | None = None,
    rho: float = 0.0,
    pool: int | ArrayLike | None = None,
    pool_seed: int = 0,
) -> LinearRegression:
    """The linear-regression task with contexts of N pairs.

    Give the spectrum either as eigenvalues `s` (D,), descending, with optional eigenvectors `U` (D, D) in the columns
    (the identity by default), or as a covariance matrix `Sigma` (D, D), rotated or not.

    Args:
        N: number of labelled pairs before the query, at least 1.
        s: eigenvalues of Sigma; `isotropic(D)` and `power_law(D, exponent)` make some.
        Sigma: the covariance of x, instead of `s` and `U`.
        U: orthogonal matrix of eigenvectors.
        family: "shared_eigenbasis", "iid" or "scalar" (module docstring).
        Sigma_w: covariance (D, D) of scalar tasks; the identity by default.
        rho: variance of the label noise in the context (the query's label has none).
        pool: a number P of tasks drawn once, or the tasks themselves (P, O, D); None draws a fresh task for every prompt.
        pool_seed: the seed that draws the P tasks.

    Raises:
        icldyn.BadArgument: a sentence that names the argument, what it must be and what it is.
    """
    N = checks.integer("N", N, 1)
    family = checks.one_of("family", family, FAMILIES)
    rho = checks.real("rho", rho, least=0)
    if (s is None) == (Sigma is None):
        raise checks.BadArgument("Give either argument `s` (eigenvalues) or argument `Sigma` (covariance), not both.")
    if Sigma is not None:
        if U is not None:
            raise checks.BadArgument(
                "Argument `U` must be left out when `Sigma` is given, which has its own eigenvectors."
            )
        values, vectors = np.linalg.eigh(checks.covariance("Sigma", Sigma))
        s, U = np.maximum(values[::-1], 0.0), vectors[:, ::-1].copy()
    s = checks.eigenvalues("s", s)
    D = s.size
    U = np.eye(D) if U is None else checks.array("U", U, shape=(D, D))
    defect = np.abs(U.T @ U - np.eye(D)).max()
    if defect > 1e-8:
        raise checks.BadArgument(
            f"Argument `U` must be orthogonal, but U^T U differs from the identity by {defect:.3g}."
        )
    if Sigma_w is not None and family != "scalar":
        raise checks.BadArgument(f"Argument `Sigma_w` must be left out for family {family!r}; it belongs to 'scalar'.")
    Sigma_w = np.eye(D) if Sigma_w is None else checks.covariance("Sigma_w", Sigma_w, D)
    task = LinearRegression(
        s=s, U=U, root_w=square_root(Sigma_w), rho=np.float64(rho), pool=None, N=N, family=family, noisy=rho > 0
    )
    if pool is None:
        return task
    if np.ndim(pool) == 0:
        P = checks.integer("pool", pool, 1)
        drawn = np.random.default_rng(checks.integer("pool_seed", pool_seed, 0))
        Lambda = task.task_covariance().reshape(task.O * D, task.O * D)
        tasks = (drawn.normal(size=(P, task.O * D)) @ square_root(Lambda)).reshape(P, task.O, D)
    else:
        tasks = checks.array("pool", pool, shape=(None, task.O, D))
        if not len(tasks):
            raise checks.BadArgument("Argument `pool` must hold at least one task, but is empty.")
    return dataclasses.replace(task, pool=tasks)
