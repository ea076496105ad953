"""What is best to predict in a Markov chain whose transitions are unknown, at every position of a sequence.

With i = x_t, n_ij the transitions i -> j and n_j the tokens j up to t, rows ~ Dirichlet(alpha 1_k):

    Bayes    P(x_{t+1} = j | x_1 ... x_t) = (n_ij + alpha) / (n_i. + k alpha),    n_i. = sum_j n_ij
    unigram  (n_j + alpha) / (t + k alpha)
    uniform  1/k

Bayes leaves out what a stationary x_1 says of P. Unigram is a level to compare with, not the best that counts of tokens can do.
Of sequences (B, T + 1) predictions are (B, T, k), and losses -log P(x_{t+1}) are (B, T), in nats.
"""

import jax
import jax.numpy as jnp
from jax import Array


def bayes(tokens: Array, k: int, alpha: Array) -> Array:
    """(n_ij + alpha) / (n_i. + k alpha)."""
    said = jax.nn.one_hot(tokens, k, dtype=jnp.result_type(float))  # (B, T + 1, k)
    moves = said[:, :-1, :, None] * said[:, 1:, None, :]  # from x_t to x_{t+1}, (B, T, k, k)
    n = jnp.cumsum(moves, axis=1) - moves  # before x_{t+1} is known
    n_i = jnp.sum(said[:, :-1, :, None] * n, axis=2)
    alpha = jnp.asarray(alpha, n.dtype)
    return (n_i + alpha) / (jnp.sum(n_i, axis=2, keepdims=True) + k * alpha)


def unigram(tokens: Array, k: int, alpha: Array) -> Array:
    """(n_j + alpha) / (t + k alpha)."""
    n = jnp.cumsum(jax.nn.one_hot(tokens[:, :-1], k, dtype=jnp.result_type(float)), axis=1)
    alpha = jnp.asarray(alpha, n.dtype)
    return (n + alpha) / (jnp.sum(n, axis=2, keepdims=True) + k * alpha)


def uniform(tokens: Array, k: int) -> Array:
    """1/k."""
    return jnp.full((*tokens[:, :-1].shape, k), 1 / k)


def losses(predicted: Array, tokens: Array) -> Array:
    """-log P(x_{t+1}) of predictions (B, T, k), (B, T)."""
    return -jnp.log(jnp.take_along_axis(predicted, tokens[:, 1:, None], axis=2)[..., 0])
