"""The same training in plain JAX: a Python loop around a jitted step, and vmap over seeds of a scan over steps."""

import functools

import jax
import jax.numpy as jnp


def all_tokens(weights, z):
    """The last entry of the query's output, every token's output computed."""
    scores = jnp.einsum("pmi,hij,pnj->phmn", z, weights["key_query"], z) / (z.shape[1] - 1)
    return jnp.einsum("phmn,pnj,hij->pmi", scores, z, weights["value"])[:, -1, -1]


def query_only(weights, z):
    """The same number from the query's row alone."""
    scores = jnp.einsum("pi,hij,pnj->phn", z[:, -1], weights["key_query"], z) / (z.shape[1] - 1)
    return jnp.einsum("phn,pnj,hj->p", scores, z, weights["value"][:, -1])


def softmax_all_tokens(weights, z):
    """The query's answer of softmax attention to the context, every token's output computed."""
    scores = jax.nn.softmax(jnp.einsum("pmi,hij,pnj->phmn", z, weights["key_query"], z[:, :-1]))
    return jnp.einsum("phmn,pnj,hij->pmi", scores, z[:, :-1], weights["value"])[:, -1, -1]


def softmax_query_only(weights, z):
    """The same number from the query's row alone."""
    scores = jax.nn.softmax(jnp.einsum("pi,hij,pnj->phn", z[:, -1], weights["key_query"], z[:, :-1]))
    return jnp.einsum("phn,pnj,hj->p", scores, z[:, :-1], weights["value"][:, -1])


def fresh(key, s, batch, N):
    """Tokens (B, N+1, D+1) and labels (B,) of new prompts."""
    key_x, key_w = jax.random.split(key)
    x = jax.random.normal(key_x, (batch, N + 1, s.size), s.dtype) * jnp.sqrt(s)
    y = jnp.einsum("pnd,pd->pn", x, jax.random.normal(key_w, (batch, s.size), s.dtype))
    return jnp.concatenate([x, y.at[:, -1].set(0)[..., None]], axis=2), y[:, -1]


def descended(answer, weights, z, y, lr):
    """One step of gradient descent on the mean square."""
    grads = jax.grad(lambda w: jnp.mean((answer(w, z) - y) ** 2))(weights)
    return jax.tree.map(lambda w, g: w - lr * g, weights, grads)


@functools.partial(jax.jit, static_argnums=(0, 1))
def step(answer, draw, weights, key, lr):
    """A step of one seed; `draw` (key) -> tokens and labels."""
    return descended(answer, weights, *draw(key), lr)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def ensemble(answer, draw, steps, weights, keys, lr):
    """vmap over seeds of a scan over steps."""

    def one(weights, key):
        def body(w, k):
            return descended(answer, w, *draw(k), lr), None

        return jax.lax.scan(body, weights, jax.random.split(key, steps))[0]

    return jax.vmap(one)(weights, keys)
