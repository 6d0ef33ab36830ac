"""Which dim of a field lies across a picture, and which one up."""

from __future__ import annotations

import re
from typing import Any

import xarray as xr

__all__ = ["across_up_and_cut"]

# Across, up, and out of the picture, by words in the names or units of coordinates.
_DIRECTIONS = {
    word: direction
    for direction, words in enumerate(
        (
            "x nx ix xc rlon lon longitude east easting west",
            "y ny iy yc rlat lat latitude north northing south",
            "z nz iz zc depth height level lev altitude bottom plev",
        )
    )
    for word in words.split()
}


def across_up_and_cut(field: xr.DataArray) -> list[Any]:
    """Return the horizontal dim, the vertical one, and those that are cut.

    By their names or coordinates, if these say it; else the last is horizontal, as of
    an image.
    """
    dims = list(field.dims)
    if dims[0] == "time":
        return dims
    directions = {}
    for dim in dims:
        along = [c for c in field.coords.values() if c.dims == (dim,)]
        said = [dim, *(c.name for c in along), *(c.attrs.get("units") for c in along)]
        words = re.findall("[a-z]+", " ".join(map(str, said)).lower())
        known = [_DIRECTIONS[word] for word in words if word in _DIRECTIONS]
        directions[dim] = known[0] if known else None
    if len({*directions.values()} - {None}) == len(dims):
        return sorted(dims, key=lambda dim: directions[dim] or 0)
    return dims[::-1]
