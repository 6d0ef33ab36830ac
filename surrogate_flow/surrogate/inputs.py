"""What a surrogate is given to predict: parameters, times and histories, checked."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Float32, Int

from surrogate_flow.fields.encoder import TIME_TOLERANCE, Encoder, SpecMismatch
from surrogate_flow.fields.errors import (
    ArgumentError,
    MissingFileError,
    require_kind,
)
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.quantities import Parameter, counted, numbers
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.files import NETCDF, not_netcdf
from surrogate_flow.sampling.table import read_table

__all__ = [
    "SAMPLE",
    "checked_histories",
    "positions",
    "read_history",
    "read_parameters",
    "steps_at",
    "vectors",
]

SAMPLE = "sample"  # the dim of predictions for several parameters


def vectors(
    spec: FieldSpec, parameters: Any
) -> tuple[Float[np.ndarray, "sample parameter"], bool]:
    """Return a vector of parameters for each sample, and whether there are several.

    Parameters
    ----------
    spec : FieldSpec
    parameters : mapping of str to float or sequence, DataFrame or xr.Dataset
        One number each is a single sample. Of a table, a column for each parameter,
        and no other; of a Dataset, a variable, along the same dim. A single number
        among sequences holds for all samples.

    Raises
    ------
    ArgumentError
        If a name is unknown or missing, units are not those of the spec, a value is
        not a finite number, or there is no sample.
    """
    units: Mapping[str, str] = {}
    several = True
    if isinstance(parameters, xr.Dataset):
        columns, units = _of_dataset(spec, parameters)
        several = any(values.ndim for values in columns.values())
    elif isinstance(parameters, pd.DataFrame):
        columns = {str(name): column for name, column in parameters.items()}
        units = parameters.attrs.get("units", {})
    elif isinstance(parameters, Mapping) and any(map(_long, parameters.values())):
        columns = dict(parameters)
    else:
        vector = spec.vector(parameters)[None]
        _warn_of_extrapolation(spec, vector)
        return vector, False
    names = [p.name for p in spec.parameters]
    for name in columns:
        if name not in names:
            raise ArgumentError(f"Unknown parameter {name!r}. {nearest(name, names)}")
    if missing := [name for name in names if name not in columns]:
        raise ArgumentError(
            f"Missing parameters {missing}: expected a column for each of {names}, "
            f"got {list(columns)}."
        )
    arrays = [_numbers(p, columns[p.name], units) for p in spec.parameters]
    sizes = {array.size for array in arrays if array.ndim} or {1}
    if len(sizes) > 1:
        lengths = {n: a.size for n, a in zip(names, arrays, strict=True)}
        raise ArgumentError("parameters", "columns of one length", lengths)
    if sizes == {0}:
        raise ArgumentError("parameters", "one sample or more", "an empty table")
    table: Float[np.ndarray, "sample parameter"] = np.stack(
        [np.broadcast_to(array, sizes) for array in arrays], axis=1
    )
    _warn_of_extrapolation(spec, table)
    return table, several


def _long(values: Any) -> bool:
    return isinstance(values, Iterable) and not isinstance(values, str)


def _of_dataset(
    spec: FieldSpec, dataset: xr.Dataset
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the parameters in a Dataset, among its coordinates, too; their units."""
    names = {p.name for p in spec.parameters}
    found = {
        str(name): variable
        for name, variable in dataset.variables.items()
        if name in names or name in dataset.data_vars
    }
    dims = {dim for name in names & {*found} for dim in found[name].dims}
    if len(dims) > 1 or any(found[name].ndim > 1 for name in names & {*found}):
        raise ArgumentError(
            "parameters: a Dataset",
            f"one dim, such as {SAMPLE!r}",
            sorted(map(str, dims)),
        )
    units = {
        name: str(variable.attrs["units"])
        for name, variable in found.items()
        if "units" in variable.attrs
    }
    return {name: variable.values for name, variable in found.items()}, units


