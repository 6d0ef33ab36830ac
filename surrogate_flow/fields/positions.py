"""Where the points of a grid lie, so that fields in another order are put right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from surrogate_flow.fields.spec import FieldSpec

__all__ = ["Misplaced", "Positions", "snapped"]

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
        self._known = {c.name for c in spec.coordinates}
        self._others = {v.name for v in spec.variables} | {"time"}
        self._others |= {p.name for p in spec.parameters}
        self._others |= {v.name for v in spec.inputs}
        # What was given last, and its orders: the same with each step, mostly.
        self._given = dict[Any, xr.Variable]()
        self._orders: list[tuple[int, Int[np.ndarray, " point"]]] = []
        self._last: dict[str, tuple[np.ndarray, Int[np.ndarray, " point"]]] = {}

    def orders(
        self, variables: Mapping[Any, xr.Variable]
    ) -> list[tuple[int, Int[np.ndarray, " point"]]]:
        """Return each axis whose points are not in order, and where each one is.

        Coordinates of another length do not count: nor do fields have their shape.
        Points along a dim without a known one are in order if they ascend.

        Raises
        ------
        Misplaced
            If they are other points, by more than round-off, or in no known order.
        """
        # `items` of a data set's variables take as long as the rest.
        given = {n: variables[n] for n in variables if n not in self._others}
        last = self._given
        if [*given, *map(id, given.values())] == [*last, *map(id, last.values())]:
            return self._orders
        orders = []
        for axis, dim, known in self._dims:
            got = {n: _line(dim, n, given[n]) for n in known if n in given}
            if not got:
                others = {n: v for n, v in given.items() if n not in self._known}
                _require_ascending(dim, others, [*known])
            if all(np.array_equal(x, known[name]) for name, x in got.items()):
                continue
            if any(len(x) != len(known[name]) for name, x in got.items()):
                continue
            rows = np.stack([*got.values()], axis=-1)
            seen, order = self._last.get(dim, (np.empty(0), np.empty(0, np.int64)))
            if not np.array_equal(seen, rows):
                expected = np.stack([known[name] for name in got], axis=-1)
                order = _order(expected, rows, "', '".join(got))
                self._last[dim] = rows, order
            if (np.diff(order) != 1).any():
                orders.append((axis, order))
        # Others may change.
        lasting = all(isinstance(v, xr.IndexVariable) for v in given.values())
        self._given, self._orders = (given, orders) if lasting else ({}, [])
        return orders


def snapped(
    spec: FieldSpec, dim: str, got: Float[np.ndarray, " point"]
) -> Float[np.ndarray, " point"]:
    """Return positions along a dim as those of the spec from which they are rounded.

    Others, and all where the spec has no coordinate of that name, stay as they are.
    """
    known = np.array([x for c in spec.coordinates if c.name == dim for x in c.values])
    if not known.size or got.dtype.kind not in "fiu":
        return got
    known = np.unique(known)
    nearest = known[np.searchsorted((known[1:] + known[:-1]) / 2, got)]
    near = np.abs(nearest - got) <= _tolerance(known[:, None])
    return np.where(near, nearest, got)


def _require_ascending(
    dim: str, given: Mapping[Any, xr.Variable], known: Sequence[str]
) -> None:
    for name, variable in given.items():
        if variable.dims != (dim,) or variable.dtype.kind not in "fiu":
            continue
        steps = np.diff(variable.values)
        # Any number may lie along a dim, such as a mask; descending ones are positions.
        if (steps > 0).all() or (name != dim and not (steps < 0).all()):
            continue
        has = f"has {', '.join(map(repr, known))}" if known else "has none"
        raise Misplaced(
            f"coordinate {name!r} expected points in ascending order, as the spec "
            f"{has} along {dim!r}, got {_shown(variable.values)}. Add "
            f"Coordinate({name!r}, {dim!r}, ...) with its values to the spec, by "
            "which fields are put right, or rename or drop it in the solver."
        )


def _line(dim: str, name: str, variable: xr.Variable) -> Float[np.ndarray, " point"]:
    """Return positions along a dim; those along others too may not differ there."""
    dims, values = variable.dims, variable.values
    if dim in dims and values.dtype.kind in "fiu":
        rows = values if len(dims) == 1 else np.moveaxis(values, dims.index(dim), 0)
        rows = rows.reshape(len(rows), -1).astype(np.float64)
        if rows.shape[1] == 1 or (rows == rows[:, :1]).all():
            line: Float[np.ndarray, " point"] = rows[:, 0]
            return line
    raise Misplaced(
        f"coordinate {name!r} expected numbers along {dim!r}, as the spec has it, "
        f"got the dims {dims} and dtype {values.dtype}. Drop it, or "
        "rename it in the solver."
    )


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
        near = _tolerance(expected)
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


def _tolerance(expected: Float[np.ndarray, "point dim"]) -> float:
    """Return how far rounding may have moved a point, but to no other one."""
    from scipy.spatial import cKDTree

    size = gap = float(np.abs(expected).max()) or 1.0
    different = np.unique(expected, axis=0)
    if len(different) > 1:
        gap = cKDTree(different).query(different, k=2)[0][:, 1].min()
    rounding = 2 * float(np.finfo(np.float32).eps) * size
    return float(np.clip(rounding, _NEAR * gap, _FAR * gap))


def _shown(points: np.ndarray) -> str:
    return np.array2string(points, threshold=6, edgeitems=2, precision=6)
