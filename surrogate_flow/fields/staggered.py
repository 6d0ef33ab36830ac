"""Staggered grids: variables along dims of their own, and the box that holds them all.

Each lies at the begin of the box, whose rest is NaN, as masked points are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.quantities import Variable

__all__ = ["box", "boxed", "grids", "sizes_of", "smallest_box"]

#: A FieldSpec, whose file imports this one.
Spec = Any


def sizes_of(spec: Spec) -> dict[str, int]:
    """Return the size of each dim; on a staggered grid coordinates have it.

    Raises
    ------
    ArgumentError
        If dims of a variable do not stand for those of the spec, or have no coordinate.
    """
    sizes = dict(zip(spec.dims, spec.shape, strict=False))
    if not spec.staggered:
        return sizes
    for v in spec.variables:
        own = v.dims or spec.dims
        others = (spec.dims[:k] + spec.dims[k + 1 :] for k in range(len(own)))
        moved = any(dim in dims for dim, dims in zip(own, others, strict=True))
        if len(own) != len(spec.dims) or moved or spec.cells or spec.inputs:
            raise ArgumentError(
                f"FieldSpec: Variable {v.name!r}: dims",
                f"one for each of {spec.dims}, in this order, on a grid without cells "
                "and without inputs",
                own,
            )
    known = {c.dim: len(c.values) for c in spec.coordinates}
    for axis, of_spec in enumerate(spec.dims):
        names = _along(spec, axis)
        if names == [of_spec]:
            continue
        for dim in names:
            if dim not in known:
                raise ArgumentError(
                    f"FieldSpec: dim {dim!r} of a staggered grid",
                    "a Coordinate along it, which has its size",
                    "none",
                )
        sizes |= {dim: known[dim] for dim in (of_spec, *names) if dim in known}
    return sizes


def smallest_box(spec: Spec, sizes: dict[str, int]) -> tuple[int, ...]:
    """Return the shape of the smallest box that holds all variables."""
    if not spec.staggered:
        return tuple(spec.shape)
    axes = range(len(spec.dims))
    return tuple(max(sizes[dim] for dim in _along(spec, axis)) for axis in axes)


def _along(spec: Spec, axis: int) -> list[str]:
    """Return the dims that variables have along an axis."""
    return [*dict.fromkeys((v.dims or spec.dims)[axis] for v in spec.variables)]


def boxed(
    spec: Spec, variable: Variable, field: Float[np.ndarray, "*lead *space"]
) -> np.ndarray:
    """Return a field of a variable with NaN up to the box."""
    more = [n - m for n, m in zip(spec.shape, spec.shape_of(variable), strict=True)]
    if not any(more):
        return field
    lead = [(0, 0)] * (field.ndim - len(more))
    return np.pad(field, [*lead, *((0, n) for n in more)], constant_values=np.nan)


def box(spec: Spec) -> Spec:
    """Return the spec of all variables in the box, on its longest grids.

    It is what networks, losses and pictures see.
    """
    if not spec.staggered:
        return spec
    sizes, coordinates = sizes_of(spec), []
    for axis, dim in enumerate(spec.dims):
        longest = max(_along(spec, axis), key=lambda name: sizes[name])
        along = [c for c in spec.coordinates if c.dim == longest]
        if longest != dim:
            along = [replace(along[0], name=dim)]
        coordinates += [replace(c, dim=dim) for c in along]
    variables = [
        replace(v, dims=(), masked=v.masked or spec.shape_of(v) != spec.shape)
        for v in spec.variables
    ]
    return replace(spec, variables=tuple(variables), coordinates=tuple(coordinates))


def grids(spec: Spec) -> list[Spec]:
    """Return a plain spec for each grid, with the variables that lie on it."""
    grouped: dict[tuple[str, ...], list[Variable]] = {}
    for v in spec.variables:
        grouped.setdefault(v.dims or spec.dims, []).append(v)
    return [
        replace(
            spec,
            variables=tuple(replace(v, dims=()) for v in on_it),
            dims=dims,
            shape=spec.shape_of(on_it[0]),
            coordinates=tuple(c for c in spec.coordinates if c.dim in dims),
        )
        for dims, on_it in grouped.items()
    ]
