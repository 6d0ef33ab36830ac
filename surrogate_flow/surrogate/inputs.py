"""What a surrogate is given to predict: parameters, times and histories, checked."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import replace
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
from surrogate_flow.fields.inputs import inputs_in, stacked_inputs
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.parameter import apart
from surrogate_flow.fields.quantities import counted, numbers
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.table import read_table, units_apart
from surrogate_flow.fields.window import Window
from surrogate_flow.files import NETCDF, not_netcdf
from surrogate_flow.sampling.table import numbers_in

__all__ = [
    "LABEL",
    "SAMPLE",
    "checked_histories",
    "checked_inputs",
    "given_alone",
    "positions",
    "read_history",
    "read_inputs",
    "read_parameters",
    "steps_at",
    "vectors",
]

LABEL = "id"  # the column with names of samples, and the coordinate
SAMPLE = "sample"  # the dim of predictions for several parameters


def given_alone(spec: FieldSpec, parameters: Any, needed: Collection[str]) -> FieldSpec:
    """Return the spec without the parameters that are neither given nor needed.

    Parameters
    ----------
    spec : FieldSpec
    parameters
        As of `vectors`.
    needed : collection of str
        Names.
    """
    names = getattr(parameters, "variables", parameters)
    if not isinstance(names, Iterable):
        return spec
    given = {str(name).partition(" [")[0] for name in names} | {*needed}
    kept = tuple(p for p in spec.parameters if {p.name, p.of} & given)
    return replace(spec, parameters=kept)


def vectors(
    spec: FieldSpec, parameters: Any
) -> tuple[Float[np.ndarray, "sample parameter"], bool, np.ndarray | None]:
    """Return a vector for each sample, whether there are several, and their labels.

    Parameters
    ----------
    spec : FieldSpec
    parameters : mapping of str to float or sequence, DataFrame or xr.Dataset
        One number each is a single sample; of a choice its word, and a vector may be
        whole. Of a table, a column for each parameter, as ``speed`` or ``speed [m/s]``;
        of a Dataset, a variable, along the same dim. A single number among sequences
        holds for all samples. Labels of samples are the column `LABEL`, or else an
        index that is not 0, 1, 2, ...

    Raises
    ------
    ArgumentError
        If a name is unknown or missing, units are not those of the spec, a value is
        not a finite number, or there is no sample.
    """
    several = True
    if isinstance(parameters, xr.Dataset):
        table, several = _of_dataset(spec, parameters)
    elif isinstance(parameters, pd.DataFrame):
        named = units_apart(parameters.copy(deep=False))
        table = _table(spec, named, named.index, named.attrs)
    elif isinstance(parameters, Mapping) and any(
        map(_long, (parameters := apart(spec.parameters, parameters)).values())
    ):
        table = _table(spec, parameters)
    else:
        vector = spec.vector(parameters)[None]
        _warn_of_extrapolation(spec, vector)
        return vector, False, None
    if several and SAMPLE in _taken(spec):
        raise ArgumentError(
            f"predict: a name of the spec is {SAMPLE!r}, as is the dim of a table. "
            "Predict its rows one by one."
        )
    rows = np.stack([numbers_in(table, p) for p in spec.parameters], axis=1)
    _warn_of_extrapolation(spec, rows)
    return rows, several, _labels(spec, table) if several else None


def _long(values: Any) -> bool:
    several = isinstance(values, Iterable) and not isinstance(values, str)
    return several and getattr(values, "ndim", 1) > 0


def _of_dataset(spec: FieldSpec, dataset: xr.Dataset) -> tuple[pd.DataFrame, bool]:
    """Return a Dataset, with parameters among its coordinates; whether it has a dim."""
    names = {p.name for p in spec.parameters}
    found = {
        name: variable
        for name, variable in dataset.variables.items()
        if name in names | {LABEL} or name in dataset.data_vars
    }
    known = [variable for name, variable in found.items() if name in names]
    dims = {dim for variable in known for dim in variable.dims}
    if len(dims) > 1:
        expected = f"one dim, such as {SAMPLE!r}"
        raise ArgumentError("parameters: a Dataset", expected, sorted(map(str, dims)))
    index = dataset.indexes.get(*dims - names) if dims - names else None
    units = {name: v.attrs["units"] for name, v in found.items() if "units" in v.attrs}
    attrs = {"units": units, "source": dataset.encoding.get("source", "parameters")}
    columns = {name: variable.values for name, variable in found.items()}
    return _table(spec, columns, index, attrs), bool(dims)


def _table(
    spec: FieldSpec,
    given: Mapping[Any, Any] | pd.DataFrame,
    index: pd.Index | None = None,
    attrs: Mapping[Any, Any] = {},
) -> pd.DataFrame:
    """Return columns of one length, and single numbers for all rows, as a table."""
    source, known = attrs.get("source", "parameters"), [p.name for p in spec.parameters]
    names = list(map(str, given))
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(source, "columns of different names", f"two {name!r}")
        if name not in known and (name != LABEL or LABEL in _taken(spec)):
            hint = f"{nearest(name, known)} Labels of rows go into a column {LABEL!r}."
            raise ArgumentError(f"{source}: unknown column {name!r}. {hint}")
    columns = {str(name): values for name, values in given.items()}
    try:
        arrays = {name: np.asarray(values) for name, values in columns.items()}
        single = {name: a.item() for name, a in arrays.items() if not a.ndim}
        if len(single) == len(arrays):
            index = pd.RangeIndex(1)
        table = pd.DataFrame(arrays | single, index)
    except ValueError as error:
        sizes = {name: len(v) for name, v in columns.items() if isinstance(v, Sized)}
        raise ArgumentError(source, "columns of one length and dim", sizes) from error
    if not len(table):
        raise ArgumentError(source, "one row or more", "none")
    table.attrs = {**attrs}
    return table


def _taken(spec: FieldSpec) -> set[str]:
    """Return the names that a dataset of a spec has."""
    fields = {v.name for v in spec.variables}
    labels = {p.name for p in spec.parameters} | {c.name for c in spec.coordinates}
    return {*spec.dims} | fields | labels


def _labels(spec: FieldSpec, table: pd.DataFrame) -> np.ndarray | None:
    """Return labels of the rows as files hold them, text or small numbers; or none."""
    index = table.index
    of_file = index.name == "line" and "source" in table.attrs
    plain = of_file or index.equals(pd.RangeIndex(len(index)))
    if LABEL in _taken(spec) or (plain and LABEL not in table):
        return None
    labels = np.asarray(table.get(LABEL, index))
    small = labels.dtype.kind in "iu" and np.abs(labels).max() < 2**31
    return labels if small else labels.astype(str).astype(object)


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
        ends = dict.fromkeys(f"{end:g}" for end in (values.min(), values.max()))
        rows = f"in {len(values):,} of {counted(len(table), 'sample')} "
        said.append(
            f"{p.name} = {' to '.join(ends)} {p.units} ".replace("  ", " ")
            + rows * (len(table) > 1)
            + f"lies outside of [{p.low:g}, {p.high:g}]"
        )
    text = f"{', and '.join(said)}: the surrogate was trained within these bounds."
    warnings.warn(text, stacklevel=5)


def read_parameters(path: Path) -> pd.DataFrame | xr.Dataset:
    """Return a table of parameters: netCDF, or else CSV with a header."""
    if path.suffix not in NETCDF:
        # The index of a DataFrame, as pandas writes it unless it is left out.
        table, index = read_table(path), "Unnamed: 0"
        if LABEL in table:
            return table.drop(columns=index, errors="ignore")
        return table.rename(columns={index: LABEL})
    what = f"with a variable for each parameter, along a dim such as {SAMPLE!r}."
    return _read_netcdf("--parameters", path, what)


def read_inputs(path: Path) -> xr.Dataset:
    """Return the content of a netCDF file."""
    what = "with a variable for each input field, along the dims of the grid."
    return _read_netcdf("--inputs", path, what)


def read_history(path: Path) -> xr.Dataset:
    """Return the content of a netCDF file."""
    what = "with the first steps of a simulation, such as the history.nc of a run."
    return _read_netcdf("--history", path, what)


def _read_netcdf(option: str, path: Path, what: str) -> xr.Dataset:
    if not path.is_file():
        raise MissingFileError(
            f"{option}: no file {str(path)!r} in {Path.cwd()}. Expected netCDF {what}"
        )
    try:
        # Times stay numbers, whatever their units.
        return xr.load_dataset(path, decode_times=False)
    except Exception as error:
        # Of any type, by the damage.
        raise ArgumentError(
            f"{option} {path} {not_netcdf(error)} Write it with xarray's "
            "Dataset.to_netcdf."
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


def checked_inputs(
    spec: FieldSpec, inputs: Mapping[str, Any] | xr.Dataset | None
) -> Float32[np.ndarray, "sample input *space"]:
    """Return the input fields: one of each, or one of each for each sample."""
    if not spec.inputs:
        if inputs is not None:
            raise ArgumentError(
                "predict: expected no inputs, got some. The surrogate has no input "
                "fields: leave them out."
            )
        return np.zeros((1, *spec.input_shape), dtype=np.float32)
    names = [v.name for v in spec.inputs]
    if inputs is None:
        raise ArgumentError(
            f"predict: expected the input field {names[0]!r} of the shape {spec.shape} "
            f"along {spec.dims}, got none. Give it with inputs= (--inputs fields.nc)."
        )
    example = f"{{{names[0]!r}: field}}"
    require_kind("predict: inputs", inputs, Mapping, example)
    none = ("predict: inputs", "one field or more of each", "none")
    if isinstance(inputs, xr.Dataset):
        if SAMPLE not in inputs.dims:
            return inputs_in(spec, inputs, "predict: inputs")[None]
        if not inputs.sizes[SAMPLE]:
            raise ArgumentError(*none)
        parts = [inputs.isel({SAMPLE: k}) for k in range(inputs.sizes[SAMPLE])]
        return np.stack([inputs_in(spec, part, "predict: inputs") for part in parts])
    arrays = {name: np.asarray(_ordered(spec, u)) for name, u in inputs.items()}
    several = {n: len(a) for n, a in arrays.items() if a.ndim > len(spec.dims)}
    if not several:
        return stacked_inputs(spec, arrays, "predict: inputs")[None]
    if len({*several.values()}) > 1:
        raise ArgumentError("predict: inputs", "as many fields of each", several)
    if not min(several.values()):
        raise ArgumentError(*none)
    rows = [
        {n: a[k] if a.ndim > len(spec.dims) else a for n, a in arrays.items()}
        for k in range(next(iter(several.values())))
    ]
    return np.stack([stacked_inputs(spec, row, "predict: inputs") for row in rows])


def _ordered(spec: FieldSpec, field: Any) -> Any:
    """Return a DataArray along the dims of the spec, after others; or what it is."""
    if isinstance(field, xr.DataArray) and {*spec.dims} <= {*field.dims}:
        return field.transpose(..., *spec.dims)
    return field


def _first(spec: FieldSpec, history: xr.Dataset) -> int:
    """Return the step that a history begins with; 0 if it is none of the spec's."""
    given = history.coords.get("time")
    if given is None or given.dtype.kind not in "fiu" or not given.size:
        return 0
    times = np.asarray(spec.times)
    distances = np.abs(times - float(given.values.flat[0]))
    step = int(distances.argmin())
    return step if distances[step] <= TIME_TOLERANCE * np.diff(times).min() else 0
