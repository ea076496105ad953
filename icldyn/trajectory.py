"""What an experiment and a theory both return: named values on one clock, t = learning rate x steps."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks

if TYPE_CHECKING:
    import xarray as xr


def named_dims(
    values: Mapping[str, np.ndarray], lead: tuple[str, ...], own: Mapping[str, tuple[str, ...]] | None, ndim: int
) -> dict[str, tuple[str, ...]]:
    """Dimensions of every value: `lead`, then those named in `own` or NAME_0, NAME_1 ...; its first `ndim` axes are led."""
    return {n: lead + tuple((own or {}).get(n, [f"{n}_{k}" for k in range(v.ndim - ndim)])) for n, v in values.items()}


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Named values over time, of one theory curve or of many seeds.

    `values[name]` has dimensions `dims[name]`: swept axes first ("lr", "init_scale"), then "seed", then "time", then its own.
    `coords[name] = (dims, array)` places them: "t" always; "step", "seed", "lr", "init_scale" where they apply. Host arrays.
    """

    values: Mapping[str, np.ndarray]
    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, tuple[tuple[str, ...], np.ndarray]]
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
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
        """For every seed (and swept point), whether all that was recorded of it is finite."""
        out: np.ndarray | None = None
        for name, value in self.values.items():
            lead = self.dims[name].index("time")
            ok = np.isfinite(value).all(axis=tuple(range(lead, value.ndim)))
            out = ok if out is None else out & ok
        return np.ones((), bool) if out is None else out

    @property
    def diverged(self) -> int:
        """How many seeds (over all swept points) became non-finite. Statistics leave them out."""
        return int((~self.finite()).sum())

    def _covered(self, name: str) -> np.ndarray:
        """The value with diverged seeds masked as NaN, seed axis first."""
        value, dims = self[name], self.dims[name]
        if "seed" not in dims:
            raise checks.BadArgument(
                f"Argument `name` must be recorded over seeds, but {name!r} has dimensions {dims}."
            )
        ok = self.finite().reshape(*self.finite().shape, *(1,) * (value.ndim - self.finite().ndim))
        return np.moveaxis(np.where(ok, value, np.nan), dims.index("seed"), 0)

    def mean(self, name: str) -> np.ndarray:
        """Mean over the seeds that stayed finite."""
        value = self._covered(name).astype(np.float64)
        count = np.isfinite(value).sum(0)
        return np.where(count > 0, np.nansum(value, 0) / np.maximum(count, 1), np.nan)

    def standard_error(self, name: str) -> np.ndarray:
        """Standard error of `mean`."""
        value = self._covered(name).astype(np.float64)
        count = np.isfinite(value).sum(0)
        spread = np.nansum((value - self.mean(name)) ** 2, 0) / np.maximum(count - 1, 1)
        return np.where(count > 1, np.sqrt(spread / np.maximum(count, 1)), np.nan)

    def quantile(self, name: str, levels: tuple[float, ...]) -> np.ndarray:
        """Quantiles over the seeds that stayed finite, levels first; NaN where none did."""
        value = self._covered(name)
        if not np.isnan(value).any():
            return np.quantile(value, levels, axis=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # where every seed is lost, NaN is the answer
            return np.nanquantile(value, levels, axis=0)

    def isel(self, **index: int) -> Trajectory:
        """One point of the named dimensions, for instance `isel(lr=0)` or `isel(seed=3)`."""

        def pick(array: np.ndarray, dims: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
            where = tuple(index.get(d, slice(None)) for d in dims)
            return tuple(d for d in dims if d not in index), array[where]

        picked = {name: pick(value, self.dims[name]) for name, value in self.values.items()}
        coords = {name: pick(array, dims) for name, (dims, array) in self.coords.items()}
        return Trajectory(
            {name: value for name, (_, value) in picked.items()},
            {name: dims for name, (dims, _) in picked.items()},
            coords,
            self.attrs,
        )

    def to_xarray(self) -> xr.Dataset:
        """As an `xarray.Dataset` with the same names."""
        import xarray as xr

        return xr.Dataset(
            {name: (self.dims[name], value) for name, value in self.values.items()},
            {name: (dims, array) for name, (dims, array) in self.coords.items()},
            dict(self.attrs),
        )

    @classmethod
    def from_xarray(cls, data: xr.Dataset) -> Trajectory:
        """Back from `to_xarray`."""
        return cls(
            {str(name): np.asarray(v) for name, v in data.data_vars.items()},
            {str(name): tuple(map(str, v.dims)) for name, v in data.data_vars.items()},
            {str(name): (tuple(map(str, c.dims)), np.asarray(c)) for name, c in data.coords.items()},
            dict(data.attrs),
        )
