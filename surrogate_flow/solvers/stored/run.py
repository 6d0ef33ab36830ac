"""What a file says of a simulation that has ended."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from surrogate_flow.fields.conventions import time_units
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.positions import Misplaced, Positions
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.solvers.stored.opening import RUN, Reading, Unfit

__all__ = ["INITIAL", "StoredRun", "cells_of", "quantity", "runs_of", "steps_of"]

#: Behind the name of a variable: its first step, as an input.
INITIAL = "_initial"

# 2.8 m2/s, 2.8 [m2 s-1], 20 %; no date, no hash, no "12 of 20".
_UNIT = r"[^\W\d_]+(?:\^|\*\*)?[-+]?\d?"
_UNITS = rf"(?:1/)?(?:{_UNIT}|[%°][^\W\d_]?)(?:[ */.·]\(?{_UNIT}\)?)*"
_QUANTITY = re.compile(
    rf"(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    rf"(?:\s+|(?=[%°]))(?P<bracket>[\[(])?(?P<units>{_UNITS})(?(bracket)[\])])"
)


@dataclass(frozen=True)
class StoredRun:
    """What a file says of its simulation, without the fields."""

    path: Path
    #: The dim of the steps, and the order in which their times ascend.
    time: str
    order: np.ndarray
    #: Of each variable along it: its other dims with their sizes, and its units.
    variables: Mapping[str, tuple[Mapping[str, int], str]]
    #: By name: the dim, positions along it, and their units; "time" is that of steps.
    coordinates: Mapping[str, tuple[str, np.ndarray, str]]
    #: Single numbers, and their units.
    quantities: Mapping[str, tuple[float, str]]
    #: Attributes and scalar variables that are no number.
    texts: Mapping[str, str]
    #: By the names of variables and coordinates.
    long_names: Mapping[str, str]
    #: What else it has: all names, and as hashes positions in several dims and a mesh.
    names: frozenset[str]
    curved: Mapping[str, int]
    mesh: int
    #: Of each input that has no steps: its dims with their sizes, and its units.
    inputs: Mapping[str, tuple[Mapping[str, int], str]]
    #: Of a file with several, from 0.
    index: int | None = None

    def __str__(self) -> str:
        return f"{self.path}" + f", run {self.index}" * (self.index is not None)

    @classmethod
    def of(cls, path: Path, dataset: xr.Dataset, reading: Reading) -> StoredRun:
        """Describe an open file; `Unfit` if its steps cannot be told."""
        time, axis = _time_of(path, dataset, reading.time)
        every = {str(name): v for name, v in dataset.variables.items()}
        bounds = {
            str(v.attrs.get(kind))
            for v in every.values()
            for kind in ("bounds", "climatology")
        }
        fields = {
            name: ({str(k): n for k, n in v.sizes.items() if k != time}, _units(v))
            for name, v in every.items()
            if time in v.dims and name != axis and v.dtype.kind in "fiu"
            # Edges of cells, by CF, are no field.
            if name not in bounds and not name.lower().endswith(("_bnds", "_bounds"))
        }
        given = {
            name: (
                {str(k): n for k, n in every[name].sizes.items()},
                _units(every[name]),
            )
            for name in reading.inputs
            if name in every and time not in every[name].dims
        }
        dims = {time, *(dim for sizes, _ in fields.values() for dim in sizes)}
        lines = {
            name: (str(v.dims[0]), v.values.astype(float), _units(v))
            for name, v in every.items()
            if v.ndim == 1 and v.dtype.kind in "fiu" and v.dims[0] in dims - {time}
            # A first step that is an input has its name, whatever else has it.
            if name not in given and name.removesuffix(INITIAL) not in reading.inputs
        }
        times = every[axis].values.astype(float)
        order = np.argsort(times)
        lines["time"] = ("time", times[order], time_units(every[axis].attrs))
        if not (np.diff(lines["time"][1]) > 0).all():
            raise Unfit(f"{path}: expected times that differ, got one twice, or NaN.")
        curved = {
            str(name): hash(c.values.astype("f4").tobytes())
            for name, c in dataset.coords.items()
            if c.ndim > 1 and c.dtype.kind in "fiu" and {*c.dims} <= dims - {time}
        }
        alone = {n: v for n, v in every.items() if v.size == 1 and not dims & {*v.dims}}
        # What variables say of a quantity goes before what attributes do.
        said = {**_single(dataset.attrs), **{n: v.values for n, v in alone.items()}}
        numbers = {str(name): quantity(value) for name, value in said.items()}
        own = {f"{n}_units": _units(v) for n, v in alone.items() if _units(v)}
        units = {**dataset.attrs, **own}
        quantities = {
            name: (one[0], one[1] or str(units.get(f"{name}_units", "")))
            for name, one in numbers.items()
            if one
        }
        texts = {str(n): str(v) for n, v in said.items() if not numbers[str(n)]}
        long_names = {n: str(v.attrs.get("long_name", "")) for n, v in every.items()}
        long_names["time"] = long_names[axis]
        others = frozenset(map(str, dataset.data_vars)) - bounds
        return cls(
            *(path, time, order, fields, lines, quantities, texts, long_names),
            *(others, curved, _mesh(dataset), given),
        )

    def label(self, name: str) -> str | float | None:
        """Return what it says of itself by a name: a text, or a number."""
        return self.texts.get(name, self.quantities.get(name, (None, ""))[0])

    @property
    def steps(self) -> int:
        """How many it has."""
        return len(self.order)

    def kind(self, lengths: bool) -> str:
        """Return what most files of a campaign have in common, in any order.

        Without `lengths` the times are left out.
        """
        lines = [
            (name, np.sort(positions).astype("f4").tobytes())
            for name, (_, positions, _) in sorted(self.coordinates.items())
            if lengths or name != "time"
        ]
        fields = [
            (name, units, sorted(sizes.items()))
            for name, (sizes, units) in sorted(self.variables.items())
        ]
        return f"{fields} {lines} {sorted(self.quantities)} {self.mesh}"

    def on(self, grid: FieldSpec) -> list[str]:
        """Return its variables along the time axis and the dims of a grid."""
        sizes = dict(zip(grid.dims, grid.shape, strict=True))
        return [name for name, (own, _) in self.variables.items() if own == sizes]

    def require_same(
        self,
        first: StoredRun,
        grid: FieldSpec,
        positions: Positions,
        parameters: Sequence[str],
        may_end_early: bool = False,
    ) -> None:
        """Raise `Unfit` if it is no simulation of the same fields as the first.

        It may have the first of its steps alone, if simulations `may_end_early`.
        """

        def differs(what: str, expected: object, got: object) -> Unfit:
            return Unfit(f"{self}: {what}", f"{expected} as {first}", got)

        for name in (v.name for v in grid.variables):
            if name not in self.variables:
                near = nearest(name, self.variables)
                raise Unfit(f"{self}: there is no variable {name!r}. {near}")
            if self.variables[name] != first.variables[name]:
                mine, theirs = (
                    f"{f.variables[name][0]} {f.variables[name][1]}".strip()
                    for f in (self, first)
                )
                raise differs(name, theirs, mine)
        for name, given in first.inputs.items():
            if self.inputs.get(name) != given:
                own = " ".join(map(str, self.inputs.get(name, ("none",))))
                raise differs(f"input {name!r}", " ".join(map(str, given)), own)
        for name in ("time", *(c.name for c in grid.coordinates)):
            if name not in self.coordinates:
                raise Unfit(f"{self}: there is no {name!r} as in {first}.")
            units, own = (
                f.coordinates[name][2].partition(" since ")[0] for f in (first, self)
            )
            if own != units:
                raise differs(f"units of {name}", repr(units), repr(own))
        times, own_times = first.coordinates["time"][1], self.coordinates["time"][1]
        if may_end_early:
            times = times[: len(own_times)]
        if len(own_times) != len(times):
            remedy = "Or, if simulations end early, add --may_end_early true."
            shorter = remedy * (len(own_times) < len(times))
            expected = f"{len(times)} steps as {first}"
            raise Unfit(f"{self}: time", expected, len(own_times), shorter)
        apart = np.abs(own_times - times) > 1e-6 * (np.ptp(times) or 1.0)
        if apart.any():
            k = int(apart.argmax())
            raise differs(f"time[{k}]", f"{times[k]:.9g}", f"{own_times[k]:.9g}")
        lines = self.coordinates.items()
        try:
            positions.orders({n: xr.Variable(dim, x) for n, (dim, x, _) in lines})
        except Misplaced as error:
            raise Unfit(f"{self}: {error}") from error
        for name, values in first.curved.items():
            if self.curved.get(name) != values:
                raise Unfit(f"{self}: {name!r} is not that of {first}.")
        if grid.cells is not None and self.mesh != first.mesh:
            raise Unfit(f"{self}: the cells of its mesh are not {first}'s.")
        for name in parameters:
            if not np.isfinite(self.quantities.get(name, (np.nan, ""))[0]):
                near = nearest(name, self.quantities) if self is first else ""
                where = "among its attributes and scalar variables, or in its row"
                where = where if self.quantities else "as it has no row"
                where = f"but {self.texts[name]!r}" if name in self.texts else where
                raise Unfit(f"{self}: no number {name!r}, {where}. {near}".rstrip())
            units, own = (f.quantities[name][1] for f in (first, self))
            if own != units:
                raise differs(f"units of {name}", repr(units), repr(own))


def runs_of(path: Path, reading: Reading) -> list[StoredRun]:
    """Describe each run of a file; `Unfit` if its steps cannot be told."""
    with reading.opened(path) as dataset:
        if RUN not in dataset.sizes:
            return [StoredRun.of(path, dataset, reading)]
        first = StoredRun.of(path, dataset.isel({RUN: 0}), reading)
        # Numbers of the runs; what has no other dim is among those of the first.
        numbers = _columns(dataset, first)
        quantities = {n: q for n, q in first.quantities.items() if n != RUN}
        return [
            replace(
                first,
                index=k,
                quantities=quantities
                | {n: (float(values[k]), u) for n, (values, u) in numbers.items()},
            )
            for k in range(dataset.sizes[RUN])
        ]


def _columns(
    dataset: xr.Dataset, first: StoredRun
) -> dict[str, tuple[Float[np.ndarray, " run"], str]]:
    """Return the numbers of all runs of a file, and their units."""
    fields = {first.time, *(d for sizes, _ in first.variables.values() for d in sizes)}
    columns = {}
    for name, variable in dataset.variables.items():
        other = [d for d in variable.dims if d != RUN]
        known = name == RUN or variable.dtype.kind not in "fiu"
        if known or RUN not in variable.dims or len(other) > 1 or {*other} & fields:
            continue
        values = variable.transpose(RUN, *other).values
        units = first.quantities.get(str(name), (0.0, _units(variable)))[1]
        if not other:
            columns[str(name)] = values, units
        for k in range(values.shape[1] if other else 0):
            columns[f"{name}_{k}"] = values[:, k], units
    return columns


def steps_of(
    run: tuple[Path, int | None],
    reading: Reading,
    spec: FieldSpec,
    size: int,
    first: int = 0,
) -> Iterator[xr.Dataset]:
    """Yield the steps of a run from one on, `size` at a time, at the spec's times.

    The first ones have the inputs of the spec with them. Where the first step is one,
    the others are the steps.
    """
    along = {c.name for c in spec.coordinates}
    with reading.opened(*run) as dataset:
        time, axis = _time_of(run[0], dataset, reading.time)
        order = np.argsort(dataset.variables[axis].values.astype(float))
        given, skipped = _inputs_of(dataset, spec, reading, {time: int(order[0])})
        order = order[skipped:]
        fields = dataset[
            [*(v.name for v in spec.variables), *sorted(along & {*dataset.variables})]
        ]
        fields = fields.set_coords(along & {*fields.variables})
        fields = fields.drop_vars({*fields.coords} - {*spec.dims} - along)
        fields = fields.rename({time: "time"})
        for step in range(first, min(spec.steps, len(order)), size):
            part = fields.isel(time=order[step : step + size])
            times = spec.times[step : step + part.sizes["time"]]
            yield part.load().assign_coords(time=list(times)).assign(given)
            given = {}


def _inputs_of(
    dataset: xr.Dataset, spec: FieldSpec, reading: Reading, first: Mapping[str, int]
) -> tuple[dict[str, xr.Variable], int]:
    """Return the input fields of a run, and how many steps are no step of the spec."""
    given, skipped = {}, 0
    for name in (v.name for v in spec.inputs):
        if name in reading.inputs:
            given[name] = dataset.variables[name].load()
        else:
            variable = dataset.variables[name.removesuffix(INITIAL)]
            given[name], skipped = variable.isel(first).load(), 1
    return given, skipped


def _time_of(path: Path, dataset: xr.Dataset, asked: str) -> tuple[str, str]:
    """Return the dim of the steps, and the variable of their times."""
    lines = {
        str(n): str(v.dims[0]) for n, v in dataset.variables.items() if v.ndim == 1
    }
    marked = {
        dim: name
        for name, dim in lines.items()
        if name.lower() in ("time", "t")
        or dataset.variables[name].attrs.get("axis") == "T"
        or dataset.variables[name].attrs.get("standard_name") == "time"
    }
    dims = [asked] if asked else list(marked)
    axis = marked.get(dims[0], dims[0]) if len(dims) == 1 else ""
    if lines.get(axis) == "".join(dims) and dataset.variables[axis].dtype.kind in "fiu":
        return dims[0], axis
    what = f"the dims {', '.join(map(str, dataset.sizes))}"
    remedy = "Name it: --time DIM; or give it a coordinate."
    if not dataset.sizes:
        what, remedy = "no dim", "What lies in groups is not read: write it to the top."
    raise Unfit(
        f"{path}: expected a dim {asked or 'time'!r} with the times of its steps as "
        f"numbers, got {what}. {remedy}"
    )


def cells_of(dataset: xr.Dataset) -> tuple[str, str, Int[np.ndarray, "cell node"]]:
    """Return the coordinates and dim of nodes, and those of each face, by UGRID, or -1.

    Both names are empty where there is no mesh.
    """
    for mesh in dataset.variables.values():
        if mesh.attrs.get("cf_role") == "mesh_topology":
            faces = dataset.variables[mesh.attrs["face_node_connectivity"]]
            names = mesh.attrs["node_coordinates"]
            first = int(faces.attrs.get("start_index", 0))
            # Faces of fewer nodes than others are filled up.
            nodes = np.where(faces.values >= first, faces.values - first, -1)
            (dim,) = dataset.variables[names.split()[0]].dims
            return names, str(dim), nodes.astype(np.int64)
    return "", "", np.empty((0, 0), np.int64)


def _mesh(dataset: xr.Dataset) -> int:
    """Return what meshes share whose nodes or cells are in another order."""
    names, dim, cells = cells_of(dataset)
    if not dim:
        return 0
    positions = [dataset.variables[n].values.astype("f4") for n in names.split()]
    rank = np.argsort(np.lexsort(positions))
    ranks = np.where(cells < 0, cells, rank.take(cells, mode="clip"))
    return hash(np.unique(np.sort(ranks, axis=1), axis=0).tobytes())


def _units(variable: Any) -> str:
    return str(variable.attrs.get("units", ""))


def _single(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Return each with its name, and each number of a vector with its place, from 0."""
    single: dict[str, Any] = {}
    for name, value in attributes.items():
        vector = np.ndim(value) == 1 and np.asarray(value).dtype.kind in "fiu"
        if vector and np.size(value) > 1:
            single |= {f"{name}_{k}": number for k, number in enumerate(value)}
        else:
            single[str(name)] = value
    return single


def quantity(value: Any) -> tuple[float, str] | None:
    """Return a number and its units, also from a text; None if it is none.

    Examples
    --------
    >>> quantity("2.8e-3 m2/s"), quantity("0.5"), quantity("12 of 20")
    ((0.0028, 'm2/s'), (0.5, ''), None)
    """
    if np.size(value) != 1 or isinstance(value, bool | np.bool_):
        return None
    value, units = np.asarray(value).reshape(()).item(), ""
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        value, units = match["number"], match["units"]
    with suppress(TypeError, ValueError):
        return float(value), units
    return None