def _numbers(
    parameter: Parameter, values: Any, units: Mapping[str, str]
) -> Float[np.ndarray, "*sample"]:
    """Return a column, or a number, and refuse what is none, by its row."""
    name = parameter.name
    got = units.get(name, parameter.units)
    if (got or "1") != (parameter.units or "1"):
        raise ArgumentError(
            f"parameters: {name}",
            f"the units of the spec, {parameter.units or 'none'}",
            got,
            "Convert the column, or correct its header.",
        )
    given = np.asarray(values)
    if given.ndim > 1:
        raise ArgumentError(f"parameters: {name}", "one dim", f"{given.ndim}")
    column = pd.to_numeric(pd.Series(given.ravel()), errors="coerce").to_numpy()
    if column.dtype.kind not in "fiu":
        raise ArgumentError(f"parameters: {name}", "numbers", f"{column.dtype}")
    column = column.astype(np.float64)
    wrong = ~np.isfinite(column)
    if parameter.whole:
        wrong |= column % 1 != 0
    if wrong.any():
        row = int(wrong.argmax())
        raise ArgumentError(
            f"parameters: {name} in row {row + 1}",
            "a whole number" if parameter.whole else "a finite number",
            given.ravel()[row],
        )
    numbers: Float[np.ndarray, "*sample"] = column.reshape(given.shape)
    return numbers


def _warn_of_extrapolation(
    spec: FieldSpec, table: Float[np.ndarray, "sample parameter"]
) -> None:
    """Warn once of values outside of what the surrogate was trained on."""
    slack = 1e-6 * np.maximum(np.abs(spec.low), np.abs(spec.high))  # single precision
    outside = (table < spec.low - slack) | (table > spec.high + slack)
    if not outside.any():
        return
    said = []
    for k in np.flatnonzero(outside.any(0)):
        p, values = spec.parameters[k], table[outside[:, k], k]
        bounds = f"[{p.low:g}, {p.high:g}]"
        if len(table) == 1:
            value = f"{p.name} = {values[0]:g} {p.units}".rstrip()
            said.append(f"{value} lies outside of the range {bounds}")
        else:
            ends = f"{values.min():g} to {values.max():g}, not in {bounds} {p.units}"
            said.append(f"{p.name} in {len(values):,} ({ends.rstrip()})")
    what = "that the surrogate was trained on"
    text = f"{' and '.join(said)} {what}."
    if len(table) > 1:
        lie = f"{outside.any(1).sum():,} of {len(table):,} samples lie"
        text = f"{lie} outside of the ranges {what}: {', '.join(said)}."
    warnings.warn(text, stacklevel=5)


def read_parameters(path: Path) -> pd.DataFrame | xr.Dataset:
    """Return a table of parameters: netCDF, or else CSV with a header."""
    if path.suffix not in NETCDF:
        return read_table(path)
    if not path.is_file():
        raise MissingFileError(
            f"--parameters: no file {str(path)!r} in {Path.cwd()}. Expected netCDF "
            f"with a variable for each parameter, along a dim such as {SAMPLE!r}."
        )
    try:
        return xr.load_dataset(path, decode_times=False)
    except Exception as error:
        # Of any type, by the damage.
        raise ArgumentError(
            f"--parameters {path} {not_netcdf(error)} Write it with xarray's "
            "Dataset.to_netcdf, or name a CSV file."
        ) from error


def positions(spec: FieldSpec, times: Sequence[float]) -> Float[np.ndarray, " time"]:
    """Return times within the spec's as step indices, fractions between two steps."""
    known, wanted = np.asarray(spec.times), np.array(numbers(times, "predict: times"))
    if not wanted.size:
        raise ArgumentError(
            f"predict: expected at least one time, got none ({times}). Leave times out "
            "for all steps of the solver."
        )
    slack = 1e-6 * (known[-1] - known[0])
    inside = (wanted >= known[0] - slack) & (wanted <= known[-1] + slack)
    if not inside.all():
        raise ArgumentError(
            f"predict: expected times in [{known[0]:g}, {known[-1]:g}] "
            f"{spec.time_units}, got {wanted[~inside][0]:g}. The surrogate was trained "
            "on no other times."
        )
    steps: Float[np.ndarray, " time"] = np.interp(wanted, known, np.arange(len(known)))
    return steps


