"""Where the points of a grid lie, so that fields in another order are put right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from surrogate_flow.fields.spec import FieldSpec

__all__ = ["Misplaced", "Positions"]

_NEAR, _FAR = 0.01, 0.4  # of the distance between two points
_NOTHING = object()


class Misplaced(ValueError):
    """Coordinates are not those of the spec, in any order."""


class Positions:
    """The points along each dim, by the coordinates of a spec.

    Parameters
    ----------
    spec : FieldSpec

    Examples
    --------
    >>> from surrogate_flow.fields import Coordinate, Variable
    >>> x = Coordinate("x", "x", (0.0, 0.5, 1.0))
    >>> spec = FieldSpec((), (Variable("u"),), ("x",), (3,), (0.0,), coordinates=(x,))
    >>> Positions(spec).orders({"x": xr.Variable("x", [1.0, 0.5, 0.0])})
    [(0, array([2, 1, 0]))]
    """

    def __init__(self, spec: FieldSpec) -> None:
        self._dims = [
            (axis, dim, {c.name: np.array(c.values) for c in along})
            for axis, dim in enumerate(spec.dims)
            for along in ([c for c in spec.coordinates if c.dim == dim],)
        ]
        # What was given last, and its orders: the same with each step, mostly.
        self._given: list[tuple[str, object]] = [
            (name, _NOTHING) for _, dim, known in self._dims for name in {dim, *known}
        ]
        self._orders: list[tuple[int, Int[np.ndarray, " point"]]] = []
        self._last: dict[str, tuple[np.ndarray, Int[np.ndarray, " point"]]] = {}

    def orders(
        self, variables: Mapping[Any, xr.Variable]
    ) -> list[tuple[int, Int[np.ndarray, " point"]]]:
        """Return each axis whose points are not in order, and where each one is.

        A coordinate that is not given, or whose fields have another shape, does not
        count. Points along a dim without a known one are in order if they ascend.

        Raises
        ------
        Misplaced
            If they are other points, by more than round-off, or in no known order.
        """
        for name, last in self._given:
            if variables.get(name) is not last:
                break
        else:
            return self._orders
        orders = []
        for axis, dim, known in self._dims:
            got = {name: variables[name] for name in known if name in variables}
            if not got:
                _require_ascending(dim, variables.get(dim))
            if all(_same(dim, known[name], variable) for name, variable in got.items()):
                continue
            if any(v.size != known[name].size for name, v in got.items()):
                continue
            rows = np.stack([_numbers(dim, *item) for item in got.items()], axis=-1)
            seen, order = self._last.get(dim, (np.empty(0), np.empty(0, np.int64)))
            if not np.array_equal(seen, rows):
                expected = np.stack([known[name] for name in got], axis=-1)
                order = _order(expected, rows, "', '".join(got))
                self._last[dim] = rows, order
            if (np.diff(order) != 1).any():
                orders.append((axis, order))
        given = [variables.get(name) for name, _ in self._given]
        # Others may change.
        if all(v is None or isinstance(v, xr.IndexVariable) for v in given):
            self._given = [(n, v) for (n, _), v in zip(self._given, given, strict=True)]
            self._orders = orders
        return orders


def _require_ascending(dim: str, index: xr.Variable | None) -> None:
    if index is None or index.dtype.kind not in "fiu":
        return
    if not (np.diff(index.values) > 0).all():
        raise Misplaced(
            f"coordinate {dim!r} expected points in ascending order, as the spec "
            f"has no coordinate of that name, got {_shown(index.values)}. Add "
            f"Coordinate({dim!r}, {dim!r}, ...) with its values to the spec, by "
            "which fields are put right, or drop it in the solver."
        )


def _same(dim: str, known: np.ndarray, variable: xr.Variable) -> bool:
    return variable.dims == (dim,) and np.array_equal(variable.values, known)


def _numbers(dim: str, name: str, variable: xr.Variable) -> Float[np.ndarray, " point"]:
    if variable.dims != (dim,) or variable.dtype.kind not in "fiu":
        raise Misplaced(
            f"coordinate {name!r} expected numbers along {dim!r}, as the spec has it, "
            f"got the dims {variable.dims} and dtype {variable.dtype}. Drop it, or "
            "rename it in the solver."
        )
    numbers: Float[np.ndarray, " point"] = variable.values.astype(np.float64)
    return numbers


def _order(
    expected: Float[np.ndarray, "point dim"],
    got: Float[np.ndarray, "point dim"],
    names: str,
) -> Int[np.ndarray, " point"]:
    """Return where each expected point is among the given ones."""
    # Few need it, and it takes a worker a tenth of a second.
    from scipy.spatial import cKDTree

    count = len(expected)
    if np.isfinite(got).all():
        size = np.abs(expected).max() or 1.0
        different = np.unique(expected, axis=0)
        gap = size
        if len(different) > 1:
            gap = cKDTree(different).query(different, k=2)[0][:, 1].min()
        # As far as single precision may have moved a point, but to no other one.
        rounding = 2 * float(np.finfo(np.float32).eps) * size
        near = np.clip(rounding, _NEAR * gap, _FAR * gap)
        if np.abs(got - expected).max() <= near:
            return np.arange(count)
        distance, place = cKDTree(expected).query(got)
        if (distance <= near).all() and len(np.unique(place)) == count:
            return np.argsort(place)
    shown = [_shown(x.squeeze()) for x in (expected, got)]
    raise Misplaced(
        f"coordinate '{names}' expected the positions of the spec, in any order: "
        f"{shown[0]}, got {shown[1]}. Usual causes: other units, edges for centres, or "
        "-180 to 180 degrees for 0 to 360. Correct them in the solver or in its spec."
    )


def _shown(points: np.ndarray) -> str:
    return np.array2string(points, threshold=6, edgeitems=2, precision=6)
