"""What the file of a simulation that has ended says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from surrogate_flow.dataset.writer import ArchiveError

__all__ = ["CampaignFile"]

#: The dim of a mesh's nodes, and the nodes of each cell.
Cells = tuple[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class CampaignFile:
    """What a file says of its simulation, without the fields."""

    path: Path
    #: The dim of the steps.
    time: str
    #: Of each variable along it: its other dims with their sizes, and its units.
    variables: Mapping[str, tuple[Mapping[str, int], str]]
    #: By name: the dim, positions along it, and their units; "time" is that of steps.
    coordinates: Mapping[str, tuple[str, np.ndarray, str]]
    #: Single numbers, and their units.
    quantities: Mapping[str, tuple[float, str]]
    cells: Cells | None = None

    @classmethod
    def of(cls, path: Path, dataset: xr.Dataset, time: str) -> CampaignFile:
        """Describe an open file; an ArchiveError if its steps cannot be told."""
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
        lines["time"] = ("time", every[axis].values.astype(float), _units(every[axis]))
        alone = {n: v for n, v in every.items() if v.size == 1 and not dims & {*v.dims}}
        quantities = {
            name: (value, str(dataset.attrs.get(f"{name}_units", "")))
            for name, value in _numbers(dataset.attrs)
        }
        numbers = _numbers({name: v.values for name, v in alone.items()})
        quantities |= {name: (value, _units(alone[name])) for name, value in numbers}
        return cls(path, time, fields, lines, quantities, _cells(every))

    @property
    def kind(self) -> str:
        """What most files of a campaign have in common."""
        lines = {
            n: np.round(line[1], 6).tobytes() for n, line in self.coordinates.items()
        }
        return f"{dict(self.variables)} {lines} {[*self.quantities]}"


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
    raise ArchiveError(
        f"{path}: expected a dim {asked or 'time'!r} with the times of its steps as "
        f"numbers, got the dims {', '.join(map(str, dataset.sizes))}. Name it: --time "
        "DIM."
    )


def _cells(variables: Mapping[str, Any]) -> Cells | None:
    """Return the dim of a mesh's nodes and the nodes of each face, by UGRID."""
    for mesh in variables.values():
        if mesh.attrs.get("cf_role") == "mesh_topology":
            faces = variables[mesh.attrs["face_node_connectivity"]]
            node = variables[mesh.attrs["node_coordinates"].split()[0]]
            first = int(faces.attrs.get("start_index", 0))
            # Faces of fewer nodes than others are filled up.
            rows = [row[np.isfinite(row) & (row >= first)] for row in faces.values]
            cells = tuple(tuple((row - first).astype(int).tolist()) for row in rows)
            return str(node.dims[0]), cells
    return None


def _units(variable: Any) -> str:
    return str(variable.attrs.get("units", ""))


def _numbers(values: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    """Yield what is a single number, or a text that is one."""
    for name, value in values.items():
        if np.size(value) == 1 and not isinstance(value, bool | np.bool_):
            try:
                yield str(name), float(np.asarray(value).reshape(()).item())
            except (TypeError, ValueError):
                continue
