"""Checks at the door of public functions: one clear sentence, `Argument `x` must ..., but ...`.

Standard library and numpy only, so that a bad setting is refused before jax is even imported.
"""

import functools
import math
import numbers
import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np

SHOWN = 120  # characters of a value in a sentence
COORDINATOR = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,253}:([0-9]{1,5})")


class BadArgument(ValueError):
    """An argument that cannot be used: its name, what was expected, and its value, in one sentence."""


class Stopped(Exception):
    """Work was asked to stop, by a signal, and did so before its end; what was done is kept."""


def shown(value: Any) -> str:
    """`value` as Python writes it, on one line and shortened."""
    try:
        text = repr(value)
    except Exception:  # such as an integer of more digits than Python writes
        text = f"a {type(value).__name__} that cannot be written out"
    if len(text) > SHOWN:
        text = f"{text[: SHOWN - 20]}...{text[-17:]}"
    return "".join(c if c.isprintable() else " " for c in text)


def refuse(name: str, must: str, value: Any) -> BadArgument:
    """The error for argument `name`: what it must be, and what it is."""
    return BadArgument(f"Argument `{name}` must {must}, but is {shown(value)}.")


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value` as an int of at least `least` and at most `most`."""
    if isinstance(value, bool | np.bool) or not isinstance(value, numbers.Integral):
        raise refuse(name, f"be an integer of at least {least}", value)
    if value < least:
        raise refuse(name, f"be at least {least}", int(value))
    if most is not None and value > most:
        raise refuse(name, f"be at most {most}", int(value))
    return int(value)


def real(
    name: str, value: Any, *, above: float | None = None, least: float | None = None, most: float | None = None
) -> float:
    """`value` as a finite float within the bounds given."""
    bounds = ["finite"]
    if above is not None:
        bounds = ["positive and finite" if above == 0 else f"finite and above {above:g}"]
    if least is not None:
        bounds = ["finite and not negative" if least == 0 else f"finite and at least {least:g}"]
    if most is not None:
        bounds.append(f"at most {most:g}")
    must = "be " + " and ".join(bounds)
    if isinstance(value, bool | np.bool) or not isinstance(value, numbers.Real):
        raise refuse(name, "be a number", value)
    try:
        value = float(value)
    except OverflowError:
        raise refuse(name, must, value) from None
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
    if isinstance(value, str) and value in choices:
        return value
    near = get_close_matches(value[:SHOWN], list(choices), n=1) if isinstance(value, str) else []
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise BadArgument(f"Argument `{name}` must be one of {', '.join(sorted(choices))}, but is {shown(value)}{hint}.")


def block(value: Any) -> int | None:
    """Seeds in a block: a multiple of 8, or None for what is fast and fits."""
    if value is not None and integer("block", value, 8, 2**20) % 8:
        raise refuse("block", "be a multiple of 8", value)
    return value


def entries(name: str, value: Any, most: int = 100) -> tuple[Any, ...]:
    """The entries of a tuple or list, at most so many."""
    if not isinstance(value, tuple | list):
        raise refuse(name, "be a tuple of numbers", value)
    if len(value) > most:
        raise BadArgument(f"Argument `{name}` must hold at most {most} numbers, but holds {len(value)}.")
    return tuple(value)


def coordinator(address: Any, processes: Any, index: Any) -> None:
    """Where processes meet (HOST:PORT), how many there are, and which of them this is: all three or none."""
    given = {"coordinator": address, "processes": processes, "process-index": index}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        raise BadArgument(f"Argument `{missing[0]}` must be given along with the others, but is missing.")

    def meeting_place() -> None:
        found = COORDINATOR.fullmatch(address) if isinstance(address, str) else None
        if not found or not 0 < int(found[1]) < 2**16:
            raise refuse("coordinator", "be HOST:PORT, such as 10.0.0.1:29400", address)

    def one_of_them() -> None:
        if integer("process-index", index, 0) >= integer("processes", processes, 1):
            raise refuse("process-index", f"be below {processes}, the number of processes", index)

    gather(meeting_place, lambda: integer("processes", processes, 1, 10**6), one_of_them)


def array(name: str, value: Any, *, ndim: int | None = None, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
    """`value` as a finite float64 array of the given rank or shape (None in `shape` is any length)."""
    try:
        if np.asarray(value).dtype.kind in "USmMcb":  # numpy would read numbers out of text, and drop imaginary parts
            raise TypeError
        out = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
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


def of_each(name: str, value: Any, count: int) -> np.ndarray:
    """`value` as an array (count,) that is not negative, of one number for all or one for each."""
    each = array(name, np.broadcast_to(value, (count,)) if np.ndim(value) == 0 else value, shape=(count,))
    if (each < 0).any():
        raise refuse(name, "not be negative", value)
    return each


def eigenvalues(name: str, value: Any) -> np.ndarray:
    """`value` as eigenvalues (D,): at least one, positive first, not negative, descending."""
    s = array(name, value, ndim=1)
    if s.size == 0:
        raise BadArgument(f"Argument `{name}` must hold at least one eigenvalue, but is empty.")
    if (s < 0).any():
        raise BadArgument(f"Argument `{name}` must not be negative, but its smallest entry is {s.min():g}.")
    if (np.diff(s) > 0).any():
        raise BadArgument(f"Argument `{name}` must be descending, but is {shown(s.tolist())}.")
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
    """Run every check and report all that fail at once, a sentence a line, each once."""
    sentences: dict[str, None] = {}
    for attempt in attempts:
        try:
            attempt()
        except BadArgument as error:
            sentences |= dict.fromkeys(str(error).splitlines())
    if sentences:
        raise BadArgument("\n".join(sentences))


class Settings:
    """The settings of a study: `sizes` and `reals` bound its single numbers, as `integer` and `real` take bounds."""

    def __init__(self, config: Any, sizes: Mapping[str, tuple[int, ...]], reals: Mapping[str, Mapping[str, float]]):
        self.config, self.sizes, self.reals = config, sizes, reals

    def size(self, name: str) -> int:
        """A setting that counts."""
        return integer(name, getattr(self.config, name), *self.sizes[name])

    def number(self, name: str) -> float:
        """A setting that measures."""
        return real(name, getattr(self.config, name), **self.reals[name])

    def each(
        self, name: str, kind: Callable[..., Any] = real, *bounds: Any, ascending: bool = False, **more: Any
    ) -> list[Any]:
        """The entries of a setting, each checked by `kind`; if `ascending`, at least one, and each above the one before."""
        given = getattr(self.config, name)
        held = [kind(f"{name}[{k}]", value, *bounds, **more) for k, value in enumerate(entries(name, given))]
        if ascending and (not held or held != sorted(set(held))):
            raise refuse(name, "hold ascending numbers, at least one", given)
        return held

    def gather(self, *attempts: Callable[[], Any]) -> None:
        """Check every single number and run the attempts; report all that fail at once."""
        sizes = [functools.partial(self.size, name) for name in self.sizes]
        gather(*sizes, *(functools.partial(self.number, name) for name in self.reals), *attempts)
