"""What an experiment and a theory both return: named values on one clock, t = learning rate x steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks

if TYPE_CHECKING:
    import xarray as xr

NOT_RUN = -2  # the diverged step of a seed that has not run yet
SLAB = {"seed": 2**22, "time": 2**24}  # bytes that statistics read at a time: along "time" every slab reads every chunk


def named_dims(
    values: Mapping[str, np.ndarray], lead: tuple[str, ...], own: Mapping[str, tuple[str, ...]] | None, ndim: int
) -> dict[str, tuple[str, ...]]:
    """Dimensions of every value: `lead`, then those named in `own` or NAME_0, NAME_1 ...; its first `ndim` axes are led.

    Raises:
        icldyn.BadArgument: if a value has other than its axes named, or one name two lengths, which no stored run can have.
    """
    dims, seen = {}, {}
    for name, value in values.items():
        axes = tuple((own or {}).get(name, [f"{name}_{k}" for k in range(value.ndim - ndim)]))
        if len(axes) != value.ndim - ndim:
            raise checks.refuse("dims", f"name the {value.ndim - ndim} axes of `{name}`", axes)
        for axis, size in zip(axes, value.shape[ndim:], strict=True):
            first, before = seen.setdefault(axis, (name, size))
            if before != size:
                must = (
                    f"give one name one length, but {axis!r} has {before} entries in `{first}` and {size} in `{name}`"
                )
                raise checks.BadArgument(f"Argument `dims` must {must}.")
        dims[name] = lead + axes
    return dims


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Named values over time, of one theory curve or of many seeds.

    `values[name]` has dimensions `dims[name]`: swept axes first ("lr", "init_scale"), then "seed", then "time", then its own.
    `coords[name] = (dims, array)` places them: "t" always; "step", "seed", "lr", "init_scale" where they apply; and
    "diverged_step" of every seed: -1, or the step at which it became non-finite (its values stay as they were before), or -2
    if it has not run yet. Values are host arrays, or variables of xarray that are read from a run folder when asked for:
    `trajectory[name]` reads all, statistics read a piece at a time.
    """

    values: Mapping[str, Any]
    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, tuple[tuple[str, ...], np.ndarray]]
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._lazy(name))

    def _lazy(self, name: str) -> Any:
        if name not in self.values:
            raise checks.BadArgument(
                f"Argument `name` must be one of the recorded values {', '.join(sorted(self.values))}, but is {name!r}."
            )
        return self.values[name]

    @property
    def t(self) -> np.ndarray:
        """Time, (T,), or (lr, T) where the learning rate is swept over equal numbers of steps."""
        return self.coords["t"][1]

    @property
    def num_seeds(self) -> int:
        """How many seeds; 0 for a theory."""
        return self.coords["seed"][1].size if "seed" in self.coords else 0

    def finite(self) -> np.ndarray:
        """For every seed (and swept point), whether it ran and never became non-finite."""
        return self._finite

    @functools.cached_property
    def _finite(self) -> np.ndarray:
        if "diverged_step" in self.coords:
            return self.coords["diverged_step"][1] == -1
        out: np.ndarray | None = None
        for name in self.values:
            value, lead = self[name], self.dims[name].index("time")
            ok = np.isfinite(value).all(axis=tuple(range(lead, value.ndim)))
            out = ok if out is None else out & ok
        return np.ones((), bool) if out is None else out

    @property
    def diverged(self) -> int:
        """How many seeds (over all swept points) became non-finite. Statistics leave them out."""
        if "diverged_step" in self.coords:
            return int((self.coords["diverged_step"][1] >= 0).sum())
        return int((~self.finite()).sum())

    @property
    def coverage(self) -> str:
        """How many seeds the statistics cover, as text: "998 of 1,000 seeds"."""
        kept, total = int(self.finite().sum()), self.finite().size
        return f"{total:,} seeds" if kept == total else f"{kept:,} of {total:,} seeds"

    def diverged_by_record(self) -> np.ndarray:
        """How many seeds had become non-finite at every record time: ([lr], [init_scale], time)."""
        if "diverged_step" not in self.coords:
            raise checks.BadArgument("Only trained seeds are counted by record, but this trajectory holds none.")
        lost = self.coords["diverged_step"][1][..., None]
        steps = self.coords["step"][1]
        if steps.ndim == 2:  # (lr, time)
            steps = steps.reshape(steps.shape[0], *(1,) * (lost.ndim - 2), steps.shape[1])
        return ((lost >= 0) & (lost <= steps)).sum(axis=-2)

    def _pieces(self, name: str, axis: str) -> Iterator[tuple[slice, np.ndarray]]:
        """The value with the seed axis first and lost seeds masked as NaN, in slabs along "seed" or "time"."""
        value, dims = self._lazy(name), self.dims[name]
        if "seed" not in dims:
            raise checks.BadArgument(
                f"Argument `name` must be recorded over seeds, but {name!r} has dimensions {dims}."
            )
        where, length = dims.index(axis), value.shape[dims.index(axis)]
        row = int(np.prod(value.shape)) * value.dtype.itemsize // max(length, 1)
        ok = np.moveaxis(
            self.finite().reshape(*self.finite().shape, *(1,) * (value.ndim - self.finite().ndim)),
            dims.index("seed"),
            0,
        )
        rows = max(1, SLAB[axis] // max(row, 1))
        for first in range(0, length, rows):
            cut = slice(first, first + rows)
            slab = np.asarray(value[(slice(None),) * where + (cut,)])
            yield cut, np.where(ok[cut] if axis == "seed" else ok, np.moveaxis(slab, dims.index("seed"), 0), np.nan)

    def _moments(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(count, mean, sum of squared deviations) over the seeds that stayed finite, by pairwise updates over slabs."""
        count = mean = squares = np.zeros(())
        for _, slab in self._pieces(name, "seed"):
            slab = slab.astype(np.float64)
            n = np.isfinite(slab).sum(0)
            m = np.nansum(slab, 0) / np.maximum(n, 1)
            total = np.maximum(count + n, 1)
            squares = squares + np.nansum((slab - m) ** 2, 0) + (m - mean) ** 2 * count * n / total
            mean, count = mean + (m - mean) * n / total, count + n
        return count, mean, squares

    def mean(self, name: str) -> np.ndarray:
        """Mean over the seeds that stayed finite (`coverage` says how many)."""
        count, mean, _ = self._moments(name)
        return np.where(count > 0, mean, np.nan)

    def standard_deviation(self, name: str) -> np.ndarray:
        """Standard deviation over the seeds that stayed finite; NaN for fewer than two."""
        count, _, squares = self._moments(name)
        return np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)

    def standard_error(self, name: str) -> np.ndarray:
        """Standard error of `mean`."""
        count, _, squares = self._moments(name)
        return np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1) / np.maximum(count, 1)), np.nan)

    def quantile(self, name: str, levels: tuple[float, ...]) -> np.ndarray:
        """Quantiles over the seeds that stayed finite, levels first; NaN where none did."""
        after_seed = [d for d in self.dims[name] if d != "seed"] if name in self.values else []
        found = [_quantile(slab, levels) for _, slab in self._pieces(name, "time")]
        return np.concatenate(found, axis=1 + after_seed.index("time"))

    def isel(self, **index: int | slice) -> Trajectory:
        """Part of the named dimensions, such as `isel(lr=0)` (the dimension goes) or `isel(seed=slice(64))`."""

        def pick(array: Any, dims: tuple[str, ...]) -> tuple[tuple[str, ...], Any]:
            where = tuple(index.get(d, slice(None)) for d in dims)
            return tuple(d for d in dims if not isinstance(index.get(d), int)), array[where]

        picked = {name: pick(value, self.dims[name]) for name, value in self.values.items()}
        coords = {name: pick(array, dims) for name, (dims, array) in self.coords.items()}
        return Trajectory(
            {name: value for name, (_, value) in picked.items()},
            {name: dims for name, (dims, _) in picked.items()},
            {name: (dims, np.asarray(array)) for name, (dims, array) in coords.items()},
            self.attrs,
        )

    def to_xarray(self) -> xr.Dataset:
        """As an `xarray.Dataset` with the same names."""
        import xarray as xr

        return xr.Dataset(
            {name: (self.dims[name], np.asarray(value)) for name, value in self.values.items()},
            {name: (dims, array) for name, (dims, array) in self.coords.items()},
            dict(self.attrs),
        )

    @classmethod
    def from_xarray(cls, data: xr.Dataset) -> Trajectory:
        """Back from `to_xarray`; values that are not in memory stay where they are until they are asked for."""
        return cls(
            {str(name): v.variable for name, v in data.data_vars.items()},
            {str(name): tuple(map(str, v.dims)) for name, v in data.data_vars.items()},
            {str(name): (tuple(map(str, c.dims)), np.asarray(c)) for name, c in data.coords.items()},
            dict(data.attrs),
        )


def _quantile(value: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """Quantiles along the first axis, NaN left out; the value is not kept."""
    kept = ~np.isnan(value)
    if kept.all():
        return np.quantile(value, levels, axis=0, overwrite_input=True)
    whole = kept.reshape(len(value), -1)
    if (whole == whole[:, :1]).all():  # whole seeds are missing, as ever for one learning rate
        left = value[whole[:, 0]]
        return np.quantile(left, levels, axis=0) if len(left) else np.full((len(levels), *value.shape[1:]), np.nan)
    columns = value.reshape(len(value), -1)
    found = [
        np.quantile(c[~np.isnan(c)], levels) if (~np.isnan(c)).any() else [np.nan] * len(levels) for c in columns.T
    ]
    return np.stack(found, axis=1).reshape(len(levels), *value.shape[1:])
