"""Points where a field is not defined, and what codes write there."""

from __future__ import annotations

import numpy as np
import xarray as xr

__all__ = ["KNOWN_FILLS", "MASKED", "declared_fills", "only_marks", "without_fills"]

# What codes write where a field is not defined: netCDF, CMIP, MERRA, GRIB, GeoTIFF and
# others, as kept in single precision.
_FILLS = [9.969209968386869e36, 3.4028234663852886e38, 3.4e38, 1e37, 1e36, 1e35]
_FILLS += [1e34, 1e30, 9.999e20, 1e20, 1e15, 2147483648.0]
_FILLS += [-fill for fill in _FILLS] + [-32767.0, -32768.0, -999.0, -9999.0, -99999.0]
KNOWN_FILLS = frozenset(np.array([*_FILLS, 9999.0, 99999.0], np.float32).tolist())


MASKED = (
    "Leave them out: Variable(..., masked=True) in the spec (of stored runs masked: "
    "[NAME], or --masked NAME), and NaN there, such as dataset.where(known). Or fill "
    "them with a number, such as dataset.where(known, 0)."
)


def declared_fills(given: xr.Variable) -> set[float]:
    """Return the numbers that are declared to mark points, not to be values."""
    packed = {"scale_factor", "add_offset"} & {*given.encoding}
    return {
        fill
        for place in ((given.attrs,) if packed else (given.attrs, given.encoding))
        for key in ("_FillValue", "missing_value")
        if key in place
        for fill in _numbers(place[key])
    }


def without_fills(given: xr.Variable, values: np.ndarray) -> np.ndarray:
    """Return values with NaN where they are declared to be none."""
    for fill in declared_fills(given):
        marked = values.astype(np.float32) == fill
        values = np.where(marked, np.nan, values) if marked.any() else values
    return values


def _numbers(fill: object) -> set[float]:
    fills = np.ravel(np.asarray(fill))
    real = fills.dtype.kind in "fiu"
    # Zero is what points are filled with that do not matter.
    return set(fills[fills != 0].astype(np.float32).tolist()) if real else set()


def only_marks(fill: float, repeated: bool, others: np.ndarray) -> bool:
    """Whether a known fill value is far from all that a field else has."""
    others = others.astype(np.float64)
    low, high = others.min(initial=np.inf), others.max(initial=-np.inf)
    if abs(fill) < 1e10:
        negative = fill < 0 <= low
        far = max(low - fill, fill - high) > high - low
        return repeated and bool(others.size) and bool(negative or far)
    most = max(abs(low), abs(high)) if others.size else 0.0
    # A density may be 1e20 inside, and 0 outside.
    return bool(most < 1e-9 * abs(fill) and (abs(fill) > 1e29 or (repeated and most)))
