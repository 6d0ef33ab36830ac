"""Predictions of one sample or many, in batches, as datasets with labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import psutil
import torch
import xarray as xr
from dask.utils import format_bytes
from distributed import system
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from surrogate_flow.fields.errors import ArgumentError, UserError
from surrogate_flow.fields.quantities import attributes, counted
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.surrogate.conditions import Conditions
from surrogate_flow.surrogate.inputs import (
    LABEL,
    SAMPLE,
    checked_histories,
    checked_inputs,
    given_alone,
    positions,
    steps_at,
    vectors,
)
from surrogate_flow.surrogate.rollout import predictions, with_inputs

__all__ = ["Part", "Prediction", "require_memory"]

_BYTES = 2**12  # of the device's free memory, for each value that a pass predicts
_FEWEST, _MOST = 2**18, 2**24  # values that a pass predicts, by default
_LAYER = 2**24  # of the largest layer: CPUs page more, and compute no faster, beyond
_ROLLED = 2**25  # of a batch that is rolled out, by default


class Predictor(Protocol):
    """What is evaluated: a `Surrogate`."""

    spec: FieldSpec
    window: Window
    conditions: Conditions
    training: bool

    @property
    def device(self) -> torch.device:
        """Of its weights."""

    def train(self, mode: bool = True) -> Any:
        """Set it to train, or to evaluate."""

    def __call__(
        self, parameters: Tensor, step: Tensor, history: Tensor, /, *inputs: Tensor
    ) -> Tensor:
        """Predict fields as they are stored."""


class Part(NamedTuple):
    """Some samples at some times: slices of both, and the fields, as variables are."""

    samples: slice
    times: slice
    fields: Float[np.ndarray, "sample time channel *space"]


class Prediction:
    """û of each sample, at each time; evaluated when it is iterated over.

    Parameters
    ----------
    surrogate : Surrogate
        Evaluated on its own device.
    parameters, times, history, batch_size, inputs
        As of `Surrogate.predict`.

    Attributes
    ----------
    count : int
        Number of samples.
    several : bool
        Whether the dataset has a dim ``sample``.
    shape : tuple of int
        (sample, time, channel, *space).
    nbytes : int
        Of all fields.
    chunk : tuple of int
        Samples and times of a part, at most.
    done : int
        Samples that have been predicted so far.
    ranges : array of shape (channel, 2)
        The least and the greatest value of each variable so far.

    Raises
    ------
    ArgumentError
        As `Surrogate.predict`.
    """

    def __init__(
        self,
        surrogate: Predictor,
        parameters: Any,
        times: Sequence[float] | None = None,
        history: xr.Dataset | None = None,
        batch_size: int | None = None,
        inputs: Mapping[str, Any] | xr.Dataset | None = None,
    ) -> None:
        spec, window = surrogate.spec, surrogate.window
        if batch_size is not None and batch_size < 1:
            raise ArgumentError("predict: batch_size", "a number >= 1", batch_size)
        # What the network does not see may be left out, as unknown.
        seen = surrogate.conditions.names
        named = self.spec = given_alone(spec, parameters, seen)
        self._surrogate = surrogate
        self.table, self.several, self._labels = vectors(named, parameters)
        given = checked_inputs(spec, inputs)
        if len(self.table) == 1 < len(given) and (not self.several):
            # Input fields tell samples apart, of the same parameters.
            self.table, self.several = self.table.repeat(len(given), axis=0), True
        self.count = len(self.table)
        if len(given) not in (1, self.count):
            raise ArgumentError(
                "predict: inputs",
                f"one of each, or one for each of {counted(self.count, 'sample')}",
                len(given),
            )
        self._inputs = given
        self._vectors = np.zeros((self.count, len(spec.parameters)), np.float32)
        columns = [p in named.parameters for p in spec.parameters]
        self._vectors[:, columns] = self.table
        self._first, self._past = checked_histories(spec, window, history, self.count)
        wanted = spec.times[self._first :] if times is None else times
        if window.inputs:
            self._steps = steps_at(spec, wanted, self._first)
        else:
            self._steps = positions(spec, wanted)
        self.times = np.atleast_1d(wanted).tolist()
        self.shape = (self.count, len(self.times), *spec.step_shape)
        self.dtype = _dtype(spec)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self.chunk = self._chunk(batch_size)
        self.done = 0
        self.ranges = np.tile([np.inf, -np.inf], (len(spec.variables), 1))

    def _chunk(self, batch_size: int | None) -> tuple[int, int]:
        """Return how many samples, and how many times, are predicted together."""
        step, times = math.prod(self.spec.step_shape), len(self.times)
        device = self._surrogate.device
        free = _free()
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
        most = min(max(_FEWEST, free // _BYTES), _MOST)
        if device.type == "cpu" and step * times * self.count > _FEWEST:
            most = min(most, _LAYER // self._width())
        most = max(1, most // step)
        if self._surrogate.window.inputs:
            rows = batch_size or max(1, min(most, _ROLLED // (step * times)))
            return min(rows, self.count), times
        if batch_size is not None:
            most = batch_size * times
        return max(1, min(most // times, self.count)), min(most, times)

    def _width(self) -> int:
        """Return the size of the largest layer, in sizes of a step; of a tiny pass."""
        surrogate, sizes = self._surrogate, [1]

        def note(_module: nn.Module, _given: Any, out: Any) -> None:
            sizes.append(out.numel() if isinstance(out, Tensor) else 0)

        was_training = surrogate.training
        surrogate.train(False)
        hook = register_module_forward_hook(note)
        try:
            with torch.no_grad():
                parameters = torch.from_numpy(self._vectors[:1])
                begin = torch.tensor([float(self._first)])
                past = torch.from_numpy(self._past[:1])
                surrogate(parameters, begin, past, *self._given(slice(1), 1))
        finally:
            hook.remove()
            surrogate.train(was_training)
        return max(1, max(sizes) // math.prod(self.spec.step_shape))

    def _given(self, rows: slice, count: int) -> list[Tensor]:
        """Return the input fields of `count` samples, if the spec has any."""
        if not self.spec.inputs:
            return []
        given = torch.from_numpy(self._inputs[rows if len(self._inputs) > 1 else [0]])
        given = given.to(self._surrogate.device)
        return [given.expand(count, *given.shape[1:])]

    def __iter__(self) -> Iterator[Part]:
        """Yield all parts, those of the first samples first."""
        for part in self._parts():
            fields = part.fields.swapaxes(0, 2).reshape(part.fields.shape[2], -1)
            # But for NaN, of masked variables.
            self.ranges[:, 0] = np.fmin(self.ranges[:, 0], np.fmin.reduce(fields, 1))
            self.ranges[:, 1] = np.fmax(self.ranges[:, 1], np.fmax.reduce(fields, 1))
            yield part
            if part.times.stop >= len(self.times):
                self.done = part.samples.stop

    def _parts(self) -> Iterator[Part]:
        surrogate = self._surrogate
        was_training = surrogate.training
        surrogate.train(False)
        try:
            for first in range(0, self.count, self.chunk[0]):
                rows = slice(first, min(first + self.chunk[0], self.count))
                table = torch.from_numpy(self._vectors[rows]).to(surrogate.device)
                past = self._past[rows] if len(self._past) > 1 else self._past
                history = torch.from_numpy(past).to(surrogate.device)
                history = history.expand(len(table), *history.shape[1:])
                given = self._given(rows, len(table))
                if surrogate.window.inputs:
                    fields = self._rolled_out(table, history, given)
                    yield Part(rows, slice(0, len(self.times)), fields)
                    continue
                for begin in range(0, len(self.times), self.chunk[1]):
                    moments = slice(begin, begin + self.chunk[1])
                    steps = table.new_tensor(self._steps[moments])
                    fields = self._direct(table, history, steps, given)
                    yield Part(rows, moments, fields)
        except RuntimeError as error:
            if not re.search("out of memory|can't allocate memory", str(error)):
                raise
            samples, times = self.chunk
            raise UserError(
                f"predict: a pass over {counted(samples, 'sample')} at "
                f"{counted(times, 'time')}",
                f"what fits into the memory of {surrogate.device}",
                str(error).splitlines()[0],
                f"Give a batch_size (--batch_size) below {samples}."
                if samples > 1
                else "Ask for fewer times at once, or use another device.",
            ) from error
        finally:
            surrogate.train(was_training)

    @torch.no_grad()
    def _direct(
        self,
        table: Float[Tensor, "sample parameter"],
        past: Float[Tensor, "sample 0 channel *space"],
        steps: Float[Tensor, " time"],
        given: list[Tensor],
    ) -> Float[np.ndarray, "sample time channel *space"]:
        """Predict each pair of a sample and a time on its own, all in one pass."""
        parameters = table.repeat_interleave(len(steps), dim=0)
        history = past[:1].expand(len(parameters), *past.shape[1:])
        given = [inputs.repeat_interleave(len(steps), dim=0) for inputs in given]
        out = self._surrogate(parameters, steps.repeat(len(table)), history, *given)
        shape = (len(table), len(steps), *self.spec.step_shape)
        return self.spec.physical(out[:, 0].cpu().numpy().reshape(shape))

    @torch.no_grad()
    def _rolled_out(
        self,
        table: Float[Tensor, "sample parameter"],
        history: Float[Tensor, "sample inputs channel *space"],
        given: list[Tensor],
    ) -> Float[np.ndarray, "sample time channel *space"]:
        """Roll out the samples together; keep the steps that are asked for."""
        fields = np.empty((len(table), *self.shape[1:]), np.float32)
        begin = table.new_full((len(table),), float(self._first))
        step, last = self._first, int(self._steps.max())
        predict = with_inputs(self._surrogate, *given)
        following = predictions(predict, table, begin, history)
        while step <= last:
            for predicted in next(following).unbind(1):
                if (wanted := np.flatnonzero(self._steps == step)).size:
                    fields[:, wanted] = predicted.cpu().numpy()[:, None]
                step += 1
        return self.spec.physical(fields)

    def dataset(self) -> xr.Dataset:
        """Return all of it.

        Raises
        ------
        UserError
            If it does not fit into memory.
        """
        require_memory(self.spec, self.count, len(self.times))
        fields = np.empty(self.shape, self.dtype)
        for part in self:
            fields[part.samples, part.times] = part.fields
        return self.labelled(fields)

    def labelled(
        self, fields: Float[np.ndarray, "sample time channel *space"]
    ) -> xr.Dataset:
        """Return fields of all samples and times with names, coordinates and units."""
        spec = self.spec
        columns = {p.name: self.table[:, k] for k, p in enumerate(spec.parameters)}
        if not self.several:
            parameters = {name: column[0] for name, column in columns.items()}
            return spec.dataset(fields[0], self.times, parameters)
        labelled = spec.dataset(fields, self.times, columns)
        if self._labels is None:
            return labelled
        named = attributes("", "label of the sample")
        return labelled.assign_coords({LABEL: (SAMPLE, self._labels, named)})


def require_memory(spec: FieldSpec, samples: int, times: int) -> None:
    """Refuse a prediction that does not fit into memory as a whole.

    Raises
    ------
    UserError
    """
    nbytes = samples * times * math.prod(spec.step_shape) * _dtype(spec).itemsize
    if nbytes > (free := _free()):
        raise UserError(
            f"predict: {samples:,} samples at {times:,} times",
            f"what fits into free memory, {format_bytes(free)}",
            format_bytes(nbytes),
            "Write it part by part: --output field.zarr, or, in Python, "
            "surrogate.predict_to_file('field.zarr', ...).",
        )


def _dtype(spec: FieldSpec) -> np.dtype[Any]:
    plain = all(v.plain for v in spec.variables)
    return np.dtype(np.float32 if plain else np.float64)


def _free() -> int:
    """Return the bytes that this process may still take, of the machine or its job."""
    held = psutil.Process().memory_info().rss
    machine: int = psutil.virtual_memory().available
    job: int = system.MEMORY_LIMIT - held
    return max(0, min(machine, job))
