"""Looped attention on B contexts of P pairs with K queries each, at a cost that depends on neither P nor K."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import ArrayLike

from .. import checks
from ..models.linear_attention import Params
from ..models.looped_attention import LoopedAttention
from ..normals import GENERATORS, normals
from ..struct import static, struct
from .wishart import chi_from_normal, chi_quantile_series


@struct
class Revealed:
    """Mean loss over B contexts and K queries each, both drawn only where a step looks at them. Make one with `revealed`.

    Inputs are x = lambda^{1/2} z, z ~ N(0, I), tasks w ~ N(0, diag omega), labels w^T x + e, e ~ N(0, sigma^2). A step applies
    the Wishart matrix G = (1/P) sum (z; e/sigma)(z; e/sigma)^T to 2L - 1 vectors: one for h, L - 1 on the way forward and L - 1
    on the way back. As the law of the rows of Z is rotation invariant, Z can be drawn as a triangular (Bartlett) matrix in the
    basis that Gram-Schmidt makes of these vectors, one row for each of them as it comes: row_i = chi_{P-i} d_i + normals
    orthogonal to d_1 ... d_i. That is 2L - 1 rows of D numbers a context, where all of G would be D^2/2.
    The mean over queries of their square errors is another Wishart matrix, of which one row is needed.

    The gradient is that at fixed contexts and queries, by hand: with lambda_L = d loss / d what_L,
    lambda_l = lambda_{l+1} - C Gamma^T lambda_{l+1} / L and d loss / d Gamma = sum_l lambda_{l+1} (h - C what_l)^T / L.
    `loss` returns the loss and hands this gradient to `jax.grad` through a term that is 0.
    """

    root: ArrayLike  # (n,): sqrt lambda; with label noise n = D + 1 and the last entry sigma
    root_w: ArrayLike  # (D,): sqrt omega
    chi: ArrayLike | None  # (2L-1, degree + 1): series of chi_{P-i}; None for P = infinity, where C = diag lambda
    chi_query: ArrayLike  # (1, degree + 1): series of chi_K
    P: ArrayLike
    K: ArrayLike
    model: LoopedAttention
    contexts: int = static()
    noisy_queries: bool = static()
    generator: str = static()

    def loss(self, params: Params, key: Array) -> Array:
        """1/2 mean (y - f)^2 over contexts and queries."""
        D, L, B, n = self.model.D, self.model.L, self.contexts, np.shape(self.root)[0]
        root, fixed = jnp.asarray(self.root), lax.stop_gradient(params)
        rows = 0 if self.chi is None else 2 * L - 1
        drawn = normals(key, (D + rows * (n + 1) + n + 1, B), root.dtype, self.generator)
        g, z, u, query, c = jnp.split(drawn, np.cumsum([D, rows * n, rows, n]))
        context = None if self.chi is None else _Context(jnp.asarray(self.chi), u, z.reshape(rows, n, B), self.P)

        def C(v: Array, sigma: Array | None = None) -> Array:
            """C v, and with sigma the vector h of the task v: X^T (X v + e) / P."""
            v = root[:D, None] * v
            if context is not None:
                v = context.apply(jnp.concatenate([v, jnp.full((n - D, B), 0 if sigma is None else sigma, v.dtype)]))
            return root[:D, None] * v[:D]

        w = jnp.asarray(self.root_w)[:, None] * g
        h = C(w, root[D] if n > D else None)
        residuals, what = [h], self.model.precondition(fixed, h) / L
        for _ in range(L - 1):
            residuals.append(h - C(what))
            what = what + self.model.precondition(fixed, residuals[-1]) / L

        noise = jnp.full((n - D, B), root[D] if self.noisy_queries else 0, w.dtype)
        error = jnp.concatenate([root[:D, None] * (w - what), noise])
        value, slope = _square_errors(
            error, chi_from_normal(jnp.asarray(self.chi_query), c), query, jnp.asarray(self.K)
        )
        adjoint = [-root[:D, None] * slope[:D]]  # lambda_L, then lambda_{L-1} ... lambda_1
        _, transpose = jax.vjp(lambda v: self.model.precondition(fixed, v), w)
        for _ in range(L - 1):
            adjoint.append(adjoint[-1] - C(transpose(adjoint[-1])[0]) / L)

        pairs = zip(adjoint[::-1], residuals, strict=True)
        linear = sum(jnp.sum(a * self.model.precondition(params, r)) for a, r in pairs) / (L * B)
        return value + linear - lax.stop_gradient(linear)


class _Context:
    """B Wishart matrices of P rows, revealed along the vectors (n, B) to which they are applied."""

    def __init__(self, chi: Array, u: Array, z: Array, P: ArrayLike):
        self.lengths = chi_from_normal(chi, u)  # (rows, B)
        self.z, self.P = z, jnp.asarray(P)
        self.directions: list[Array] = []
        self.rows: list[Array] = []

    def apply(self, v: Array) -> Array:
        """G v; draws the next row."""
        k = len(self.rows)
        zero = jnp.sum(v**2, axis=0, keepdims=True) == 0  # then any direction will do
        axis = jnp.zeros_like(v).at[k].set(1)
        direction = _unit(_orthogonal(jnp.where(zero, axis, v), self.directions))
        self.directions.append(direction)
        self.rows.append(self.lengths[k, None] * direction + _orthogonal(self.z[k], self.directions))
        return sum(row * jnp.sum(row * v, axis=0, keepdims=True) for row in self.rows) / self.P


def _orthogonal(v: Array, directions: list[Array]) -> Array:
    """v without its parts along these orthonormal directions."""
    for d in directions:
        v = v - d * jnp.sum(d * v, axis=0, keepdims=True)
    return v


def _unit(v: Array) -> Array:
    return v / jnp.sqrt(jnp.sum(v**2, axis=0, keepdims=True))


def _square_errors(error: Array, length: Array, z: Array, K: Array) -> tuple[Array, Array]:
    """1/2 mean over contexts of e^T S e, and S e, for S the mean of K normal z z^T; error (n, B), length chi_K (1, B)."""
    size = jnp.sqrt(jnp.sum(error**2, axis=0, keepdims=True))
    direction = _unit(jnp.where(size == 0, jnp.zeros_like(error).at[0].set(1), error))
    slope = size * length / K * (length * direction + _orthogonal(z, [direction]))
    return 0.5 * jnp.mean((size * length) ** 2 / K), slope


def revealed(
    model: LoopedAttention,
    lam: ArrayLike,
    omega: ArrayLike,
    *,
    P: int | None,
    contexts: int,
    queries: int,
    sigma2: float = 0.0,
    noisy_queries: bool = False,
    generator: str = "both_words",
) -> Revealed:
    """SGD of looped attention with fresh contexts, exact in law, at (2L + 1) (D + 1) random numbers a context.

    Args:
        model: from `icldyn.looped_attention.looped`.
        lam: (D,) eigenvalues of the covariance of x, in whose basis the weights are.
        omega: (D,) variances of the tasks in that basis.
        P: pairs in a context, at least 2L; None for infinitely many (no label noise is left in the context then).
        contexts: contexts a step.
        queries: queries of every context, at least 2.
        sigma2: variance of the label noise.
        noisy_queries: whether the labels of the queries have it too.
        generator: as for `icldyn.statistics`.

    Raises:
        icldyn.BadArgument: a sentence that names the argument, what it must be and what it is.
    """
    D, rows, sigma2 = model.D, 2 * model.L - 1, checks.real("sigma2", sigma2, least=0)
    lam, omega = checks.array("lam", lam, shape=(D,)), checks.array("omega", omega, shape=(D,))
    for name, value in (("lam", lam), ("omega", omega)):
        if (value < 0).any():
            raise checks.BadArgument(
                f"Argument `{name}` must not be negative, but its smallest entry is {value.min():g}."
            )
    n = D + 1 if sigma2 > 0 else D
    if P is not None:
        P = checks.integer("P", P, rows + 1, 10**12)
        if n < rows:
            raise checks.refuse("model", f"have D of at least 2L - 1 = {rows} for finite P", D)
    K = checks.integer("queries", queries, 2, 10**12)
    return Revealed(
        root=np.sqrt(lam if n == D else np.append(lam, sigma2)),
        root_w=np.sqrt(omega),
        chi=None if P is None else chi_quantile_series(P - np.arange(rows)),
        chi_query=chi_quantile_series([K]),
        P=np.float64(np.inf if P is None else P),
        K=np.float64(K),
        model=model,
        contexts=checks.integer("contexts", contexts, 1),
        noisy_queries=bool(noisy_queries),
        generator=checks.one_of("generator", generator, GENERATORS),
    )
