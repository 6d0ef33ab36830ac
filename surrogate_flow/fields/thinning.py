"""Fields on fewer points, for those who look at a run rather than train on it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import xarray as xr
from jaxtyping import Float

from surrogate_flow.fields.names import apart
from surrogate_flow.fields.quantities import SURROGATE, attributes
from surrogate_flow.fields.spec import Coordinate, FieldSpec
from surrogate_flow.fields.staggered import box

__all__ = ["SURROGATE", "Thinning", "cells_of", "variables_of"]

_CELLS = ("cell", "corner")  # dims; -1 stands for no corner


@dataclass(frozen=True)
class Thinning:
    """u[..., *space] -> u[..., ::s, ::s]: every s-th point, one plane of what is cut.

    Attributes
    ----------
    spec : FieldSpec
        Of the thin fields. A mesh that loses nodes has no cells.
    index : tuple of slice
        Of the axes of space, of whatever holds the fields; cut dims keep one point.
    planes : mapping of str to Coordinate
        Where each cut dim is cut: its only value is in the middle.

    Examples
    --------
    >>> from surrogate_flow.solvers import Heat2D
    >>> thin = Thinning.of(Heat2D(cells=(64, 48)).spec, 1000)
    >>> thin.spec.shape, thin.index[0]
    ((32, 24), slice(None, None, 2))
    """

    spec: FieldSpec
    index: tuple[slice, ...]
    planes: Mapping[str, Coordinate]

    @classmethod
    def of(cls, spec: FieldSpec, points: int, cut: Sequence[str] = ()) -> Self:
        """Return the least stride, the same along all dims, that leaves so many points.

        Parameters
        ----------
        spec : FieldSpec
        points : int
            At most, but one along each dim.
        cut : sequence of str
            Dims of which the middle alone is left.
        """
        spec = box(spec)
        kept = [
            n for n, dim in zip(spec.shape, spec.dims, strict=True) if dim not in cut
        ]
        stride = 1
        while stride < max(kept, default=1) and _points(kept, stride) > points:
            stride += 1
        index = {
            dim: slice(n // 2, n // 2 + 1) if dim in cut else slice(None, None, stride)
            for dim, n in zip(spec.dims, spec.shape, strict=True)
        }
        coordinates = [
            replace(c, values=c.values[index[c.dim]]) for c in spec.coordinates
        ]
        thin = replace(
            spec,
            dims=tuple(dim for dim in spec.dims if dim not in cut),
            shape=tuple(-(-n // stride) for n in kept),
            coordinates=tuple(c for c in coordinates if c.dim not in cut),
            cells=spec.cells if stride == 1 else None,
        )
        planes = {c.name: c for c in coordinates if c.dim in cut}
        return cls(thin, tuple(index.values()), planes)

    def apart(self, own: Collection[str]) -> Self:
        """Return it with other names for what is called like a part of a file."""
        spec = self.spec
        parameters = apart([p.name for p in spec.parameters], own)

        def free(name: str) -> str:
            return apart([name], own, "_field")[0]

        def moved(c: Coordinate) -> Coordinate:
            return replace(c, name=free(c.name), dim=free(c.dim))

        renamed = replace(
            spec,
            parameters=tuple(
                replace(p, name=name)
                for p, name in zip(spec.parameters, parameters, strict=True)
            ),
            variables=tuple(replace(v, name=free(v.name)) for v in spec.variables),
            dims=tuple(map(free, spec.dims)),
            coordinates=tuple(map(moved, spec.coordinates)),
        )
        planes = {free(name): moved(c) for name, c in self.planes.items()}
        return replace(self, spec=renamed, planes=planes)

    def dataset(
        self,
        truth: Float[np.ndarray, "*lead channel *space"],
        guess: Float[np.ndarray, "*lead channel *space"],
        lead: Sequence[str],
        coordinates: Mapping[str, Any],
    ) -> xr.Dataset:
        """Return thin fields of a solver and its surrogate, with units and coordinates.

        Parameters
        ----------
        truth, guess : array
            In the units of the variables.
        lead : sequence of str
            Names of the dims before those of space.
        coordinates : mapping of str to object
            As xarray takes them, beside those of the grid.
        """
        spec, fields = self.spec, {}
        pairs = (("", "", truth), (SURROGATE, ", predicted", guess))
        for suffix, words, physical in pairs:
            for channel, v in enumerate(spec.variables):
                of_one = np.take(physical, channel, axis=len(lead))
                what = attributes(v.units, f"{v.long_name or v.name}{words}")
                fields[v.name + suffix] = ((*lead, *spec.dims), of_one, what)
        if spec.cells is not None:
            # Cells may differ in their number of nodes.
            corners = max(map(len, spec.cells))
            cells = [[*cell, *[-1] * (corners - len(cell))] for cell in spec.cells]
            fields["cells"] = (_CELLS, np.array(cells, dtype=np.int32), {})
        grid = {
            c.name: (
                () if c.name in self.planes else c.dim,
                c.values[0] if c.name in self.planes else list(c.values),
                attributes(c.units, c.long_name or c.name),
            )
            for c in (*spec.coordinates, *self.planes.values())
        }
        return xr.Dataset(fields, coords={**grid, **coordinates})


def variables_of(fields: xr.Dataset) -> list[str]:
    """Return the names of the variables that solver and surrogate both have."""
    return [str(n) for n in fields.data_vars if f"{n}{SURROGATE}" in fields]


def cells_of(fields: xr.Dataset) -> list[list[int]] | None:
    """Return the nodes of each cell of a data set's mesh; None if it has no cells."""
    cells = fields.get("cells")
    # Else a parameter is called so.
    if cells is None or cells.dims != _CELLS:
        return None
    return [[n for n in cell if n >= 0] for cell in cells.values.tolist()]


def _points(sizes: Sequence[int], stride: int) -> int:
    return math.prod(-(-n // stride) for n in sizes)
