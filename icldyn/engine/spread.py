"""The spread of seeds, predicted: gradient flow with the covariance that SGD builds up along it (linear-noise expansion).

A step of SGD takes w to w - lr grad L(w) + (lr / sqrt B) noise, the noise of covariance Sigma_g(w), that of one prompt's
gradient. Around the exact flow w(t), with H the Hessian of L there and t = lr x steps,

    dw/dt = -grad L
    dP/dt = -H P - P H + (lr/B) Sigma_g(w)       the covariance of the seeds
    dm/dt = -H m - 1/2 grad tr(H P)              the shift of their mean, since noise on curved ground has a direction
    dd/dt = -H d - (lr/2) H grad L               and since steps are of finite length

to first order in lr. Valid while H changes little over a standard deviation of the seeds; in a measure f that is while the
shift of its mean by noise is small beside its standard deviation. Measures are read to second order, for w Gaussian: with
f', f'' the derivatives of f on the flow,

    mean f = f(w) + f'.(m + d) + 1/2 tr(f'' P),    var f = f'^T P f' + 1/2 tr(f'' P f'' P).
"""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from numpy.typing import ArrayLike

from .. import checks
from ..objectives import Objective
from ..trajectory import Trajectory, named_dims
from .descend import Measures
from .flow import _host, flow
from .placing import placed, traceable
from .prompt_noise import Unknown, prompt_noise, sampled

MOST_WEIGHTS = 1000  # of a model whose covariance is followed
ROOM = 2**28  # bytes of the covariances held at a time
ENDS = ("", "_sd", "_shift", "_shift_steps")  # of the names that a measure's values get


