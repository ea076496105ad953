"""In-context linear regression with inputs of any shape: x = root u, u of independent coordinates (mean 0, variance 1).

u uniform on [-3^(1/2), 3^(1/2)], so that x ~ U(-h, h) for root = h / 3^(1/2) (von Oswald et al.), or normal. Labels y = w^T x
without noise, w ~ N(0, Sigma_w). A linear model that is linear in the labels answers a whole basis of tasks at once: with
`basis` the labels are W x for all D rows of W = Sigma_w^(1/2), and the sum of their losses is the exact mean over w.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.random import threefry_2x32
from numpy.typing import ArrayLike

from .. import checks
from ..struct import static, struct
from .linear_regression import Prompts, square_root

LAWS = {"normal": 3.0, "uniform": 1.8}  # kurtosis E u^4


@struct
class Inputs:
    """The law of the prompts. Make one with `inputs`, which checks its arguments."""

    root: ArrayLike  # (D, D): Sigma = root root^T
    root_w: ArrayLike  # (D, D), symmetric square root of Sigma_w
    N: int = static()
    law: str = static()
    basis: bool = static()

    @property
    def D(self) -> int:
        """Input dimension."""
        return np.shape(self.root)[0]

    @property
    def O(self) -> int:  # noqa: E743
        """Labels an input: 1, or D for the whole basis of tasks."""
        return self.D if self.basis else 1

    def query_covariance(self) -> Array:
        """Sigma, (D, D)."""
        root = jnp.asarray(self.root)
        return root @ root.T

    def sample(self, key: Array, B: int) -> Prompts:
        """B prompts, every number of them drawn."""
        tokens, dtype = self.N + 1, jnp.asarray(self.root).dtype
        rows = self._rows(tokens)
        words = random_words(key, rows + (0 if self.basis else self.D), B)
        x = jnp.einsum("ij,njb->bni", jnp.asarray(self.root), self._coordinates(words[:rows], tokens, dtype))
        y = jnp.einsum("odb,bnd->bno", self._tasks(words[rows:], B), x)
        return Prompts(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1])

    def contexts(self, key: Array, B: int) -> tuple[Array, Array, Array]:
        """x (n, D, B), y (n, O, B) and tasks W (O, D, B), prompts last, with the law of (1/n) sum x x^T at N pairs.

        For normal inputs with N >= D, n = D pairs stand for the N: the columns of root T (D/N)^(1/2), with T of `bartlett`.
        Linear attention cannot tell them apart.
        """
        root, wishart = jnp.asarray(self.root), self.law == "normal" and self.N >= self.D
        rows = bartlett_rows(self.N, self.D) if wishart else self._rows(self.N)
        words = random_words(key, rows + (0 if self.basis else self.D), B)
        if wishart:
            u = bartlett(words[:rows], self.N, self.D, root.dtype) * (self.D / self.N) ** 0.5
        else:
            u = self._coordinates(words[:rows], self.N, root.dtype)
        x, W = mix(root, jnp.swapaxes(u, 0, 1)), self._tasks(words[rows:], B)  # (D, n, B)
        if self.basis:
            y = mix(jnp.asarray(self.root_w), x)
        else:
            y = functools.reduce(jnp.add, [W[0, i][None] * x[i] for i in range(self.D)])[None]
        return jnp.swapaxes(x, 0, 1), jnp.swapaxes(y, 0, 1), W

    def _tasks(self, words: Array, B: int) -> Array:
        """W (O, D, B)."""
        root_w = jnp.asarray(self.root_w)
        if self.basis:
            return jnp.broadcast_to(root_w[..., None], (self.D, self.D, B))
        return (root_w @ normal(words, root_w.dtype))[None]

    def _rows(self, tokens: int) -> int:
        """Random words that the coordinates of so many tokens take."""
        return tokens * self.D if self.law == "normal" else -(-tokens * self.D // 2)

    def _coordinates(self, words: Array, tokens: int, dtype) -> Array:
        """u (tokens, D, B): normal, or uniform on [-3^(1/2), 3^(1/2)] from 16 bits each: variance 1 - 2^-32."""
        if self.law == "normal":
            u = normal(words, dtype)
        else:
            cells = jnp.concatenate([words >> jnp.uint32(16), words & jnp.uint32(0xFFFF)]).astype(jnp.int32)
            u = (cells.astype(dtype) + 0.5) * (12**0.5 / 2**16) - 3**0.5
        return u[: tokens * self.D].reshape(tokens, self.D, -1)


def mix(M: Array, v: Array) -> Array:
    """M v, one matrix for all prompts: M (i, j), v (j, n, B)."""
    return (M @ v.reshape(v.shape[0], -1)).reshape(M.shape[0], *v.shape[1:])


def random_words(key: Array, rows: int, B: int) -> Array:
    """(rows, B) independent 32-bit words, both of every hash, in one call: several calls take seconds more to compile."""
    counts = jnp.arange(rows * B, dtype=jnp.uint32)
    return threefry_2x32(jax.random.key_data(key), counts).reshape(rows, B)


def unit(words: Array, dtype) -> Array:
    """Uniform on the midpoints of 2^23 equal cells of (0, 1), which float32 holds exactly."""
    return ((words >> jnp.uint32(9)).astype(jnp.int32).astype(dtype) + 0.5) / 2**23


def normal(words: Array, dtype) -> Array:
    """N(0, 1) = 2^(1/2) erf^-1(2 u - 1), |x| < 5.4."""
    return 2**0.5 * lax.erf_inv(2 * unit(words, dtype) - 1)


def bartlett_rows(N: int, D: int) -> int:
    """Random words that `bartlett` takes."""
    return D * (D - 1) // 2 + sum(k // 2 + k % 2 for k in range(N - D + 1, N + 1))


def bartlett(words: Array, N: int, D: int, dtype) -> Array:
    """Columns of T, lower triangular, with T T^T ~ Wishart_D(N, I): (D, D, B), entry [k, i] is T_ik.

    N(0, 1) below the diagonal, T_ii^2 ~ chi^2_{N-i}, exactly: -2 sum log u over (N-i)/2 uniforms, and the square of a normal
    where N - i is odd.
    """
    freedom, B = [N - i for i in range(D)], words.shape[1]
    normals = D * (D - 1) // 2 + sum(k % 2 for k in freedom)
    g, logs = normal(words[:normals], dtype), jnp.log(unit(words[normals:], dtype))
    rows, used, odd = [], 0, D * (D - 1) // 2
    for i, k in enumerate(freedom):
        chi2, used = -2 * jnp.sum(logs[used : used + k // 2], axis=0), used + k // 2
        if k % 2:
            chi2, odd = chi2 + g[odd] ** 2, odd + 1
        first = i * (i - 1) // 2
        rows.append(jnp.concatenate([g[first : first + i], jnp.sqrt(chi2)[None], jnp.zeros((D - 1 - i, B), dtype)]))
    return jnp.stack(rows, axis=1)


def inputs(
    N: int, root: ArrayLike, *, law: str = "normal", Sigma_w: ArrayLike | None = None, basis: bool = False
) -> Inputs:
    """Linear regression with contexts of N pairs, x = root u.

    Args:
        N: number of pairs before the query.
        root: (D, D), any square root of the covariance of x: Sigma = root root^T.
        law: of the coordinates of u, "normal" or "uniform".
        Sigma_w: covariance of the tasks; the identity by default.
        basis: whether the labels are those of a whole basis of tasks, whose losses sum to the mean over w.

    Raises:
        icldyn.BadArgument: a sentence that names the argument, what it must be and what it is.
    """
    root = checks.array("root", root, ndim=2)
    D = root.shape[0]
    root = checks.array("root", root, shape=(D, D))
    Sigma_w = np.eye(D) if Sigma_w is None else checks.covariance("Sigma_w", Sigma_w, D)
    return Inputs(root, square_root(Sigma_w), checks.integer("N", N, 1), checks.one_of("law", law, LAWS), bool(basis))
