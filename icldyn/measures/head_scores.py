"""What heads look at, from their patterns A (layers, B, H, t, s) on sequences (B, t): scores (layers, H); and what they copy.

    previous token  mean_t A[t, t-1]
    induction       mean over queries t whose token stood before of sum_{s <= t, x_{s-1} = x_t} A[t, s]
    copying         share of eigenvalues of W_E W_V W_O W_U with a positive real part

Induction is attention to what came after earlier copies of a token. It is large by chance where there are few tokens: compare
with `uniform_attention` on the same sequences. Sources: Olsson et al. 2022, Elhage et al. 2021 for the eigenvalues.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike


def previous_token(A: Array) -> Array:
    """mean_t A[t, t-1] over queries that have a token before them, (layers, H)."""
    return jnp.mean(jnp.diagonal(A, offset=-1, axis1=-2, axis2=-1), axis=(1, 3))


def induction(A: Array, tokens: Array) -> Array:
    """Mean attention to successors of earlier copies, over the queries of all sequences that have one, (layers, H)."""
    query, after = _copies(tokens)
    seen = jnp.einsum("lbhts,bts->lhbt", A, after.astype(A.dtype))
    return jnp.sum(jnp.where(query[None, None], seen, 0), axis=(2, 3)) / jnp.maximum(jnp.sum(query), 1).astype(A.dtype)


def head_scores(A: Array, tokens: Array) -> Array:
    """Previous-token and induction score, (2, layers, H)."""
    return jnp.stack([previous_token(A), induction(A, tokens)])


def uniform_attention(tokens: Array, dtype: jnp.dtype = jnp.float32) -> Array:
    """Patterns (1, B, 1, t, t) of a head that looks at itself and all before alike: the scores of chance."""
    B, t = tokens.shape
    A = jnp.tril(jnp.ones((t, t), dtype)) / jnp.arange(1, t + 1, dtype=dtype)[:, None]
    return jnp.broadcast_to(A, (1, B, 1, t, t))


def copying(W_E: ArrayLike, W_V: ArrayLike, W_O: ArrayLike, W_U: ArrayLike) -> np.ndarray:
    """Share of eigenvalues of W_E W_V W_O W_U with a positive real part, of all min(k, d_head) that may differ from 0.

    On the host, by the d_head x d_head core (W_O W_U)(W_E W_V), or whole where there are fewer tokens. Axes before the last two,
    such as seeds, layers or heads, are those of the result: W_E (..., k, d), W_V (..., d, d_head), W_O (..., d_head, d) and
    W_U (..., d, k).
    """
    read, write = np.asarray(W_E) @ np.asarray(W_V), np.asarray(W_O) @ np.asarray(W_U)
    core = write @ read if read.shape[-1] <= read.shape[-2] else read @ write
    return (np.linalg.eigvals(core).real > 0).mean(-1)


def _copies(tokens: Array) -> tuple[Array, Array]:
    """Queries (B, t) whose token stood before, and where successors of such copies are, (B, t, s), s <= t."""
    same = tokens[:, :, None] == tokens[:, None, :]
    query = jnp.any(jnp.tril(same, -1), axis=2)
    return query, jnp.pad(jnp.tril(same, -1)[:, :, :-1], ((0, 0), (0, 0), (1, 0)))