def spread(
    exact: Any,
    noise: Any,
    start: Any,
    t: ArrayLike,
    *,
    lr: float,
    batch: int | None = None,
    measures: Measures,
    dims: Mapping[str, tuple[str, ...]] | None = None,
    covariance: ArrayLike | None = None,
    many: bool = False,
    prompts: int = 2**16,
    rtol: float = 1e-5,
) -> Trajectory:
    """The flow from `start` with the standard deviation over seeds that SGD adds to it.

    Args:
        exact: the exact objective that the flow descends, `population(task, model)`, or a function params -> loss.
        noise: what SGD descends, such as `statistics(task, model, batch)`: Sigma_g is in closed form for heads with zero blocks
            on fresh tasks, else sampled along the flow; or a function params -> Sigma_g (n, n), the n weights in the
            order of `jax.flatten_util.ravel_pytree`.
        start: initial params, any pytree; with `many`, stacked along a first axis of starts ("seed").
        t: (T,) times from 0 on, ascending.
        lr: learning rate of SGD.
        batch: prompts a step; by default that of `noise`.
        measures: name -> function of the params.
        dims: names of the measures' own axes.
        covariance: (n, n), of the initial weights; 0 by default, seeds that share the start.
        many: whether `start` holds many starts.
        prompts: how many are sampled at each of 33 times, where that is needed: a relative error of Sigma_g of
            (kurtosis / prompts)^(1/2), which the integral over t averages further.
        rtol: relative tolerance of the solver.

    Returns:
        A `Trajectory` with, of every measure f, the values `f` on the flow, `f_sd`, `f_shift` = E f - f by noise and
        `f_shift_steps` that by steps of finite length. Seeds of random initial weights, drawn as `many` starts, spread by

            var f = mean over starts of f_sd^2 + variance over starts of f + f_shift + f_shift_steps.

    Raises:
        icldyn.BadArgument: a sentence that names the argument, what it must be and what it is.
    """
    times, lr = checks.array("t", t, ndim=1), checks.real("lr", lr, above=0)
    B = checks.integer("batch", getattr(noise, "batch", None) if batch is None else batch, 1)
    starts = jax.tree.map(lambda w: checks.array("start", w)[slice(None) if many else None], start)
    S, n = len(jax.tree.leaves(starts)[0]), sum(w[0].size for w in jax.tree.leaves(starts))
    if n > MOST_WEIGHTS:
        raise checks.BadArgument(f"Argument `start` must have at most {MOST_WEIGHTS} weights, but has {n}.")
    P = np.zeros((n, n)) if covariance is None else checks.covariance("covariance", covariance, n)
    loss = traceable(exact.loss if isinstance(exact, Objective) else exact)
    law = prompt_noise(noise, checks.integer("prompts", prompts, 2), jax.tree.map(lambda w: w[0], starts), n)
    functions = {name: traceable(f) for name, f in measures.items()}
    group = 1 if isinstance(law, Unknown) else int(np.clip(ROOM // (24 * n * n * max(times.size, 1)), 1, S))
    parts, errors, failed = [], [], 0
    for first in range(0, S, group):
        rows = np.minimum(np.arange(first, first + group), S - 1)  # padded: one shape, one program
        part = jax.tree.map(operator.itemgetter(rows), starts)
        run = _solved(loss, law, part, P * (B / lr), times, rtol)
        kept = min(group, S - first)
        values = _measured(functions, part, run, lr, lr / B)
        parts.append({name: value[:kept] for name, value in values.items()})
        errors.append(run.attrs["error"])
        failed += int((~run.finite()[:kept]).sum())
    values = {name: np.concatenate([part[name] for part in parts])[slice(None) if many else 0] for name in parts[0]}
    lead = ("seed", "time") if many else ("time",)
    coords = {"t": (("time",), times)} | ({"seed": (("seed",), np.arange(S))} if many else {})
    own = {f"{name}{end}": axes for name, axes in (dims or {}).items() for end in ENDS}
    attrs = {"error": max(errors), "failed": failed, "lr": lr, "batch": B}
    return Trajectory(values, named_dims(values, lead, own, len(lead)), coords, attrs)


def _solved(loss: Callable, law: Any, starts: Any, P: np.ndarray, times: np.ndarray, rtol: float) -> Trajectory:
    """The flat weights and what spreads around them, (S, T, ...), in the units of `_expansion`."""
    S, n = len(jax.tree.leaves(starts)[0]), len(P)
    flat = np.concatenate([w.reshape(S, -1) for w in jax.tree.leaves(starts)], axis=1)
    unit = np.mean(flat**2, axis=1)
    unit = np.where(unit > 0, unit, 1)
    state = {"w": starts, "P": P / unit[:, None, None], "log_unit": np.log(unit), "clock": np.zeros(S)}
    state |= {name: np.zeros((S, n)) for name in ("noise", "steps")}
    if isinstance(law, Unknown):
        law = sampled(loss, law, starts, times[-1])
    return flow(Partial(_expansion, loss, law), state, times, measures=STATE, many=True, rtol=rtol)


def _measured(measures: Any, starts: Any, run: Trajectory, lr: float, rate: float) -> dict[str, np.ndarray]:
    template = jax.tree.map(operator.itemgetter(0), starts)
    with jax.enable_x64(True):
        args = placed((measures, template, {name: run[name] for name in STATE}, lr, rate), "float64", _host())
        return jax.device_get(_read(*args))


def _expansion(loss: Callable, noise: Callable, state: dict[str, Any]) -> dict[str, Any]:
    """The equations of this module, m in units of lr/B and d in units of lr, so that they are free of both.

    P is in units of lr/B times the mean square of the initial weights: small weights have a small one, and the solver's
    absolute tolerance is that of the weights.
    """
    w, back = ravel_pytree(state["w"])
    P, unit = state["P"], jnp.exp(state["log_unit"])
    slope = jax.grad(lambda w: loss(back(w)))

    def along(w: Array) -> tuple[Array, Array]:
        H = jax.jacfwd(slope)(w)
        return jnp.vdot(H, P), H

    bend, H = jax.grad(along, has_aux=True)(w)
    g = slope(w)
    HP = H @ P
    return {
        "w": back(-g),
        "P": noise(state["clock"], w, back) / unit - HP - HP.T,
        "noise": -H @ state["noise"] - unit * bend / 2,
        "steps": -H @ (state["steps"] + g / 2),
        "log_unit": jnp.zeros_like(unit),
        "clock": jnp.ones_like(state["clock"]),
    }


@jax.jit
def _read(measures, template, state: dict[str, Array], lr: Array, rate: Array) -> dict[str, Array]:
    """Every measure on the flow, its standard deviation and shifts, (S, T, ...)."""
    _, back = ravel_pytree(template)

    def one(state):
        P, out = rate * jnp.exp(state["log_unit"]) * state["P"], {}
        for name, f in measures.items():
            like = jax.eval_shape(f, template)

            def flat(w, f=f):
                return jnp.ravel(f(back(w)))

            slope = jax.jacrev(flat)
            first, second = slope(state["w"]), jax.jacfwd(slope)(state["w"])  # (k, n), (k, n, n)
            bend = second @ P
            variance = jnp.sum((first @ P) * first, axis=1) + jnp.einsum("kab,kba->k", bend, bend) / 2
            shift = first @ (rate * state["noise"]) + jnp.trace(bend, axis1=1, axis2=2) / 2
            read = {"": flat(state["w"]), "_sd": jnp.sqrt(jnp.maximum(variance, 0)), "_shift": shift}
            read["_shift_steps"] = first @ (lr * state["steps"])
            out |= {f"{name}{end}": value.reshape(like.shape) for end, value in read.items()}
        return out

    def over_times(states):
        return lax.map(one, states)

    return lax.map(over_times, state)


def _weights(state: dict[str, Any]) -> Array:
    return ravel_pytree(state["w"])[0]


def _entry(name: str, state: dict[str, Any]) -> Array:
    return state[name]


STATE = {"w": _weights} | {name: functools.partial(_entry, name) for name in ("P", "log_unit", "noise", "steps")}
