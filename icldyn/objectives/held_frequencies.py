"""An intervention: from one step on, an embedding of p tokens keeps to a few frequencies, or to all others.

With an update D of W_E[:p] (p, d), from step `first` on

    W_E[:p] <- Q (W_E[:p] + D),    Q = P + 1 1^T/p (inside) or I - P (outside),

P the projector of R^p on cos and sin of the `count` frequencies that have most power in the seed's own W_E[:p] at that step. Or,
for the null distribution, tokens change places in Q by a random permutation: a random subspace of the same dimension.

The params hold the intervention, as "first", "inside" and "shuffle": arms of a study run one compiled program, and the same seed
has the same weights and data in all arms until `first`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.tree_util import Partial

from .. import checks
from ..measures import fourier
from .modular_pairs import ModularPairs, Params


class HeldState(NamedTuple):
    """Of the optimiser: that of the network, steps taken, and the frequencies chosen (M,)."""

    inner: Any
    count: Array
    chosen: Array


def arm(objective: ModularPairs, *, first: int, inside: bool, shuffled: bool = False) -> Partial:
    """(key, scale) -> params, the `init` of an experiment: the objective's start and an intervention.

    Args:
        objective: of `modular_pairs`, with a network that has an embedding.
        first: the first step that is changed.
        inside: whether the embedding keeps to the leading frequencies and the constant, or to all that is outside of them.
        shuffled: whether to a random subspace instead; a seed's is independent of its weights and data.

    Raises:
        icldyn.BadArgument: if the first step is below 0.
    """
    told = {"first": float(checks.integer("first", first, 0)), "inside": float(bool(inside))}
    return Partial(_start, objective, told, float(bool(shuffled)))


def _start(objective: ModularPairs, told: dict[str, Array], shuffled: Array, key: Array, scale: Array) -> Params:
    p = objective.task.p
    shuffle = jax.random.permutation(jax.random.fold_in(key, 1), p)
    shuffle = jnp.where(shuffled > 0, shuffle, jnp.arange(p, dtype=shuffle.dtype))
    about = {name: jnp.asarray(value).astype(scale.dtype) for name, value in (told | {"shuffle": shuffle}).items()}
    return objective.start(key, scale) | about


def holding(lr: Array, *, inner: Any, count: int, **settings: float) -> optax.GradientTransformation:
    """The optimiser `inner(lr, **settings)`, its steps of W_E changed as above.

    Raises:
        icldyn.BadArgument: if `count` is below 1.
    """
    checks.integer("count", count, 1)
    optimiser = inner(lr, **settings)

    def init(params: Params) -> HeldState:
        nothing = jnp.zeros((len(params["shuffle"]) - 1) // 2, params["W_E"].dtype)
        return HeldState(optimiser.init(params), jnp.zeros((), jnp.int32), nothing)

    def update(grads: Params, state: HeldState, params: Params) -> tuple[Params, HeldState]:
        steps, inner_state = optimiser.update(grads, state.inner, params)
        W, inside, place = params["W_E"], params["inside"], params["shuffle"].astype(jnp.int32)
        p = len(place)
        found = fourier.leading(fourier.power(W[:p]), count)
        chosen = jnp.where(state.count == params["first"], found, state.chosen)
        P = fourier.projector(chosen)
        Q = inside * (P + 1 / p) + (1 - inside) * (jnp.eye(p, dtype=P.dtype) - P)
        moved = W + steps["W_E"]
        moved = moved.at[:p].set(Q[place[:, None], place[None]] @ moved[:p])
        step = jnp.where(state.count >= params["first"], moved - W, steps["W_E"])
        return steps | {"W_E": step}, HeldState(inner_state, state.count + 1, chosen)

    return optax.GradientTransformation(init, update)
