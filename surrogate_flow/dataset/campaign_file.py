"""What the file of a simulation that has ended says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Int

from surrogate_flow.dataset.writer import ArchiveError
from surrogate_flow.fields.conventions import time_units
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.positions import Misplaced, Positions
from surrogate_flow.fields.spec import FieldSpec

__all__ = ["CampaignFile", "Unfit", "quantity"]

# 2.8 m2/s, 2.8 [m2 s-1], 20 %; no date, no hash, no "12 of 20".
_UNIT = r"[^\W\d_]+(?:\^|\*\*)?[-+]?\d?"
_UNITS = rf"(?:1/)?(?:{_UNIT}|[%°][^\W\d_]?)(?:[ */.·]\(?{_UNIT}\)?)*"
_QUANTITY = re.compile(
    rf"(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    rf"(?:\s+|(?=[%°]))(?P<bracket>[\[(])?(?P<units>{_UNITS})(?(bracket)[\])])"
)


class Unfit(ArchiveError):
    """A file is no simulation, or differs from the others."""


@dataclass(frozen=True)
class CampaignFile:
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

    @classmethod
    def of(cls, path: Path, dataset: xr.Dataset, time: str) -> CampaignFile:
        """Describe an open file; `Unfit` if its steps cannot be told."""
        time, axis = _time_of(path, dataset, time)
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
        dims = {time, *(dim for sizes, _ in fields.values() for dim in sizes)}
        lines = {
            name: (str(v.dims[0]), v.values.astype(float), _units(v))
            for name, v in every.items()
            if v.ndim == 1 and v.dtype.kind in "fiu" and v.dims[0] in dims - {time}
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
            *(others, curved, _mesh(dataset)),
        )

    def label(self, name: str) -> str | float | None:
        """Return what it says of itself by a name: a text, or a number."""
        return self.texts.get(name, self.quantities.get(name, (None, ""))[0])

    @property
    def kind(self) -> str:
        """What most files of a campaign have in common, in any order."""
        lines = [
            (name, np.sort(positions).astype("f4").tobytes())
            for name, (_, positions, _) in sorted(self.coordinates.items())
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
        first: CampaignFile,
        grid: FieldSpec,
        positions: Positions,
        parameters: Sequence[str],
    ) -> None:
        """Raise `Unfit` if it is no simulation of the same fields as the first."""

        def differs(what: str, expected: object, got: object) -> Unfit:
            return Unfit(f"{self.path}: {what}", f"{expected} as {first.path}", got)

        for name in (v.name for v in grid.variables):
            if name not in self.variables:
                near = nearest(name, self.variables)
                raise Unfit(f"{self.path}: there is no variable {name!r}. {near}")
            if self.variables[name] != first.variables[name]:
                mine, theirs = (
                    f"{f.variables[name][0]} {f.variables[name][1]}".strip()
                    for f in (self, first)
                )
                raise differs(name, theirs, mine)
        for name in ("time", *(c.name for c in grid.coordinates)):
            if name not in self.coordinates:
                raise Unfit(f"{self.path}: there is no {name!r} as in {first.path}.")
            units, own = (
                f.coordinates[name][2].partition(" since ")[0] for f in (first, self)
            )
            if own != units:
                raise differs(f"units of {name}", repr(units), repr(own))
        times, own_times = first.coordinates["time"][1], self.coordinates["time"][1]
        if len(own_times) != len(times):
            raise differs("time", f"{len(times)} steps", len(own_times))
        apart = np.abs(own_times - times) > 1e-6 * (np.ptp(times) or 1.0)
        if apart.any():
            k = int(apart.argmax())
            raise differs(f"time[{k}]", f"{times[k]:.9g}", f"{own_times[k]:.9g}")
        lines = self.coordinates.items()
        try:
            positions.orders({n: xr.Variable(dim, x) for n, (dim, x, _) in lines})
        except Misplaced as error:
            raise Unfit(f"{self.path}: {error}") from error
        for name, values in first.curved.items():
            if self.curved.get(name) != values:
                raise Unfit(f"{self.path}: {name!r} is not that of {first.path}.")
        if grid.cells is not None and self.mesh != first.mesh:
            raise Unfit(f"{self.path}: the cells of its mesh are not {first.path}'s.")
        for name in parameters:
            if not np.isfinite(self.quantities.get(name, (np.nan, ""))[0]):
                near = nearest(name, self.quantities) if self is first else ""
                where = "among its attributes and scalar variables, or in its row"
                where = where if self.quantities else "as it has no row"
                where = f"but {self.texts[name]!r}" if name in self.texts else where
                raise Unfit(
                    f"{self.path}: no number {name!r}, {where}. {near}".rstrip()
                )
            units, own = (f.quantities[name][1] for f in (first, self))
            if own != units:
                raise differs(f"units of {name}", repr(units), repr(own))


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