def steps_at(
    spec: FieldSpec, times: Sequence[float], first: int
) -> Int[np.ndarray, " time"]:
    """Return times of steps, from `first` on, as step indices."""
    exact = positions(spec, times)
    steps: Int[np.ndarray, " time"] = np.rint(exact).astype(np.int64)
    for time, step, position in zip(np.atleast_1d(times), steps, exact, strict=True):
        if abs(position - step) > TIME_TOLERANCE:
            before, after = spec.times[int(position)], spec.times[int(position) + 1]
            raise ArgumentError(
                f"predict: expected times of the solver's steps, got {time:g}, between "
                f"{before:g} and {after:g} {spec.time_units}. An autoregressive "
                "surrogate goes from step to step: interpolate what it predicts."
            )
        if step < first:
            raise ArgumentError(
                f"predict: expected times from {spec.times[first]:g} "
                f"{spec.time_units} on, which come after the history, got {time:g}. "
                "Give a history that ends earlier."
            )
    return steps


def checked_history(
    spec: FieldSpec, window: Window, history: xr.Dataset | None
) -> tuple[int, Float32[np.ndarray, "time channel *space"]]:
    """Return the step after a history, and the ``inputs`` steps before that."""
    inputs = window.inputs
    if not inputs:
        if history is not None:
            raise ArgumentError(
                "predict: expected no history, got one. The surrogate predicts every "
                "time from the parameters alone (its window is direct): leave it out."
            )
        return 0, np.zeros((0, *spec.step_shape), dtype=np.float32)
    units = f" {spec.time_units}".rstrip()
    fields, after = np.zeros((0, *spec.step_shape), dtype=np.float32), 0
    if history is not None:
        require_kind("predict: history", history, xr.Dataset, "xr.load_dataset(path)")
        first = _first(spec, history)
        try:
            fields = Encoder(spec, "history").convert(history, first)
        except SpecMismatch as error:
            raise ArgumentError(
                f"predict: the history is not what the solver yields. {error}"
            ) from error
        after = first + len(fields)
    if len(fields) < inputs:
        raise ArgumentError(
            f"predict: expected a history of {counted(inputs, 'step')}, got "
            f"{len(fields) or 'none'}. Give the first steps of a simulation, such as "
            f"those at {list(spec.times[:inputs])}{units}."
        )
    if after >= spec.steps:
        raise ArgumentError(
            f"predict: expected a history that ends before the last step at "
            f"{spec.times[-1]:g}{units}, got one up to there: nothing is left to "
            f"predict. Cut it off, such as with history.isel(time=slice({inputs}))."
        )
    return after, fields[-inputs:]


def checked_histories(
    spec: FieldSpec, window: Window, history: xr.Dataset | None, count: int
) -> tuple[int, Float32[np.ndarray, "sample time channel *space"]]:
    """Return the step after a history, and its last steps: one, or one a sample."""
    if not isinstance(history, xr.Dataset) or SAMPLE not in history.dims:
        after, fields = checked_history(spec, window, history)
        return after, fields[None]
    if history.sizes[SAMPLE] != count:
        raise ArgumentError(
            "predict: history",
            f"one, or one for each of the {counted(count, 'sample')}",
            history.sizes[SAMPLE],
        )
    found = [
        checked_history(spec, window, history.isel({SAMPLE: k})) for k in range(count)
    ]
    return found[0][0], np.stack([fields for _, fields in found])


def _first(spec: FieldSpec, history: xr.Dataset) -> int:
    """Return the step that a history begins with; 0 if it is none of the spec's."""
    given = history.coords.get("time")
    if given is None or given.dtype.kind not in "fiu" or not given.size:
        return 0
    times = np.asarray(spec.times)
    distances = np.abs(times - float(given.values.flat[0]))
    step = int(distances.argmin())
    return step if distances[step] <= TIME_TOLERANCE * np.diff(times).min() else 0


def read_history(path: Path) -> xr.Dataset:
    """Return the content of a netCDF file."""
    if not path.is_file():
        raise MissingFileError(
            f"--history: no file {str(path)!r} in {Path.cwd()}. Expected a netCDF file "
            "with the first steps of a simulation, such as the history.nc of a run."
        )
    try:
        # Times stay numbers, whatever their units.
        return xr.load_dataset(path, decode_times=False)
    except Exception as error:
        # Of any type, by the damage.
        raise ArgumentError(
            f"--history {path} {not_netcdf(error)} Write it with xarray's "
            "Dataset.to_netcdf."
        ) from error
