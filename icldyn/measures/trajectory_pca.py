"""Joint principal components of what many runs predict on one fixed batch, at all their checkpoints.

A row holds all predictions of one checkpoint of one run; rows of every checkpoint of every run make F, column-centred. Exact
predictors are projected, never fitted. The density of checkpoints weights the fit, and smooth curves give Lissajous figures.
Source: Carroll et al. 2025, arXiv 2501.17745.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .. import checks
from .one_by_one import one_by_one

_eigenvectors = one_by_one(lambda G: np.linalg.eigh(G)[1], lambda G: jnp.linalg.eigh(G)[1])
_right_vectors = one_by_one(
    lambda F: np.linalg.svd(F, full_matrices=False)[2], lambda F: jnp.linalg.svd(F, full_matrices=False)[2]
)


class JointPCA(NamedTuple):
    """What was fitted: mean (P,), components (v, P) of unit length, and the shares of variance that they explain (v,)."""

    mean: Array
    components: Array
    shares: Array


def fit(F: ArrayLike, v: int = 2) -> JointPCA:
    """The v leading components of rows F (M, P): by the M x M Gram matrix F_c F_c^T where rows are longer than many, else by SVD.

    The largest entry of every component is positive.

    Raises:
        icldyn.BadArgument: if v is more than the rows allow, min(M - 1, P).
    """
    F = jnp.asarray(F)
    checks.integer("v", v, 1, min(F.shape[0] - 1, F.shape[1]))
    mean = jnp.mean(F, axis=0)
    F_c = F - mean[None]
    if F.shape[1] > F.shape[0]:
        U = _eigenvectors(F_c @ F_c.T)
        along = U[:, ::-1][:, :v].T @ F_c  # U^T F_c = diag(sigma) V^T
        components = along / jnp.maximum(jnp.linalg.norm(along, axis=1, keepdims=True), jnp.finfo(F.dtype).tiny)
    else:
        components = _right_vectors(F_c)[:v]
    largest = jnp.take_along_axis(components, jnp.argmax(jnp.abs(components), axis=1)[:, None], axis=1)
    components = components * jnp.where(largest < 0, -1, 1).astype(F.dtype)
    shares = jnp.sum((F_c @ components.T) ** 2, axis=0) / jnp.sum(F_c**2)
    return JointPCA(mean, components, shares)


def project(pca: JointPCA, rows: ArrayLike) -> Array:
    """Coordinates (..., v) of rows (..., P), fitted ones or others: the reference predictors."""
    rows = jnp.asarray(rows)
    return jnp.einsum("...p,vp->...v", rows - pca.mean.reshape((1,) * (rows.ndim - 1) + (-1,)), pca.components)
