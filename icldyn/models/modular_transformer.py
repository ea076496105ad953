"""One layer of attention and an MLP on the three tokens (a, b, =), read at "=" (Nanda et al. 2023, arXiv 2301.05217).

    x_j = W_E[token_j] + W_pos[j],    q = x_3 W_Q,    s_j = q . (x_j W_K) / sqrt d_head,    z = x_3 + sum_h softmax(s) x W_V W_O,
    logits = (z + relu(z W_in + b_in) W_out + b_out) W_U.

No layer norm, and "=" is always the same token: the query of a head is one vector, the scores and values of a token at a
place are tables over tokens, and only their weighted sums and the MLP see all pairs. Exact. Gradients of W_Q and W_K have rank 1.
Weights per head are (H, d, d_head), and (H, d_head, d) for W_O; "=" is token p.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from .. import checks
from ..struct import static, struct

Params = dict[str, Array]


@struct
class ModularTransformer:
    """The network. Make one with `modular_transformer`."""

    p: int = static()
    d: int = static()
    H: int = static()
    d_head: int = static()
    d_mlp: int = static()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights."""
        p, d, H, d_head, d_mlp = self.p, self.d, self.H, self.d_head, self.d_mlp
        heads = dict.fromkeys(("W_Q", "W_K", "W_V"), (H, d, d_head)) | {"W_O": (H, d_head, d)}
        ends = {"W_E": (p + 1, d), "W_pos": (3, d), "W_U": (d, p)}
        return ends | heads | {"W_in": (d, d_mlp), "b_in": (d_mlp,), "W_out": (d_mlp, d), "b_out": (d,)}

    def init(self, key: Array, scale: Array) -> Params:
        """N(0, 1) scale / sqrt d, of W_U scale / sqrt p, biases 0; the dtype is that of `scale`."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        drawn = jax.random.normal(key, (sum(sizes),), scale.dtype)  # at once: many draws take long to compile
        out, first = {}, 0
        for size, (name, shape) in zip(sizes, self.shapes.items(), strict=True):
            std = 0.0 if name.startswith("b_") else (self.p if name == "W_U" else self.d) ** -0.5
            out[name] = scale * std * drawn[first : first + size].reshape(shape)
            first += size
        return out

    def stream(self, params: Params, a: Array, b: Array) -> Array:
        """z (n, d): what the MLP reads."""
        W_E, W_pos = params["W_E"], params["W_pos"]
        end = W_E[self.p] + W_pos[2]
        x = jnp.concatenate([(W_E[None, : self.p] + W_pos[:2, None]).reshape(-1, self.d), end[None]])  # (2p + 1, d)
        query = jnp.einsum("d,hdr,her->he", end, params["W_Q"], params["W_K"]) / math.sqrt(self.d_head)
        score = x @ query.T  # (2p + 1, H)
        values = jnp.einsum("jd,hdr,hre->jhe", x, params["W_V"], params["W_O"])
        return end[None] + _weighted(score, values, a, b + self.p, 2 * self.p)

    def neurons(self, params: Params, a: Array, b: Array) -> Array:
        """relu(z W_in + b_in), (n, d_mlp)."""
        return self._neurons(params, self.stream(params, a, b))

    def apply(self, params: Params, a: Array, b: Array) -> Array:
        """Logits (n, p) of pairs a, b (n,) of tokens."""
        z, W_U = self.stream(params, a, b), params["W_U"]
        return z @ W_U + self._neurons(params, z) @ (params["W_out"] @ W_U) + (params["b_out"] @ W_U)[None]

    def _neurons(self, params: Params, z: Array) -> Array:
        return jax.nn.relu(z @ params["W_in"] + params["b_in"][None])


def _weighted(score: Array, values: Array, a: Array, b: Array, end: int) -> Array:
    """sum_h softmax over the rows a, b and `end` of `score` (.., H), of those of `values` (.., H, d): (n, d)."""
    s = jnp.stack([score[a], score[b], jnp.broadcast_to(score[end][None], (len(a), score.shape[1]))])
    weight = jax.nn.softmax(s, axis=0)  # (3, n, H)
    seen = [values[a], values[b]]
    return sum(jnp.einsum("nh,nhd->nd", w, v) for w, v in zip(weight[:2], seen, strict=True)) + weight[2] @ values[end]


def modular_transformer(p: int, *, d: int = 64, H: int = 4, d_head: int = 16, d_mlp: int = 256) -> ModularTransformer:
    """Of p tokens, width d, H heads of width d_head and an MLP of d_mlp neurons; d_head need not be d / H.

    Raises:
        icldyn.BadArgument: if a size is below 1, or p below 2.
    """
    sizes = {"d": d, "H": H, "d_head": d_head, "d_mlp": d_mlp}
    return ModularTransformer(
        p=checks.integer("p", p, 2), **{name: checks.integer(name, value, 1) for name, value in sizes.items()}
    )
