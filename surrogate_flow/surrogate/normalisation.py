"""Normalisation of inputs and fields to order one, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.spec import FieldSpec, Parameter
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.conditions import Conditions

__all__ = ["Normalisation"]


class Normalisation(nn.Module):
    """z = (x - shift) / scale, frozen before the first batch.

    Parameters and the step index (the time, where steps are uneven) are mapped from
    their bounds to [-1, 1], known from the spec: log-uniform ones by their logarithm,
    choices by their index, and normal ones from the bounds of their central 95 %.
    Fields are mapped to zero mean and unit variance for each variable and input, with
    the moments of the first fill of the reservoir, since there is no data set to scan
    beforehand. A network sees 0 where they are NaN, which masked variables may be.

    Parameters
    ----------
    spec : FieldSpec
        Bounds of the parameters, number of steps, number of variables.
    conditions : Conditions, optional
        The parameters that `inputs` passes on, and whether it does the step, which is 0
        otherwise; all by default.
    """

    parameter_shift: Tensor
    parameter_scale: Tensor
    step_shift: Tensor
    step_scale: Tensor
    field_shift: Tensor
    field_scale: Tensor
    frozen: Tensor
    input_shift: Tensor
    input_scale: Tensor
    defined: Tensor | None
    logarithmic: Tensor | None
    time_of_step: Tensor | None
    columns: Tensor | None
    change_scale: Tensor | None

    def __init__(self, spec: FieldSpec, conditions: Conditions | None = None) -> None:
        super().__init__()
        conditions = conditions or Conditions.all_of(spec)
        seen, every = conditions.columns(spec), len(spec.parameters)
        self.has_time, spec = conditions.time, conditions.seen(spec)
        columns = None if len(seen) == every else torch.tensor(seen, dtype=torch.long)
        self.register_buffer("columns", columns, persistent=False)
        ends = [_ends(p) for p in spec.parameters]
        low, high = torch.tensor(ends, dtype=torch.float64).reshape(-1, 2).unbind(1)
        last = max(spec.steps - 1, 1)
        channels = (len(spec.variables), *[1] * len(spec.dims))
        for name, value in (
            ("parameter_shift", (high + low) / 2),
            ("parameter_scale", (high - low) / 2),
            ("step_shift", torch.tensor(last / 2)),
            ("step_scale", torch.tensor(last / 2)),
            ("field_shift", torch.zeros(channels)),
            ("field_scale", torch.ones(channels)),
        ):
            self.register_buffer(name, value.to(torch.float32))
        if spec.inputs:
            given = (len(spec.inputs), *[1] * len(spec.dims))
            self.register_buffer("input_shift", torch.zeros(given))
            self.register_buffer("input_scale", torch.ones(given))
        # 1 where a masked variable was a number in a batch, and where it is not masked.
        masked = [v.masked for v in spec.variables]
        numbers = 1 - torch.tensor(masked).float()
        everywhere = numbers.reshape(channels).expand(spec.step_shape).clone()
        self.register_buffer("defined", everywhere if any(masked) else None)
        self.masked_inputs = any(v.masked for v in spec.inputs)
        # A number, as all that is averaged with the weights; it was a bool.
        self.register_buffer("frozen", torch.tensor(0.0))
        self.register_buffer("change_scale", None)
        # 1 for those that are log-uniform; checkpoints have it in their spec.
        log = [float(p.log) for p in spec.parameters]
        mask = torch.tensor(log) if any(log) else None
        self.register_buffer("logarithmic", mask, persistent=False)
        self.register_buffer("time_of_step", _uneven(spec))

    @classmethod
    def of(cls, kind: str, spec: FieldSpec, conditions: Conditions) -> Normalisation:
        """Return that of a name, ``standard`` or ``none``.

        Raises
        ------
        ArgumentError
            If it is another one.
        """
        if kind not in ("standard", "none"):
            raise ArgumentError("normalisation", "'standard' or 'none'", repr(kind))
        return (cls if kind == "standard" else cls.identity)(spec, conditions)

    @classmethod
    def identity(
        cls, spec: FieldSpec, conditions: Conditions | None = None
    ) -> Normalisation:
        """Return one that changes nothing: raw parameters, step index and fields."""
        same = cls(spec, conditions)
        for name, value in same.named_buffers():
            if name in ("defined", "columns"):
                continue
            value.fill_(1.0 if name.endswith("scale") else 0.0)
        same.frozen.fill_(True)
        same.time_of_step = None
        return same

    def freeze(
        self,
        mean: Float[np.ndarray, " channel"],
        std: Float[np.ndarray, " channel"],
    ) -> None:
        """Set the moments of the fields, once; those of inputs come behind the others.

        The scale of a variable that is constant so far is its own size.
        """
        if self.frozen:
            raise RuntimeError("The normalisation is frozen already.")
        size = np.where(mean, np.abs(mean), 1.0)
        scale = np.where(std > 1e-6 * np.abs(mean), std, size)
        count = len(self.field_shift)
        for kind, part in (
            ("field", slice(count)),
            ("input", slice(count, None)),
        ):
            for name, values in (("shift", mean), ("scale", scale)):
                if len(values[part]):
                    buffer = getattr(self, f"{kind}_{name}")
                    buffer.copy_(torch.from_numpy(values[part]).reshape(buffer.shape))
        self.frozen.fill_(True)

    def of_changes(self, outputs: int) -> None:
        """Have the network predict so many changes from the last step of its history.

        Each is divided by its own root mean square.
        """
        self.change_scale = torch.ones(outputs, *self.field_scale.shape)

    def freeze_changes(self, size: Float[np.ndarray, "outputs channel"]) -> None:
        """Set the root mean squares of the changes, as stored; of none it is 1."""
        assert self.change_scale is not None
        scale = torch.from_numpy(size).float().reshape(self.change_scale.shape)
        scale = scale.to(self.field_scale) / self.field_scale
        self.change_scale.copy_(torch.where(scale > 1e-6, scale, 1.0))

    def inputs(
        self,
        parameters: Float[Tensor, "batch parameter"],
        step: Float[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch seen"], Float[Tensor, " batch"]]:
        """Normalise parameters, and step index or, of uneven steps, time.

        Those that are not seen are left out; a step that is not is 0.
        """
        if self.columns is not None:
            parameters = parameters.index_select(1, self.columns)
        if (log := self.logarithmic) is not None:
            positive = log * parameters + (1 - log)
            parameters = log * positive.log() + (1 - log) * parameters
        if (times := self.time_of_step) is not None:
            before = step.floor().clamp(0, len(times) - 2).long()
            start = times[before]
            step = start + (step - before) * (times[before + 1] - start)
        step = (step - self.step_shift) / self.step_scale
        return (
            (parameters - self.parameter_shift) / self.parameter_scale,
            step if self.has_time else torch.zeros_like(step),
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        name = f"{prefix}time_of_step"
        if name not in state_dict:
            # Networks of version 0.1 were trained on the index of uneven steps, too.
            self.time_of_step = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def given(
        self, inputs: Float[Tensor, "batch input *space"]
    ) -> Float[Tensor, "batch input *space"]:
        """Normalise input fields."""
        normalised = (inputs - self.input_shift) / self.input_scale
        return _without_nan(normalised) if self.masked_inputs else normalised

    def fields(
        self, fields: Float[Tensor, "batch time channel *space"]
    ) -> Float[Tensor, "batch time channel *space"]:
        """Normalise fields."""
        normalised = (fields - self.field_shift) / self.field_scale
        return normalised if self.defined is None else _without_nan(normalised)

    def known(
        self, fields: Float[Tensor, "batch time channel *space"]
    ) -> Bool[Tensor, "batch time channel *space"] | None:
        """Return where fields are numbers; None if no variable is masked."""
        return None if self.defined is None else ~fields.isnan()

    @torch.no_grad()
    def learn(self, known: Bool[Tensor, "batch time channel *space"]) -> None:
        """Note where the fields of a batch are numbers."""
        assert self.defined is not None
        torch.maximum(self.defined, known.amax((0, 1)).float(), out=self.defined)

    def masked(
        self,
        fields: Float[Tensor, "batch time channel *space"],
        history: Float[Tensor, "batch inputs channel *space"],
    ) -> Float[Tensor, "batch time channel *space"]:
        """Return predicted fields with NaN where they are masked.

        That is where the last step before them is NaN, or, without a history, where all
        were that the network was trained on.
        """
        if self.defined is None:
            return fields
        if history.shape[1]:
            unknown = history[:, -1:].isnan()
        else:
            space = tuple(range(1, self.defined.ndim))
            trained = self.defined.amax(space, keepdim=True) > 0.5
            unknown = trained & (self.defined < 0.5)
        return torch.where(unknown, torch.nan, fields)

    def target(
        self,
        fields: Float[Tensor, "batch outputs channel *space"],
        history: Float[Tensor, "batch inputs channel *space"],
    ) -> Float[Tensor, "batch outputs channel *space"]:
        """Return what a network is to predict, of fields as they are stored."""
        normalised = self.fields(fields)
        if self.change_scale is None:
            return normalised
        change = (normalised - self.fields(history[:, -1:])) / self.change_scale
        return change if self.defined is None else change * ~fields.isnan()

    def predicted(
        self,
        out: Float[Tensor, "batch outputs channel *space"],
        history: Float[Tensor, "batch inputs channel *space"],
    ) -> Float[Tensor, "batch outputs channel *space"]:
        """Return the fields, as stored, that a network predicts; undoes `target`."""
        if self.change_scale is not None:
            out = self.fields(history[:, -1:]) + self.change_scale * out
        return self.physical(out)

    def noisy(self, batch: Batch, noise: Tensor) -> Batch:
        """Add noise in normalised units to the history."""
        history = batch.history + self.field_scale * noise
        return batch._replace(history=history)

    def physical(
        self, fields: Float[Tensor, "batch time channel *space"]
    ) -> Float[Tensor, "batch time channel *space"]:
        """Return normalised fields as they are stored; the inverse of `fields`."""
        return fields * self.field_scale + self.field_shift


def _without_nan(fields: Tensor) -> Tensor:
    return torch.where(fields.isnan(), 0.0, fields)


def _uneven(spec: FieldSpec) -> Tensor | None:
    """Return the time of each step, from 0 to the last index; None if they are even."""
    times, last = np.array(spec.times), spec.steps - 1
    if last < 2:
        return None
    scaled = last * (times - times[0]) / (times[-1] - times[0])
    if np.abs(scaled - np.arange(last + 1)).max() < 1e-3:
        return None
    return torch.tensor(scaled, dtype=torch.float32)


def _ends(p: Parameter) -> tuple[float, float]:
    """Return what is mapped to -1 and 1."""
    if p.log:
        return math.log(p.low), math.log(p.high)
    if p.mean is not None:
        return p.at(0.025), p.at(0.975)
    return p.low, p.high
