"""Input fields: what a simulation is given, one of each, rather than solves for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Float32

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.positions import Misplaced, Positions
from surrogate_flow.fields.quantities import described
from surrogate_flow.fields.spec import FieldSpec

__all__ = [
    "arrays_in",
    "inputs_in",
    "labelled_inputs",
    "named_inputs",
    "split_inputs",
    "stacked_inputs",
    "without_inputs",
]


def split_inputs(
    spec: FieldSpec, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters of what a simulation is given, and its input fields."""
    names = {v.name for v in spec.inputs}
    return (
        {name: value for name, value in given.items() if name not in names},
        {name: value for name, value in given.items() if name in names},
    )


def stacked_inputs(
    spec: FieldSpec, given: Mapping[str, Any], who: str
) -> Float32[np.ndarray, " input *space"]:
    """Return fields by name as one array, as they are kept: (u - offset) / scale.

    Parameters
    ----------
    spec : FieldSpec
    given : mapping of str to array
        The field of each of its inputs, in the order of its dims.
    who : str
        Gives them; begins each message.

    Raises
    ------
    ArgumentError
        If a name is unknown or missing, or a field has another shape, no real numbers,
        or some that are not finite in single precision, but for NaN of a masked one.

    Examples
    --------
    >>> from surrogate_flow.fields import Variable
    >>> a = (Variable("a"),)
    >>> spec = FieldSpec((), (Variable("u"),), ("x",), (3,), (1.0,), inputs=a)
    >>> stacked_inputs(spec, {"a": [1, 2, 3]}, "mine")
    array([[1., 2., 3.]], dtype=float32)
    """
    names = [v.name for v in spec.inputs]
    for name in given:
        if name not in names:
            raise ArgumentError(
                f"{who}: unknown input field {name!r}. {nearest(str(name), names)}"
            )
    fields = np.empty(spec.input_shape, dtype=np.float32)
    for k, variable in enumerate(spec.inputs):
        name, out = variable.name, fields[k, ...]  # an array without dims, too
        if name not in given:
            raise ArgumentError(
                f"{who}: expected the input field {name!r} along {spec.dims}, got "
                f"{sorted(map(str, given)) or 'none'}."
            )
        values = np.asarray(given[name])
        if values.shape != spec.shape or values.dtype.kind not in "biuf":
            raise ArgumentError(
                f"{who}: input field {name!r}",
                f"real numbers of the shape {spec.shape} along {spec.dims}",
                f"{values.dtype} of {values.shape}",
            )
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = variable.normalised(values)
        known = np.isfinite(out)
        if variable.masked and known.any():
            known |= np.isnan(out)
        if not known.all():
            count = out.size - np.count_nonzero(known)
            raise ArgumentError(
                f"{who}: input field {name!r}",
                "numbers that are finite in single precision",
                f"{count} of {out.size} that are not",
            )
    return fields


def inputs_in(
    spec: FieldSpec, dataset: xr.Dataset, who: str
) -> Float32[np.ndarray, " input *space"]:
    """Return the input fields that a dataset has, as `stacked_inputs`.

    Their dims may come in any order; points are put right by their coordinates.
    """
    return stacked_inputs(spec, arrays_in(spec, dataset, who), who)


def arrays_in(
    spec: FieldSpec, dataset: xr.Dataset, who: str
) -> dict[str, Float[np.ndarray, " *space"]]:
    """Return the input fields that a dataset has, by name, put right."""
    given = {}
    for name in (v.name for v in spec.inputs):
        if name not in dataset.data_vars:
            continue
        variable = dataset.variables[name]
        if sorted(map(str, variable.dims)) != sorted(spec.dims):
            raise ArgumentError(
                f"{who}: input field {name!r}", f"the dims {spec.dims}", variable.dims
            )
        given[name] = variable.transpose(*spec.dims).values
    try:
        orders = Positions(spec).orders(dataset.variables)
    except Misplaced as error:
        raise ArgumentError(f"{who}: {error}") from error
    for axis, order in orders:
        given = {name: values.take(order, axis) for name, values in given.items()}
    return given


def without_inputs(dataset: xr.Dataset, spec: FieldSpec) -> xr.Dataset:
    """Return a dataset of a solver without the input fields that it may have."""
    names = [v.name for v in spec.inputs]
    return dataset.drop_vars(names, errors="ignore") if names else dataset


def labelled_inputs(spec: FieldSpec, fields: Mapping[str, Any]) -> xr.Dataset:
    """Return fields of `named_inputs` with coordinates and units."""
    grid = {c.name: (c.dim, list(c.values), described(c)) for c in spec.coordinates}
    given = {v.name: (spec.dims, fields[v.name], described(v)) for v in spec.inputs}
    return xr.Dataset(given, grid)


def named_inputs(
    spec: FieldSpec, fields: Float[np.ndarray, " input *space"]
) -> dict[str, Float[np.ndarray, " *space"]]:
    """Return fields of `stacked_inputs` by name, in their units.

    Examples
    --------
    >>> from surrogate_flow.fields import Variable
    >>> inputs = (Variable("p", "Pa", offset=1e5),)
    >>> spec = FieldSpec((), (Variable("u"),), ("x",), (2,), (1.0,), inputs=inputs)
    >>> named_inputs(spec, np.ones((1, 2), np.float32))
    {'p': array([100001., 100001.])}
    """
    return {
        v.name: u if v.plain else v.offset + v.scale * u.astype(np.float64)
        for v, u in zip(spec.inputs, fields, strict=True)
    }
