"""Checks of named parameters, times and history, before a surrogate predicts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from surrogate_flow.fields.encoder import TIME_TOLERANCE, Encoder, SpecMismatch
from surrogate_flow.fields.errors import (
    ArgumentError,
    MissingFileError,
    UserError,
    line_of,
    require_kind,
)
from surrogate_flow.fields.quantities import counted, numbers
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.files import not_netcdf

__all__ = [
    "checked_history",
    "checked_parameters",
    "needs_gpu",
    "positions",
    "read_history",
    "require_shape",
    "steps_at",
]


def require_shape(
    network: nn.Module, name: str, spec: FieldSpec, window: Window
) -> tuple[Tensor, list[Tensor]] | None:
    """Refuse a network that does not map samples of zeros to their target's shape.

    Return what a copy makes of them, and its weights; None if it needs a GPU.
    """
    count, remedy = 2, ""  # A batch norm takes no single sample.
    wanted = (count, window.outputs, *spec.step_shape)
    try:
        out, weights = _tried(network, count, spec, window.inputs)
        got = str(tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__)
        if got == str(wanted) and not out.is_floating_point():
            got = f"{out.dtype}"
        elif got == str(wanted) and not out.requires_grad:
            got = "one that does not depend on parameters that can be trained"
    except UserError:
        raise
    except Exception as error:
        if needs_gpu(error):
            return None
        got, remedy = f"{type(error).__name__} ({error})", line_of(error).strip()
        with suppress(Exception):
            _tried(network, count, spec, window.inputs + 1)
            remedy += (
                f" {window} gives it a history of no steps: for one that needs some, "
                "set --model.window Autoregressive."
            )
    if got != str(wanted):
        raise ArgumentError(
            f"{name}, called on {count} samples",
            f"a tensor of shape {wanted}",
            got,
            remedy,
        )
    return out, weights


def needs_gpu(error: Exception) -> bool:
    """Whether something failed for want of the device that it will be trained on."""
    return "cuda" in str(error).lower() and torch.cuda.is_available()


def _tried(
    network: nn.Module, count: int, spec: FieldSpec, steps: int
) -> tuple[Any, list[Tensor]]:
    """Return the output of a copy, for a batch norm changes, and without a draw."""
    if any(map(is_lazy, network.parameters())):
        copied: Any = copy.deepcopy(network)
    else:
        state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        state = {
            key: value.detach().clone().requires_grad_(value.requires_grad)
            for key, value in state.items()
        }
        copied = partial(torch.func.functional_call, network, state)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        inputs = (
            torch.zeros(count, len(spec.parameters)),
            torch.zeros(count),
            torch.zeros(count, steps, *spec.step_shape),
        )
        if isinstance(copied, nn.Module):
            return copied(*inputs), [*copied.parameters()]
        return copied(inputs), [state[name] for name, _ in network.named_parameters()]


def checked_parameters(
    spec: FieldSpec, parameters: Mapping[str, float]
) -> Float[np.ndarray, " parameter"]:
    """Return the parameter vector; warn of values outside of their bounds."""
    vector = spec.vector(parameters)
    for p, value in zip(spec.parameters, vector, strict=True):
        slack = 1e-6 * max(abs(p.low), abs(p.high))  # of single precision
        if not p.low - slack <= value <= p.high + slack:
            warnings.warn(
                f"{p.name} = {value:g} {p.units} lies outside of the range "
                f"[{p.low:g}, {p.high:g}] that the surrogate was trained on.",
                stacklevel=4,
            )
    return vector


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
