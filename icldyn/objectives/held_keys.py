"""An intervention: what a few directions of the residual stream may do to the keys, from one step on.

W_K (d, d_head) of a head is the key side of W_QK = W_Q W_K^T. With an orthonormal basis U (d, r), P = U U^T and a step D of W_K,

    D <- D - freeze P D - confine (I - P) D - remove P (W_K + D),    from step `since` on:

freeze = 1 keeps P W_K as it is, confine = 1 all but that, and remove = 1 keeps the keys blind to U. U is one of three:
- "own", the r leading directions of the key side at that step, found by one step of orthogonal iteration,
  U <- orth(W_QK^T W_QK U), with every step of training before;
- "random", r random directions of the stream, a null distribution;
- "within", r random directions of the d_head that the head's keys span at that step: a stricter one, as these too carry its keys.

The params hold the intervention, as {"net": weights, "arm": {...}}: arms of a study run one compiled program, and the same seed
has the same weights and data in all arms until `since`. No factorisation of LAPACK is called within the program, which would stop
two of its blocks on as many cores.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.tree_util import Partial
from numpy.typing import ArrayLike

from .. import checks
from ..models.transformer import Transformer
from ..struct import struct
from .next_token import NextToken

ACTIONS = ("none", "freeze", "confine", "remove")
DIRECTIONS = ("own", "random", "within")


@struct
class HeldKeys:
    """The loss of the network within such params. Make one with `held_keys`."""

    plain: NextToken

    @property
    def net(self) -> Transformer:
        """The network."""
        return self.plain.net

    @property
    def batch(self) -> int:
        """Sequences of a step."""
        return self.plain.batch

    @property
    def in_turn(self) -> bool:
        """As without an intervention."""
        return self.plain.in_turn

    def weights(self, params: Any) -> Any:
        """Of the network."""
        return params["net"]

    def losses(self, params: Any, tokens: Array) -> Array:
        """-log p(x_{t+1}) of sequences (B, T + 1): (B, T), in nats."""
        return self.plain.losses(params["net"], tokens)

    def patterns(self, params: Any, tokens: Array) -> Array:
        """Where heads look on tokens (B, t), (layers, B, H, t, t)."""
        return self.plain.patterns(params["net"], tokens)

    def draw(self, key: Array) -> Array:
        """The sequences of a step, (batch, T + 1)."""
        return self.plain.draw(key)

    def loss(self, params: Any, key: Array) -> Array:
        """L; nothing moves the arm."""
        return self.plain.loss(params["net"], key)


class HeldState(NamedTuple):
    """Of the optimiser: that of the network, steps taken, and U (layers, H, d, r)."""

    inner: Any
    count: Array
    U: Array


def held_keys(objective: NextToken) -> HeldKeys:
    """The same loss, for params with an intervention."""
    return HeldKeys(objective)


def arm(
    objective: HeldKeys,
    action: str = "none",
    *,
    rank: int,
    since: int,
    directions: str = "own",
    draw: int = 0,
    layers: ArrayLike | None = None,
) -> Partial:
    """(key, scale) -> params, the `init` of an experiment: the network's start and an intervention.

    Args:
        objective: of `held_keys`.
        action: "none", "freeze", "confine" or "remove".
        rank: r, the same for all arms of a study, as it is a shape.
        since: the first step that is changed.
        directions: "own", "random" or "within".
        draw: which random one; a seed's are independent of its weights and data.
        layers: for every layer whether it is held, 0 or 1; all unless said.

    Raises:
        icldyn.BadArgument: if the rank is above d_head, that above d, or an argument is not what it must be.
    """
    net = objective.net
    if net.d_head > net.d:
        raise checks.refuse("objective", f"have heads no wider than its stream, d = {net.d}", net.d_head)
    checks.one_of("action", action, ACTIONS)
    held = checks.of_each("layers", 1.0 if layers is None else layers, net.layers)
    strengths = {name: held * (name == action) for name in ACTIONS[1:]}
    checks.one_of("directions", directions, DIRECTIONS)
    about = {"since": float(checks.integer("since", since, 0))}
    about |= {name: float(name == directions) for name in ("own", "within")}
    draw = checks.integer("draw", draw, 0)
    return Partial(_start, objective, strengths | about, draw, np.zeros(checks.integer("rank", rank, 1, net.d_head)))


def _start(objective: HeldKeys, told: dict[str, Array], draw: Array, rank: Array, key: Array, scale: Array) -> Any:
    net = objective.net
    shape = (net.layers, net.H, net.d, len(rank))
    random = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 1), draw), shape, scale.dtype)
    told = {name: jnp.asarray(a, scale.dtype) for name, a in told.items()}
    return {"net": objective.plain.start(key, scale), "arm": told | {"U": orthonormal(random)}}


def holding(lr: Array, *, inner: Any, **settings: float) -> optax.GradientTransformation:
    """The optimiser `inner(lr, **settings)` of the network, its steps of W_K changed as above."""
    optimiser = inner(lr, **settings)

    def init(params: Any) -> HeldState:
        return HeldState(optimiser.init(params["net"]), jnp.asarray(0), params["arm"]["U"])

    def update(grads: Any, state: HeldState, params: Any) -> tuple[Any, HeldState]:
        net, told = params["net"], params["arm"]
        steps, inner_state = optimiser.update(grads["net"], state.inner, net)
        layers = [f"layer_{n}" for n in range(len(state.U))]
        W_Q, W_K = (jnp.stack([net[layer][name] for layer in layers]) for name in ("W_Q", "W_K"))
        active = state.count >= told["since"]
        U = jnp.where((told["own"] > 0) & ~active, orthonormal(turned_to_keys(W_Q, W_K, state.U)), state.U)
        U = jnp.where((told["within"] > 0) & ~active, drawn_within(W_K, told["U"]), U)
        D = changed(jnp.stack([steps[layer]["W_K"] for layer in layers]), W_K, U, told, active.astype(U.dtype))
        steps = steps | {layer: steps[layer] | {"W_K": D[n]} for n, layer in enumerate(layers)}
        rest = jax.tree.map(jnp.zeros_like, told)
        return {"net": steps, "arm": rest}, HeldState(inner_state, state.count + 1, U)

    return optax.GradientTransformation(init, update)


def changed(D: Array, W_K: Array, U: Array, told: dict[str, Array], active: Array) -> Array:
    """D - freeze P D - confine (I - P) D - remove P (W_K + D), of all heads (layers, H, d, d_head)."""
    freeze, confine, remove = (active * told[name].reshape(-1, 1, 1, 1) for name in ACTIONS[1:])

    def inside(M: Array) -> Array:
        return jnp.einsum("lhdr,lhfr,lhfe->lhde", U, U, M)

    return D - freeze * inside(D) - confine * (D - inside(D)) - remove * inside(W_K + D)


def turned_to_keys(W_Q: Array, W_K: Array, U: Array) -> Array:
    """W_QK^T W_QK U of all heads, (layers, H, d, r), from factors (layers, H, d, d_head)."""
    below = jnp.einsum("lhqe,lhke,lhkr->lhqr", W_Q, W_K, U)
    return jnp.einsum("lhke,lhqe,lhqr->lhkr", W_K, W_Q, below)


def drawn_within(W_K: Array, random: Array) -> Array:
    """Random directions (layers, H, d, r) of the column spaces of W_K (layers, H, d, d_head), from uniform ones of R^d.

    The first d_head rows of uniform directions of R^d span uniform ones of R^d_head.
    """
    return jnp.einsum("lhde,lher->lhdr", orthonormal(W_K), orthonormal(random[:, :, : W_K.shape[-1]]))


def orthonormal(U: Array) -> Array:
    """Columns (..., d, r) made orthonormal from the first on, by Gram and Schmidt, each twice against those before it."""
    columns: list[Array] = []
    for u in jnp.moveaxis(U, -1, 0):
        u = _unit(u)
        for v in columns * 2:
            u = _unit(u - v * jnp.sum(u * v, axis=-1, keepdims=True))
        columns.append(u)
    return jnp.stack(columns, axis=-1)


def _unit(u: Array) -> Array:
    return u / jnp.maximum(jnp.sqrt(jnp.sum(u**2, axis=-1, keepdims=True)), jnp.finfo(u.dtype).tiny)
