"""Files of runs as datasets: netCDF, Zarr, and the HDF5 of PDEBench and of The Well.

PDEBench (https://github.com/pdebench/PDEBench) has arrays ``(run, time, *space)``
beside ``t-coordinate``, ``x-coordinate`` and so on, and what all runs of a file share
in its attributes; or a group a run, with ``data`` as ``(time, *space, channel)``, the
folder ``grid`` of positions, and the settings of its program as YAML.

The Well (https://polymathic-ai.org/the_well/data_format) has scalars, vectors and
tensors in ``t0_fields``, ``t1_fields`` and ``t2_fields`` as ``(run, time, *space,
component, ...)``, with positions in ``dimensions`` and numbers in ``scalars``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml
from xarray.backends import BackendArray
from xarray.core import indexing

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.quantities import numbers
from surrogate_flow.fields.table import unit_apart

__all__ = ["RUN", "Reading", "Unfit"]

#: The dim of the runs of a file, and names that others give it.
RUN = "run"
_RUNS = {RUN, "runs", "sample", "simulation", "batch", "case", "trajectory", "member"}
_RUNS |= {"samples", "simulations", "cases", "trajectories", "realization"}
_HDF5 = (".h5", ".hdf5")
# Nu0.01, beta1e-3, of the name of a file; not 2D, and not 128.
_IN_NAME = re.compile(r"(?:^|_)([A-Za-z]+)(\d+(?:\.\d+)?(?:e-?\d+)?)(?=_|$)")


class Unfit(ArgumentError):
    """A file is no simulation, or differs from the others."""


@dataclass(frozen=True)
class Reading:
    """How files are read: what they call things, and what they do not say.

    Attributes
    ----------
    time : str
        The dim of the steps; ``time`` by default, or what is marked as the time axis.
    names : mapping of str to str
        Of variables, dims, coordinates and attributes: in the files, and here.
    units : mapping of str to str
        By names here.
    times : float or sequence of float, optional
        Of the steps, in place of those of the files; one number is the time between
        two steps, from 0.
    inputs : sequence of str
        By names here: fields without steps, or variables, whose first step it is then.
    masked : sequence of str
        By names here: fields that are NaN where they are not defined, as over land.
    """

    time: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    times: float | Sequence[float] | None = None
    inputs: Sequence[str] = ()
    masked: Sequence[str] = ()

    def __post_init__(self) -> None:
        of: dict[str, str] = {}
        for name, new in self.names.items():
            if of.setdefault(new, name) != name:
                got = f"{new!r} of {of[new]} and of {name}"
                raise ArgumentError("names", "each name here once", got)
        if self.times is None:
            return
        times = numbers(self.times, "times")
        one = isinstance(self.times, int | float)
        for last, time in itertools.pairwise((0.0, *times) if one else times):
            if not last < time < np.inf:
                got = f"{time:g}" + f" behind {last:g}" * (not one)
                raise ArgumentError("times", "finite numbers that ascend", got)

    @contextmanager
    def opened(self, path: Path, run: int | None = None) -> Iterator[xr.Dataset]:
        """Open a file, whose fields are read later, or one of its runs.

        The dim of several runs is called `RUN`.
        """
        with _opened(path, run) as dataset:
            dataset = self._renamed(path, dataset)
            dims = {n for n in dataset.sizes if str(n).lower() in _RUNS}
            if len(dims) == 1 and (dim := dims.pop()) != RUN:
                dataset = dataset.rename({dim: RUN})
            if run is not None and RUN in dataset.sizes:
                dataset = dataset.isel({RUN: run})
            yield self._timed(path, dataset)

    def _renamed(self, path: Path, dataset: xr.Dataset) -> xr.Dataset:
        there = {*map(str, dataset.variables), *map(str, dataset.sizes)}
        said = {str(name): value for name, value in dataset.attrs.items()}
        for name in self.names:
            if name not in there | {*said}:
                raise Unfit(
                    f"{path}: names: there is no {name!r}. "
                    f"{nearest(name, [*there, *said])}"
                )
        for name, new in self.names.items():
            for known in (there, {*said}):
                if name in known and new in known - {*self.names}:
                    raise Unfit(
                        f"{path}: names: there is {new!r} already, as well as "
                        f"{name!r}. Take another name for one of them."
                    )
        attrs = {}
        for name, value in said.items():
            bare, units = unit_apart(name)
            if name in self.names or bare in said or not units:
                bare, units = self.names.get(name, name), ""
            attrs[bare] = value
            if units:
                attrs[f"{bare}_units"] = units
        dataset = dataset.rename({k: v for k, v in self.names.items() if k in there})
        for name, units in self.units.items():
            if name in dataset.variables:
                dataset.variables[name].attrs["units"] = units
            attrs[f"{name}_units"] = units
        dataset.attrs = attrs
        return dataset

    def _timed(self, path: Path, dataset: xr.Dataset) -> xr.Dataset:
        """Return it with the times that are given."""
        if self.times is None:
            return dataset
        usual = {str(n): n for n in dataset.sizes if str(n).lower() in ("time", "t")}
        dim = self.time or next(iter(usual), "time")
        if dim not in dataset.sizes:
            return dataset
        count, times = dataset.sizes[dim], self.times
        if isinstance(times, int | float):
            times = [k * times for k in range(count)]
        if len(times) != count:
            raise Unfit(f"{path}: times", f"{len(times)} steps, as given", count)
        units = dict(dataset.variables[dim].attrs) if dim in dataset.variables else {}
        if "time" in self.units:
            units["units"] = self.units["time"]
        return dataset.assign_coords({dim: (dim, np.array(times, float), units)})


@contextmanager
def _opened(path: Path, run: int | None) -> Iterator[xr.Dataset]:
    if path.suffix in _HDF5 and path.is_file():
        # Workers of other solvers need not import it.
        import h5py

        with h5py.File(path) as file:
            made = _pdebench(path, file) or _groups(file, run) or _the_well(file)
            if made is not None:
                yield made
                return
    # Times stay numbers, whatever their units.
    with xr.open_dataset(path, decode_times=False) as dataset:
        yield dataset


def _pdebench(path: Path, file: Any) -> xr.Dataset | None:
    """Return arrays of all runs, whose dims go by their positions."""
    axes = [axis for axis in "xyz" if f"{axis}-coordinate" in file]
    if not axes:
        return None
    dims = (RUN, "time", *axes)
    arrays = {n: file[n] for n in file if "-coordinate" not in n}
    fields = {n: (dims, a) for n, a in arrays.items() if a.ndim == len(dims)}
    fields |= {
        n: ((RUN, *axes), a) for n, a in arrays.items() if a.ndim == len(dims) - 1
    }
    steps = max((a.shape[1] for d, a in fields.values() if d == dims), default=1)
    times = np.arange(float(steps))
    if "t-coordinate" in file:
        # It may have the end of the last step, too.
        times = file["t-coordinate"][:steps]
    positions = {axis: file[f"{axis}-coordinate"] for axis in axes}
    coords = {axis: (axis, array[()]) for axis, array in positions.items()}
    attrs = {str(name): value for name, value in file.attrs.items()}
    known = {name.lower() for name in attrs}
    named = {name: value for name, value in _IN_NAME.findall(path.stem)}
    attrs |= {n: float(v) for n, v in named.items() if n.lower() not in known}
    return xr.Dataset(
        {name: _lazy(d, [array]) for name, (d, array) in fields.items()},
        {"time": ("time", times), **coords},
        attrs,
    )


def _groups(file: Any, run: int | None) -> xr.Dataset | None:
    """Return runs that have a group each, or one of them."""
    keys = sorted(file)
    # Thousands of them take a while to look into.
    if not keys or not {"data", "grid"} <= {*getattr(file[keys[0]], "keys", set)()}:
        return None
    keys = keys if run is None else keys[run : run + 1]
    first = file[keys[0]]
    axes = sorted(name for name in first["grid"] if name != "t")
    lead = () if run is not None else (RUN,)
    dims = (*lead, "time", *axes)
    arrays = [file[key]["data"] for key in keys]
    every = _lazy((*dims, "channel"), arrays, stacked=run is None)
    count = arrays[0].shape[-1]
    names = ["data"] if count == 1 else [f"data_{k}" for k in range(count)]
    fields: dict[str, Any] = {n: every.isel(channel=k) for k, n in enumerate(names)}
    coords = {name: (name, first["grid"][name][()]) for name in axes}
    coords["time"] = ("time", first["grid"]["t"][()])
    if run is None:
        settings = [_settings(file[key].attrs.get("config", "")) for key in keys]
        for name in settings[0]:
            values = [s.get(name, np.nan) for s in settings]
            fields.setdefault(name, (RUN, values))
    return xr.Dataset(fields, coords)


def _settings(text: Any) -> dict[str, float]:
    """Return the numbers of settings in YAML, by the last parts of their names."""
    found: dict[str, float] = {}
    pending: list[Any] = [yaml.load(str(text), yaml.CSafeLoader)]
    seen = set[int]()  # which an anchor may lead to again
    while pending:
        inside = pending.pop()
        if not isinstance(inside, Mapping) or id(inside) in seen:
            continue
        seen.add(id(inside))
        for name, value in inside.items():
            pending.append(value)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[str(name)] = value
    return found


def _the_well(file: Any) -> xr.Dataset | None:
    """Return its fields, the components of vectors and tensors each by its name."""
    if "t0_fields" not in file or "dimensions" not in file:
        return None
    grid = file["dimensions"]
    axes = [_text(name) for name in grid.attrs["spatial_dims"]]
    every: dict[str, Any] = {}
    for order in range(3):
        group = file.get(f"t{order}_fields", {})
        for name in group:
            array = group[name]
            dims = _dims(array, axes)
            parts = [f"component_{k}" for k in range(array.ndim - len(dims))]
            whole = _lazy((*dims, *parts), [array])
            ways = [axes] * order
            for at, along in enumerate(itertools.product(*map(enumerate, ways))):
                # A tensor may have its components along one axis.
                places = [at] if len(parts) == 1 else [k for k, _ in along]
                label = "_".join([name, *["".join(a for _, a in along)] * bool(order)])
                chosen = dict(zip(parts, places, strict=True))
                every[label] = whole.isel(chosen)
    for name in file.get("scalars", {}):
        array = file["scalars"][name]
        one = ((), array[()].item()) if array.size == 1 else None
        every[name] = one or _lazy(_dims(array, []), [array])
    coords: dict[str, Any] = {n: (_dims(grid[n], [n]), grid[n][()]) for n in axes}
    times = np.atleast_2d(grid["time"][()])
    if (times != times[0]).any():
        raise Unfit(f"{file.filename}: expected the same times in all of its runs.")
    coords["time"] = ("time", times[0])
    listed = [_text(name) for name in file.attrs.get("simulation_parameters", ())]
    attrs = {n: file.attrs[n] for n in listed if n in file.attrs and n not in every}
    return xr.Dataset(every, coords, attrs)


def _dims(array: Any, axes: Sequence[str]) -> tuple[str, ...]:
    """Return the dims of an array of The Well, as its attributes say."""
    varies = array.attrs.get("dim_varying", [True] * len(axes))
    lead = [RUN] * bool(array.attrs.get("sample_varying", False))
    lead += ["time"] * bool(array.attrs.get("time_varying", False))
    return (*lead, *(a for a, v in zip(axes, varies, strict=True) if v))


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _lazy(
    dims: Sequence[str], arrays: Sequence[Any], *, stacked: bool = False
) -> xr.Variable:
    """Return an array of a file, or several as one, which are read where needed."""
    array = _Array(arrays, stacked)
    return xr.Variable(dims, indexing.LazilyIndexedArray(array))


class _Array(BackendArray):
    """Arrays of a file, for xarray to read parts of them."""

    def __init__(self, arrays: Sequence[Any], stacked: bool) -> None:
        self._arrays = arrays
        self._stacked = stacked
        first = arrays[0]
        if any(a.shape != first.shape for a in arrays):
            shapes = " and ".join(sorted({str(a.shape) for a in arrays})[:2])
            raise Unfit(f"{first.file.filename}: its runs are of the shapes {shapes}.")
        self.shape = (len(arrays),) * stacked + first.shape
        self.dtype = first.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> Any:
        if not self._stacked:
            return self._arrays[0][key]
        runs, *inside = key
        chosen = self._arrays[runs]
        if isinstance(runs, slice):
            return np.stack([a[tuple(inside)] for a in chosen])
        return chosen[tuple(inside)]
