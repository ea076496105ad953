"""Checks at the door of public functions: one clear sentence, `Argument `x` must ..., but ...`.

Standard library and numpy only, so that a bad setting is refused before jax is even imported.
"""

import math
import numbers
from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any

import numpy as np


class BadArgument(ValueError):
    """An argument that cannot be used: its name, what was expected, and its value, in one sentence."""


class Stopped(Exception):
    """Work was asked to stop, by a signal, and did so before its end; what was done is kept."""


def refuse(name: str, must: str, value: Any) -> BadArgument:
    """The error for argument `name`: what it must be, and what it is."""
    return BadArgument(f"Argument `{name}` must {must}, but is {value!r}.")


def integer(name: str, value: Any, least: int) -> int:
    """`value` as an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise refuse(name, f"be an integer of at least {least}", value)
    if value < least:
        raise refuse(name, f"be at least {least}", int(value))
    return int(value)


def real(
    name: str, value: Any, *, above: float | None = None, least: float | None = None, most: float | None = None
) -> float:
    """`value` as a finite float within the bounds given."""
    bounds = ["finite"]
    if above is not None:
        bounds = ["positive and finite" if above == 0 else f"finite and above {above}"]
    if least is not None:
        bounds = ["finite and not negative" if least == 0 else f"finite and at least {least}"]
    if most is not None:
        bounds.append(f"at most {most}")
    must = "be " + " and ".join(bounds)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise refuse(name, "be a number", value)
    value = float(value)
    if (
        not math.isfinite(value)
        or (above is not None and value <= above)
        or (least is not None and value < least)
        or (most is not None and value > most)
    ):
        raise refuse(name, must, value)
    return value


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """`value`, which must be one of `choices`; a near miss is named."""
    if value in choices:
        return value
    near = get_close_matches(str(value), list(choices), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise BadArgument(f"Argument `{name}` must be one of {', '.join(sorted(choices))}, but is {value!r}{hint}.")


def array(name: str, value: Any, *, ndim: int | None = None, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
    """`value` as a finite float64 array of the given rank or shape (None in `shape` is any length)."""
    try:
        out = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise refuse(name, "be an array of numbers", value) from None
    if ndim is not None and out.ndim != ndim:
        raise BadArgument(f"Argument `{name}` must have {ndim} axes, but has shape {out.shape}.")
    if shape is not None and (
        out.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, out.shape, strict=True))
    ):
        wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
        raise BadArgument(f"Argument `{name}` must have shape {wanted}, but has shape {out.shape}.")
    if not np.isfinite(out).all():
        raise BadArgument(f"Argument `{name}` must be finite, but {int((~np.isfinite(out)).sum())} entries are not.")
    return out


def eigenvalues(name: str, value: Any) -> np.ndarray:
    """`value` as eigenvalues (D,): at least one, positive first, not negative, descending."""
    s = array(name, value, ndim=1)
    if s.size == 0:
        raise BadArgument(f"Argument `{name}` must hold at least one eigenvalue, but is empty.")
    if (s < 0).any():
        raise BadArgument(f"Argument `{name}` must not be negative, but its smallest entry is {s.min():g}.")
    if (np.diff(s) > 0).any():
        raise BadArgument(f"Argument `{name}` must be descending, but is {s.tolist()}.")
    if s[0] == 0:
        raise BadArgument(f"Argument `{name}` must have a positive largest entry, but all are 0.")
    return s


def covariance(name: str, value: Any, D: int | None = None) -> np.ndarray:
    """`value` as a symmetric positive semi-definite matrix (D, D)."""
    M = array(name, value, ndim=2)
    if M.shape[0] != M.shape[1] or M.size == 0 or (D is not None and M.shape[0] != D):
        wanted = f"({D}, {D})" if D is not None else "(D, D) with D at least 1"
        raise BadArgument(f"Argument `{name}` must have shape {wanted}, but has shape {M.shape}.")
    gap = np.abs(M - M.T).max()
    if gap > 1e-10 * np.abs(M).max():
        raise BadArgument(f"Argument `{name}` must be symmetric, but differs from its transpose by {gap:.3g}.")
    smallest, largest = np.linalg.eigvalsh(M)[[0, -1]]
    if smallest < -1e-12 * max(largest, 0.0) or largest < 0:
        raise BadArgument(
            f"Argument `{name}` must be symmetric positive semi-definite, but its smallest eigenvalue is {smallest:.3g}."
        )
    return (M + M.T) / 2


def gather(*attempts: Callable[[], Any]) -> None:
    """Run every check and report all that fail at once, a sentence a line."""
    sentences = []
    for attempt in attempts:
        try:
            attempt()
        except BadArgument as error:
            sentences.append(str(error))
    if sentences:
        raise BadArgument("\n".join(sentences))
