"""A field on a triangulated mesh, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import xarray as xr

__all__ = ["draw_mesh"]


def draw_mesh(
    axis: Any,
    field: xr.DataArray,
    cells: Sequence[Sequence[int]],
    label: str,
    **colours: Any,
) -> None:
    """Draw the cells in the colours of their nodes, with a colour bar.

    Parameters
    ----------
    axis : matplotlib.axes.Axes
    field : xarray.DataArray
        One value a node, whose first two coordinates along its dim are the position.
    cells : sequence of sequence of int
        Node numbers of each cell, convex and in the order of its outline.
    label : str
        Of the colour bar.
    **colours
        Of matplotlib: vmin, vmax, cmap.
    """
    x, y = [c for c in field.coords.values() if c.dims == field.dims][:2]
    triangles = [(cell[0], b, c) for cell in cells for b, c in pairwise(cell[1:])]
    drawn = axis.tripcolor(x, y, triangles, field, shading="gouraud", **colours)
    axis.figure.colorbar(drawn, ax=axis, label=label, shrink=0.8)
    axis.set_aspect("equal")
    axis.locator_params(nbins=5)
    for name, position in (("x", x), ("y", y)):
        units = position.attrs.get("units")
        words = f"{position.name} [{units}]" if units else str(position.name)
        axis.set(**{f"{name}label": words})
