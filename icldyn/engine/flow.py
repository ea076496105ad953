"""Gradient flow and any other autonomous vector field, by diffrax, in float64.

Tsit5 with relative and absolute tolerances; the absolute one lies far below the smallest initial weight, or the solver would
step over the saddle that the flow starts near. Every solve is done twice, at `rtol` and at 10 `rtol`, and the largest
difference of the params, relative to the largest of them, is kept as its error estimate. A start whose solve fails has NaN
after that time.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import diffrax
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
from .placing import placed, traceable

MAX_STEPS = 100_000


def gradient_flow(objective: Objective) -> Partial:
    """The field d params / dt = -grad L(params) of an exact objective."""
    return Partial(_minus_gradient, objective)


def flow(
    field: Callable[[Any], Any],
    start: Any,
    t: ArrayLike,
    *,
    measures: Measures | None = None,
    dims: Mapping[str, tuple[str, ...]] | None = None,
    many: bool = False,
    rtol: float = 1e-8,
) -> Trajectory:
    """Integrate d params / dt = field(params) from `start` at t = 0, and record at the times `t`.

    Args:
        field: params -> d params / dt, for instance `gradient_flow(population(task, model))`.
        start: initial params, any pytree; with `many`, stacked along a first axis of starts ("seed").
        t: (T,) times, not negative, ascending: use the times of the training run to lay one over the other.
        measures: name -> function of the params; by default the params themselves, if they are a dict of arrays.
        dims: names of the measures' own axes.
        many: whether `start` holds many starts; they are solved in small batches.
        rtol: relative tolerance.

    Returns:
        A `Trajectory`; `attrs["error"]` is the error estimate and `attrs["failed"]` counts starts without a full solution.

    Raises:
        icldyn.BadArgument: for times that are negative or not ascending, or starts that are not finite.
    """
    times = checks.array("t", t, ndim=1)
    if times.size == 0 or times[0] < 0 or (np.diff(times) < 0).any():
        raise checks.BadArgument("Argument `t` must hold ascending times from 0 on.")
    rtol = checks.real("rtol", rtol, above=0)
    start = jax.tree.map(lambda w: checks.array("start", w), start)
    if measures is None:
        measures = {name: _entry(name) for name in start}
    sizes = np.concatenate([np.abs(w).ravel() for w in jax.tree.leaves(start)])
    smallest = sizes[sizes > 0].min() if (sizes > 0).any() else 1.0
    atol = max(min(1e-12, 1e-6 * smallest), 1e-300)
    with jax.enable_x64(True):
        host = _host()
        field = placed(traceable(field), "float64", host)
        functions = placed({name: traceable(f) for name, f in measures.items()}, "float64", host)
        stacked = placed(start if many else jax.tree.map(lambda w: w[None], start), "float64", host)
        grid, place_of = np.unique(np.concatenate([[0.0], times]), return_inverse=True)
        args = (field, functions, stacked, grid)
        fine, ok, steps, *states = jax.device_get(_solve(*args, rtol, atol))
        states += jax.device_get(_solve(*args, 10 * rtol, 10 * atol))[3:]
    keep = place_of[1:]
    error = _relative_gap(*states)
    values = {name: value[:, keep] if many else value[0, keep] for name, value in fine.items()}
    lead = ("seed", "time") if many else ("time",)
    coords: dict[str, tuple[tuple[str, ...], np.ndarray]] = {"t": (("time",), times)}
    if many:
        coords["seed"] = (("seed",), np.arange(len(ok)))
    return Trajectory(
        values=values,
        dims=named_dims(values, lead, dims, len(lead)),
        coords=coords,
        attrs={"error": float(error), "failed": int((~ok).sum()), "solver_steps": int(steps.max()), "rtol": rtol},
    )


@jax.jit
def _solve(field, measures, starts, grid: Array, rtol: Array, atol: Array):
    """Measures (S, T, ...), success (S,), solver steps (S,) and the flat params (S, T, ...) for every start."""

    def one(start):
        flat, unflatten = ravel_pytree(start)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: ravel_pytree(field(unflatten(y)))[0]),
            diffrax.Tsit5(),
            t0=grid[0],
            t1=jnp.maximum(grid[-1], 1e-12),
            dt0=None,
            y0=flat,
            saveat=diffrax.SaveAt(ts=grid),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, dtmin=1e-10, force_dtmin=False),
            max_steps=MAX_STEPS,
            throw=False,
        )
        ys = jnp.where(jnp.isfinite(solution.ys), solution.ys, jnp.nan)
        recorded = jax.vmap(lambda y: {name: f(unflatten(y)) for name, f in measures.items()})(ys)
        return recorded, solution.result == diffrax.RESULTS.successful, solution.stats["num_steps"], ys

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # diffrax mixes its own
        return lax.map(one, starts, batch_size=8)


def _relative_gap(a: np.ndarray, b: np.ndarray) -> float:
    ok = np.isfinite(a) & np.isfinite(b)
    return float(np.abs(a - b)[ok].max(initial=0) / max(np.abs(a)[ok].max(initial=0), 1e-300))


def _host() -> jax.Device | None:
    """The CPU, where a small ODE is solved fastest, in float64 everywhere; None where JAX was told to leave it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@functools.cache
def _entry(name: str) -> Callable[[Any], Array]:
    return operator.itemgetter(name)


def _minus_gradient(objective: Objective, params: Any) -> Any:
    return jax.tree.map(jnp.negative, jax.grad(objective.loss)(params, None))
