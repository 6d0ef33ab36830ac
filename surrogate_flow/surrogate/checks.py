"""Checks of times and history, before a surrogate predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Float, Float32, Int

from surrogate_flow.fields.encoder import TIME_TOLERANCE, Encoder, SpecMismatch
from surrogate_flow.fields.errors import (
    ArgumentError,
    MissingFileError,
    require_kind,
)
from surrogate_flow.fields.quantities import counted, numbers
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.files import not_netcdf
from surrogate_flow.surrogate.samples import SAMPLE

__all__ = ["checked_histories", "positions", "read_history", "steps_at"]


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
