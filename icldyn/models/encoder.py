"""A deep transformer encoder, of flax: embedding, L layers of attention and a network of two layers, read-out of one number.

    x <- norm(x + attention(x)),    x <- norm(x + W_2 relu(W_1 x)),    layer norm after each sum, as in Vaswani et al. 2017.

Tokens attend to the first N of the sequence alone, without positions; heads split the width. No dropout.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from .. import checks


class Layer(nn.Module):
    """One layer; takes and returns x (B, K, width), and returns nothing else."""

    H: int
    hidden: int
    N: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, None]:
        """The next x."""
        of_type = {"dtype": x.dtype, "param_dtype": x.dtype}
        normed = functools.partial(nn.LayerNorm, force_float32_reductions=False, **of_type)
        x = normed()(x + nn.MultiHeadDotProductAttention(self.H, **of_type)(x, x[:, : self.N]))
        inner = nn.relu(nn.Dense(self.hidden, **of_type)(x))
        return normed()(x + nn.Dense(x.shape[-1], **of_type)(inner)), None


class Encoder(nn.Module):
    """The network. Make one with `encoder`."""

    layers: int
    H: int
    width: int
    hidden: int
    N: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Answers (B, K) to tokens (B, K, n)."""
        of_type = {"dtype": tokens.dtype, "param_dtype": tokens.dtype}
        x = nn.Dense(self.width, **of_type)(tokens)
        # one layer is compiled, and its weights are stacked along a first axis
        stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers)
        x, _ = stack(self.H, self.hidden, self.N)(x)
        return jnp.squeeze(nn.Dense(1, **of_type)(x), axis=-1)


def encoder_flops(net: Encoder, B: int, K: int, n: int) -> float:
    """Floating-point operations of one step of training on B sequences of K tokens of n numbers: 3 times those of an answer.

    Products alone, twice their multiplications; at a given width the number of heads only costs exponentials, which are left out.
    """
    w, N = net.width, net.N
    layer = (
        K * (2 * w**2 + 2 * w * net.hidden) + N * 2 * w**2 + 2 * K * N * w
    )  # query, output, network; keys, values; scores
    return 6.0 * B * (K * (n * w + w) + net.layers * layer)


def encoder(N: int, *, layers: int = 4, H: int = 8, width: int = 256, hidden: int = 512) -> Encoder:
    """Keys and values are the first N tokens; by default the four layers of arXiv 2408.10147.

    Raises:
        icldyn.BadArgument: if a size is below 1, or the heads do not split the width.
    """
    sizes = {
        name: checks.integer(name, value, 1) for name, value in {"layers": layers, "H": H, "hidden": hidden}.items()
    }
    if checks.integer("width", width, 1) % H:
        raise checks.refuse("width", f"be a multiple of `H`, {H}", width)
    return Encoder(width=width, N=checks.integer("N", N, 1), **sizes)
