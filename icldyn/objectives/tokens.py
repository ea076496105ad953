"""Softmax attention over a dictionary, every seed with a dictionary of its own: exact and sampled losses.

    L = (1/2K) E sum_k (yhat_k - y_k)^2 = L* + (1/2K) sum_k d_k^T G d_k,    d_k = a_k - A_k,    G = Z^T Z + m tau I,

with a of `TokenAttention` and the minimiser A = G^-1 (Z^T Z~ + m tau [I, 0]) (Z (m, N) and Z~ (m, K)
hold the representations of the labelled and of all tokens). Exact for any law of lambda with E lambda lambda^T = I.

The params hold the dictionary, "V" and "z", and "A", which no step changes: their gradient is 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from numpy.typing import ArrayLike

from .. import checks
from ..models.encoder import Encoder
from ..models.token_attention import TokenAttention
from ..struct import static, struct
from ..tasks.representations import Representations
from .ridge import solve_positive

Params = dict[str, Array]
HELD = ("V", "z", "A")


@struct
class TokenPopulation:
    """The exact loss. Make one with `token_population`."""

    task: Representations
    model: TokenAttention

    @property
    def batch(self) -> int:
        """Columns of attention at once, by which the engine chooses its blocks."""
        return self.model.K

    def start(self, key: Array, scale: Array) -> Params:
        """A fresh dictionary, its minimiser, w = 0 and Q ~ N(0, scale^2); the dtype is that of `scale`."""
        key_dictionary, key_Q = jax.random.split(key)
        held = self.task.dictionary(key_dictionary, scale.dtype)
        w, Q = (self.model.shapes[name] for name in ("w", "Q"))
        held["A"] = self.minimiser(held["z"])
        return held | {"w": jnp.zeros(w, scale.dtype), "Q": scale * jax.random.normal(key_Q, Q, scale.dtype)}

    def minimiser(self, z: Array) -> Array:
        """A (N, K): labels are copied for k <= N; for k > N ridge regression over f with penalty m tau."""
        return self._ridge(z, self.task.m)

    def least(self, params: Params) -> Array:
        """L* = (1/2K) sum_{k>N} [m tau + |z_k|^2 - z_k^T Z A_k]."""
        N, (m, K), z = self.model.N, params["z"].shape, params["z"]
        noise = m * jnp.asarray(self.task.tau, z.dtype)
        seen = jnp.sum(z[:, N:] * (z[:, :N] @ params["A"][:, N:]))
        return ((K - N) * noise + jnp.sum(z[:, N:] ** 2) - seen) / (2 * K)

    def excess(self, params: Params) -> Array:
        """L - L*, without cancellation."""
        return self._mean_square(params["z"], self._gap(params)) / 2

    def loss(self, params: Params, key: Array | None = None) -> Array:
        """L; the key is ignored."""
        held = lax.stop_gradient({name: params[name] for name in HELD})
        return self.excess(params | held) + self.least(held)

    def inference_error(self, params: Params, mean: ArrayLike, deviation: ArrayLike) -> Array:
        """(1/K) E |yhat - yhat*|^2 over tasks lambda ~ N(mean 1, deviation^2 I), yhat* the answer of A.

        For tasks of the training law, mean 0 and deviation 1, it is 2 (L - L*).
        """
        gap, z = self._gap(params), params["z"]
        tau, mean, deviation = (jnp.asarray(a, z.dtype) for a in (self.task.tau, mean, deviation))
        along = jnp.sum((jnp.sum(z[:, : self.model.N], 0) @ gap) ** 2) + self.task.m * tau * jnp.sum(gap**2)
        return deviation**2 * self._mean_square(z, gap) + mean**2 * along / self.model.K

    def best_error(self, params: Params) -> Array:
        """(1/K) E |yhat - y_best|^2, y_best the ridge regression with penalty N tau."""
        z = params["z"]
        gap = self.model.combined(params, params["V"]) - self._ridge(z, self.model.N)
        return self._mean_square(z, gap)

    def _gap(self, params: Params) -> Array:
        """a - A (N, K)."""
        return self.model.combined(params, params["V"]) - params["A"]

    def _ridge(self, z: Array, count: int) -> Array:
        """(N, K): [I, (Z^T Z + count tau I)^-1 Z^T Z_Q]."""
        Z, identity = z[:, : self.model.N], jnp.eye(self.model.N, dtype=z.dtype)
        penalty = count * jnp.asarray(self.task.tau, z.dtype)
        unseen = solve_positive(Z.T @ Z + penalty * identity, Z.T @ z[:, self.model.N :], 1)
        return jnp.concatenate([identity, unseen], axis=1)

    def _mean_square(self, z: Array, gap: Array) -> Array:
        """(1/K) E |y_1:N gap|^2 = (1/K) sum_k gap_k^T G gap_k."""
        noise = self.task.m * jnp.asarray(self.task.tau, z.dtype)
        return (jnp.sum((z[:, : self.model.N] @ gap) ** 2) + noise * jnp.sum(gap**2)) / self.model.K


@struct
class TokenSampled:
    """The loss of `batch` fresh tasks lambda ~ N(0, I) a step. Make one with `token_sampled`."""

    population: TokenPopulation
    batch: int = static()

    def loss(self, params: Params, key: Array) -> Array:
        """(1/2K) mean_B sum_k (yhat_k - y_k)^2."""
        held, model = lax.stop_gradient({name: params[name] for name in HELD}), self.population.model
        y = self.population.task.labels(key, held["z"], self.batch)
        error = model.apply(params, held["V"], y[:, : model.N]) - y
        return jnp.sum(error**2) / (2 * model.K * self.batch)


@struct
class TokenEncoder:
    """`batch` fresh tasks a step, answered by a deep transformer from tokens (v_k, y_k, 1), or (v_k, 0, 0) without a label.

    Make one with `token_encoder`. The network's weights are params["net"].
    """

    population: TokenPopulation
    net: Encoder = static()
    batch: int = static()

    def start(self, key: Array, scale: Array) -> Any:
        """A fresh dictionary and its minimiser, as for one layer, and the usual initial weights of flax, times scale."""
        key_held, key_net = jax.random.split(key)
        start = self.population.start(key_held, scale)
        held = {name: start[name] for name in HELD}
        net = self.net.init(key_net, self._tokens(held["V"], jnp.zeros((1, held["V"].shape[1]), scale.dtype)))
        return held | {"net": jax.tree.map(lambda w: scale * w, net["params"])}

    def answer(self, params: Any, y: Array) -> Array:
        """yhat (B, K) for labels y (B, K), of which the network sees the first N."""
        held = lax.stop_gradient({name: params[name] for name in HELD})
        return self.net.apply({"params": params["net"]}, self._tokens(held["V"], y))

    def loss(self, params: Any, key: Array) -> Array:
        """(1/2K) mean_B sum_k (yhat_k - y_k)^2."""
        y = self.population.task.labels(key, lax.stop_gradient(params["z"]), self.batch)
        return jnp.mean((self.answer(params, y) - y) ** 2) / 2

    def inference_error(self, params: Any, lam: Array, noise: Array) -> Array:
        """(1/K) mean |yhat - yhat*|^2 over given tasks lam (P, m) and noise (P, K) ~ N(0, 1), yhat* the answer of A."""
        z = params["z"]
        lam, noise, tau = (jnp.asarray(a, z.dtype) for a in (lam, noise, self.population.task.tau))
        y = lam @ z + jnp.sqrt(tau * jnp.sum(lam**2, axis=1, keepdims=True)) * noise
        return jnp.mean((self.answer(params, y) - y[:, : self.net.N] @ params["A"]) ** 2)

    def _tokens(self, V: Array, y: Array) -> Array:
        """(B, K, d + 2)."""
        (d, K), seen = V.shape, (jnp.arange(V.shape[1]) < self.net.N).astype(V.dtype)
        rows = [jnp.broadcast_to(V.T[None], (len(y), K, d)), (y * seen[None])[..., None]]
        return jnp.concatenate([*rows, jnp.broadcast_to(seen[None, :, None], (len(y), K, 1))], axis=2)


def token_population(task: Representations, H: int) -> TokenPopulation:
    """The exact loss of H heads; its `start` is the `init` of an experiment.

    Raises:
        icldyn.BadArgument: if H is below 1.
    """
    return TokenPopulation(task, TokenAttention(d=task.d, K=task.K, N=task.N, H=checks.integer("H", H, 1)))


def token_sampled(task: Representations, H: int, batch: int) -> TokenSampled:
    """SGD on it: `batch` fresh tasks a step.

    Raises:
        icldyn.BadArgument: if H or the batch is below 1.
    """
    return TokenSampled(token_population(task, H), batch=checks.integer("batch", batch, 1))


def token_encoder(task: Representations, net: Encoder, batch: int) -> TokenEncoder:
    """A deep network on fresh tasks; its `start` is the `init` of an experiment.

    Raises:
        icldyn.BadArgument: if the network has another N, or the batch is below 1.
    """
    if net.N != task.N:
        raise checks.refuse("net", f"have the task's N = {task.N}", net.N)
    return TokenEncoder(token_population(task, 1), net=net, batch=checks.integer("batch", batch, 1))
