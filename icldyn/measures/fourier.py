"""What a network trained on addition mod p has of single frequencies (Nanda et al. 2023, arXiv 2301.05217; Gromov 2023).

The Fourier basis of R^p, p odd, has the rows 1/sqrt p, then cos(2 pi k n/p) and sin(2 pi k n/p), normalised, for k = 1 ... M,
M = (p - 1)/2. A measure of all frequencies has them in order, k = 1 first; a choice of some is a mask (M,), of zeros and ones.
Logits are those of all pairs, (p, p, p): first token, second token, answer.

With u_cos and u_sin the unit vectors along cos(2 pi k (a + b)/p) and sin(2 pi k (a + b)/p) over pairs, a frequency's part of
the logits L is C_k = u_cos u_cos^T L + u_sin u_sin^T L. Excluded logits are L - sum_k C_k over the key frequencies; restricted
ones are sum_k C_k and the mean over pairs of the rest.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .. import checks


def basis(p: int) -> np.ndarray:
    """F (p, p), orthonormal rows.

    Raises:
        icldyn.BadArgument: if p is not odd and at least 3.
    """
    if checks.integer("p", p, 3) % 2 == 0:
        raise checks.refuse("p", "be odd", p)
    angle = 2 * np.pi / p * np.arange(1, (p + 1) // 2)[:, None] * np.arange(p)
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=1).reshape(p - 1, p)
    return np.concatenate([np.full((1, p), p**-0.5), (2 / p) ** 0.5 * waves])


def power(W: Array) -> Array:
    """||c_cos,k||^2 + ||c_sin,k||^2 with c = F W, of weights W (p, d), for instance W_E[:p]: (M,)."""
    return _by_frequency(jnp.sum(_transformed(W) ** 2, axis=1))


def top_share(power: Array, count: int = 5) -> Array:
    """The share of the `count` largest of the powers (M,)."""
    return jnp.sum(jax.lax.top_k(power, count)[0]) / jnp.sum(power)


def gini(power: Array) -> Array:
    """sum_i (2 i - M - 1) x_i / (M sum x) for powers x ascending: 0 if all are equal, 1 - 1/M if one has all."""
    x, M = jnp.sort(power), len(power)
    return jnp.asarray(2 * np.arange(1, M + 1) - M - 1, x.dtype) @ x / (M * jnp.sum(x))


def inverse_participation(A: Array) -> Array:
    """sum_k (power_k / sum power)^2 of every column of A (p, N): 1 for a single frequency, 1/M for all alike; (N,)."""
    powers = _by_frequency(_transformed(A) ** 2)
    return jnp.sum((powers / jnp.sum(powers, axis=0, keepdims=True)) ** 2, axis=0)


def leading(power: Array, count: int) -> Array:
    """The `count` largest of the powers (M,), as a mask (M,)."""
    return jnp.zeros_like(power).at[jax.lax.top_k(power, count)[1]].set(1)


def projector(chosen: Array) -> Array:
    """sum over the frequencies chosen (M,) of the projector on span{cos, sin}, (p, p)."""
    F = jnp.asarray(basis(2 * len(chosen) + 1)[1:], chosen.dtype)
    return (F * jnp.repeat(chosen, 2)[:, None]).T @ F


def neuron_shares(neurons: Array) -> Array:
    """Shares of a neuron's variance over pairs in the blocks {1, cos k, sin k}^2: of `neurons` (p, p, n), (M, n).

    A neuron that is the same for all pairs has shares 0.
    """
    F = jnp.asarray(basis(len(neurons)), neurons.dtype)
    centred = neurons - jnp.mean(neurons, axis=(0, 1), keepdims=True)
    squares = jnp.einsum("ia,jb,abn->ijn", F, F, centred) ** 2
    const, waves = squares[0, 1:] + squares[1:, 0], squares[1:, 1:]
    M = (len(neurons) - 1) // 2
    blocks = jnp.einsum("kckdn->kn", waves.reshape(M, 2, M, 2, -1))
    total = jnp.sum(squares, axis=(0, 1))
    return (_by_frequency(const) + blocks) / jnp.maximum(total, jnp.finfo(total.dtype).tiny)[None]


def phase_alignment(A: Array, B: Array, W: Array) -> Array:
    """Mean of cos(phi1 + phi2 - phi3) over neurons, of A, B (p, N) and W (N, p), at the frequency that is largest in all.

    Neurons count by the product of their three amplitudes there. 1 for the closed form of Gromov, about 0 at random.
    """
    a, b, w = (_amplitudes(M) for M in (A, B, W.T))  # (M, N), complex
    product = a * b * jnp.conj(w)
    size = jnp.abs(product)
    own = jnp.argmax(size, axis=0)[None]
    product, size = (jnp.take_along_axis(x, own, axis=0) for x in (jnp.real(product), size))
    return jnp.sum(product) / jnp.sum(size)


def key_frequencies(shares: Array, least: int = 3, share: float = 0.5) -> Array:
    """Frequencies to which at least `least` neurons belong, with more than `share` of their variance; a mask (M,)."""
    own = jnp.argmax(shares, axis=0)[None] == jnp.arange(len(shares))[:, None]
    return (jnp.sum(own & (shares > share), axis=1) >= least).astype(shares.dtype)


def waves(logits: Array) -> Array:
    """u_cos^T L and u_sin^T L of every frequency, (M, 2, p): all that restricted logits need beside the mean of L."""
    p = len(logits)
    along = _along(p, logits.dtype)  # (2M, p): of the sum a + b
    return (along @ _by_sum(logits)).reshape((p - 1) // 2, 2, p)


def restricted(logits: Array, keys: Array) -> Array:
    """sum_k C_k + mean (L - sum_k C_k) over the key frequencies, a mask (M,): (p, p, p)."""
    return restricted_of(waves(logits), jnp.mean(logits, axis=(0, 1)), keys)


def restricted_of(waves: Array, mean: Array, keys: Array) -> Array:
    """`restricted`, from the `waves` (M, 2, p) of the logits and their mean over pairs (p,); waves have no mean."""
    p = waves.shape[2]
    part = _along(p, waves.dtype).T @ (waves * keys[:, None, None]).reshape(p - 1, p)  # (p, p): of the sum
    return (part + mean[None])[_sums(p)]


def excluded(logits: Array, keys: Array) -> Array:
    """L - sum_k C_k, (p, p, p)."""
    p = len(logits)
    part = _along(p, logits.dtype).T @ (waves(logits) * keys[:, None, None]).reshape(p - 1, p)
    return logits - part[_sums(p)]


def cross_entropy(logits: Array, weight: Array) -> Array:
    """Mean of -log softmax(logits)[a + b mod p] over pairs, weighted by `weight` (p, p), such as 1 on those that train."""
    p = len(logits)
    right = jnp.take_along_axis(logits, jnp.asarray(_sums(p))[..., None], axis=2)[..., 0]
    return jnp.sum(weight * (jax.nn.logsumexp(logits, axis=2) - right)) / jnp.sum(weight)


def _transformed(W: Array) -> Array:
    return jnp.asarray(basis(len(W))[1:], W.dtype) @ W


def _by_frequency(squares: Array) -> Array:
    """Sums over cos and sin: (2M, ...) to (M, ...)."""
    return squares[0::2] + squares[1::2]


def _amplitudes(W: Array) -> Array:
    """e^(i phi) times the amplitude of cos(2 pi k n/p + phi) in every column of W (p, N), (M, N)."""
    c = _transformed(W)
    return jax.lax.complex(c[0::2], -c[1::2])


def _sums(p: int) -> np.ndarray:
    """a + b mod p, (p, p)."""
    return np.add.outer(np.arange(p), np.arange(p)) % p


def _along(p: int, dtype: jnp.dtype) -> Array:
    """u_cos and u_sin of every frequency as functions of the sum a + b mod p, of unit length over pairs: (2M, p)."""
    return jnp.asarray(basis(p)[1:] / p**0.5, dtype)


def _by_sum(logits: Array) -> Array:
    """Sums of the logits over the pairs with the same a + b mod p, (p, p)."""
    p = len(logits)
    second = (np.arange(p)[:, None] - np.arange(p)) % p  # [c, a] is b
    return jnp.sum(logits[np.arange(p)[None], second], axis=1)
