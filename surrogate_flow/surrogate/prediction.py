"""From named parameters, times and history to tensors, before predicting."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Float, Float32, Int

from surrogate_flow.fields.encoder import TIME_TOLERANCE, Encoder, SpecMismatch
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window

__all__ = [
    "checked_history",
    "checked_parameters",
    "positions",
    "read_history",
    "steps_at",
]


def checked_parameters(
    spec: FieldSpec, parameters: Mapping[str, float]
) -> Float[np.ndarray, " parameter"]:
    """Return the parameter vector; warn of what lies outside of its bounds.

    Raises
    ------
    ValueError
        If a parameter is unknown, missing or not finite.
    """
    vector = spec.vector(parameters)
    for p, value in zip(spec.parameters, vector, strict=True):
        if not p.low <= value <= p.high:
            warnings.warn(
                f"{p.name} = {value:g} {p.units} lies outside of the range "
                f"[{p.low:g}, {p.high:g}] that the surrogate was trained on.",
                stacklevel=4,
            )
    return vector


def positions(spec: FieldSpec, times: Sequence[float]) -> Float[np.ndarray, " time"]:
    """Return times as step indices, in between where they lie between two steps.

    Raises
    ------
    ValueError
        If a time lies outside of the spec's, or there is none.
    """
    known = np.asarray(spec.times)
    wanted = np.atleast_1d(np.asarray(times, dtype=np.float64))
    if not wanted.size:
        raise ValueError(
            f"predict: expected at least one time, got none ({times}). Leave times out "
            "for all steps of the solver."
        )
    slack = 1e-6 * (known[-1] - known[0])
    outside = wanted[~((wanted >= known[0] - slack) & (wanted <= known[-1] + slack))]
    if outside.size:
        raise ValueError(
            f"predict: expected times in [{known[0]:g}, {known[-1]:g}] "
            f"{spec.time_units}, got {outside[0]:g}. The surrogate has learnt "
            "no other times."
        )
    steps: Float[np.ndarray, " time"] = np.interp(wanted, known, np.arange(len(known)))
    return steps


def steps_at(
    spec: FieldSpec, times: Sequence[float], first: int
) -> Int[np.ndarray, " time"]:
    """Return times as step indices, for a surrogate that goes from step to step.

    Raises
    ------
    ValueError
        If a time is none of the spec's, or comes before the step `first`, the one
        behind the history.
    """
    near = positions(spec, times)
    steps: Int[np.ndarray, " time"] = np.rint(near).astype(np.int64)
    for time, step, exact in zip(np.atleast_1d(times), steps, near, strict=True):
        if abs(exact - step) > TIME_TOLERANCE:
            known = spec.times[int(exact)], spec.times[int(exact) + 1]
            raise ValueError(
                f"predict: expected times of the solver's steps, got {time:g}, between "
                f"{known[0]:g} and {known[1]:g} {spec.time_units}. An autoregressive "
                "surrogate goes from step to step: interpolate what it predicts."
            )
        if step < first:
            raise ValueError(
                f"predict: expected times from {spec.times[first]:g} "
                f"{spec.time_units} on, which come after the history, got {time:g}. "
                "Give a history that ends earlier."
            )
    return steps


def checked_history(
    spec: FieldSpec, window: Window, history: xr.Dataset | None
) -> tuple[int, Float32[np.ndarray, "time channel *space"]]:
    """Return the step behind a history, and the ``inputs`` steps before that.

    Raises
    ------
    ValueError
        If there is a history where none is needed or none where there should be, if it
        is not what the solver yields, or if it is too short, or too long for anything
        to be left to predict.
    """
    inputs = window.inputs
    if not inputs:
        if history is not None:
            raise ValueError(
                "predict: expected no history, got one. The surrogate predicts every "
                "time from the parameters alone (its window is direct): leave it out."
            )
        return 0, np.zeros((0, *spec.step_shape), dtype=np.float32)
    example = f"solver steps such as those at {list(spec.times[:inputs])}"
    units = f" {spec.time_units}".rstrip()
    if history is None:
        raise ValueError(
            f"predict: expected a history of {inputs} steps, got none. The surrogate "
            f"goes on from what it sees ({window}): give the first steps of a "
            f"simulation, {example}{units}."
        )
    first = _first(spec, history)
    try:
        fields = Encoder(spec, "history").convert(history, first)
    except SpecMismatch as error:
        raise ValueError(
            f"predict: the history is not what the solver yields. {error}"
        ) from error
    behind = first + len(fields)
    if len(fields) < inputs:
        raise ValueError(
            f"predict: expected a history of {inputs} steps, got {len(fields)}. Give "
            f"{example}{units}."
        )
    if behind >= spec.steps:
        raise ValueError(
            f"predict: expected a history that ends before the last step at "
            f"{spec.times[-1]:g}{units}, got one up to there: nothing is left to "
            f"predict. Cut it off, such as with history.isel(time=slice({inputs}))."
        )
    return behind, fields[-inputs:]


def _first(spec: FieldSpec, history: xr.Dataset) -> int:
    """Return the step that a history begins with; the first one if it is none."""
    given = history.coords.get("time")
    if given is None or given.dtype.kind not in "fiu" or not given.size:
        return 0
    times = np.asarray(spec.times)
    distances = np.abs(times - float(given.values.flat[0]))
    step = int(distances.argmin())
    return step if distances[step] <= TIME_TOLERANCE * np.diff(times).min() else 0


def read_history(path: Path) -> xr.Dataset:
    """Return what a netCDF file holds.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"--history: no file {str(path)!r} in {Path.cwd()}. Expected a netCDF file "
            "with the first steps of a simulation, such as the history.nc of a run."
        )
    try:
        # Times stay numbers, whatever their units.
        return xr.load_dataset(path, decode_times=False)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"--history {path}: cannot be read as netCDF ({error}). Write it with "
            "xarray's Dataset.to_netcdf."
        ) from error
