"""Several linear regressions side by side in one context: task i reads the coordinates J_i of x, as in Chen et al. 2024.

    y_i = beta_i . x_{J_i} + e_i,    x ~ N(0, I),  beta_i ~ N(0, size_i^2 I),  e_i ~ N(0, sigma2_i),

the label of the query with the same noise. One task on all coordinates is plain linear regression. Blocks J_i may overlap.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .. import checks
from ..normals import normals
from ..struct import static, struct
from .linear_regression import Prompts


@struct
class BlockRegression:
    """The law of the prompts. Make one with `block_regression`, which checks its arguments."""

    size: ArrayLike  # (I,): standard deviation of the entries of beta_i
    sigma: ArrayLike | None  # (I,): standard deviation of the label noise; None where there is none, and none is drawn
    N: int = static()
    blocks: tuple[tuple[int, ...], ...] = static()

    @property
    def D(self) -> int:
        """Input dimension."""
        return 1 + max(map(max, self.blocks))

    @property
    def O(self) -> int:  # noqa: E743
        """Labels of an input, one for each task."""
        return len(self.blocks)

    def prompts_last(self, key: Array, B: int) -> tuple[Array, Array, Array]:
        """Tokens z = (x, y), (D + O, N, B), the query x_q (D, B) and its labels y_q (O, B), of B prompts."""
        N, D, O = self.N, self.D, self.O  # noqa: E741
        size, noisy = jnp.asarray(self.size), self.sigma is not None
        sizes = [D * N, D, sum(map(len, self.blocks)), *((O * N, O) if noisy else ())]
        ends = np.cumsum(sizes)
        x, x_q, beta, *noise = jnp.split(normals(key, (int(ends[-1]), B), size.dtype), ends[:-1])
        x = x.reshape(D, N, B)
        y, y_q, first = [], [], 0
        for i, block in enumerate(self.blocks):
            beta_i, first = size[i] * beta[first : first + len(block)], first + len(block)
            y.append(sum(b * x[a] for a, b in zip(block, beta_i[:, None], strict=True)))
            y_q.append(sum(b * x_q[a] for a, b in zip(block, beta_i, strict=True)))
        y, y_q = jnp.stack(y), jnp.stack(y_q)
        if noisy:
            sigma, e, e_q = jnp.asarray(self.sigma), noise[0].reshape(O, N, B), noise[1]
            y, y_q = y + sigma[:, None, None] * e, y_q + sigma[:, None] * e_q
        return jnp.concatenate([x, y]), x_q, y_q

    def sample(self, key: Array, B: int) -> Prompts:
        """The same B prompts, prompts first; the query's labels are noisy."""
        z, x_q, y_q = self.prompts_last(key, B)
        z = z.transpose(2, 1, 0)
        return Prompts(z[..., : self.D], z[..., self.D :], x_q.T, y_q.T)


def disjoint(sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Blocks of these sizes, one after the other."""
    sizes = [checks.integer(f"sizes[{i}]", d, 1) for i, d in enumerate(checks.entries("sizes", sizes))]
    ends = np.cumsum(sizes)
    return tuple(tuple(range(int(end) - d, int(end))) for d, end in zip(sizes, ends, strict=True))


def block_regression(
    N: int, blocks: Sequence[Sequence[int]], *, sigma2: float | ArrayLike = 0.0, size: float | ArrayLike | None = None
) -> BlockRegression:
    """Contexts of N tokens with a label for each block of coordinates.

    Args:
        N: tokens before the query.
        blocks: the coordinates of x that each task reads; `disjoint(sizes)` makes some. Together they are 0 ... D - 1.
        sigma2: variance of the label noise, of all tasks or of each.
        size: standard deviation of the entries of beta_i; 1 / |J_i|^(1/2) by default, so that beta_i . x has variance 1.

    Raises:
        icldyn.BadArgument: a sentence that names the argument, what it must be and what it is.
    """
    held = tuple(tuple(checks.integer("blocks", a, 0) for a in block) for block in checks.entries("blocks", blocks))
    seen = {a for block in held for a in block}
    if not held or not all(held) or any(len(set(b)) < len(b) for b in held) or seen != set(range(len(seen))):
        raise checks.refuse("blocks", "hold blocks of different coordinates, together 0 ... D - 1", blocks)
    noise = checks.of_each("sigma2", sigma2, len(held))
    scale = np.array([len(b) ** -0.5 for b in held]) if size is None else checks.of_each("size", size, len(held))
    return BlockRegression(scale, noise**0.5 if noise.any() else None, checks.integer("N", N, 1), held)
