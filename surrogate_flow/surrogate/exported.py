"""What is exported of a surrogate: fields of named inputs, all in their units."""

from __future__ import annotations

import copy
import importlib.metadata
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["Exported", "Samples", "Tensors"]

_DIRECT = (
    "The fields at a time, from parameters and time. Times outside of those of the "
    "spec count as the first or the last; between two steps the network interpolates."
)
_ROLLOUT = (
    "One step of a rollout: from the fields at {inputs} consecutive times of the spec, "
    "the oldest first, to those at the next {outputs}, of which `time` is the first. "
    "To go on, append the outputs to the histories, keep the last {inputs}, and pass "
    "the time after the last output."
)

#: Names of inputs or outputs -> their values.
Tensors = dict[str, Tensor]


class Exported(nn.Module):
    """(parameters, time, history) -> fields, by name and in their units.

    Parameters
    ----------
    surrogate : Surrogate
        It is left as it is.

    Raises
    ------
    UserError
        If a parameter has the name of another input.
    """

    times: Tensor

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__()
        self.spec, self.window = surrogate.spec, surrogate.window
        self.recipe = dict[str, Any](surrogate.recipe)
        self.name = str(self.recipe["network"]["class_path"])
        self.network = copy.deepcopy(surrogate.network).cpu()
        self.normalisation = copy.deepcopy(surrogate.normalisation).cpu()
        times = torch.tensor(self.spec.times, dtype=torch.float64)
        self.register_buffer("times", times)
        self.eval().requires_grad_(False)
        names = [entry["name"] for entry in self.inputs()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"export: the parameter {twice[0]!r} has the name of the input for a "
                "history. Rename it in the solver's spec."
            )

    def forward(self, inputs: Tensors) -> Tensors:
        """Predict the fields at the time, or those of the window that begins there."""
        spec, time = self.spec, inputs["time"]
        columns = [inputs[p.name] for p in spec.parameters]
        parameters = torch.stack(columns, 1) if columns else time[:, None][:, :0]
        if self.window.inputs:
            seen = [stored(v, inputs[_history(v)]) for v in spec.variables]
            history = torch.stack(seen, dim=2)
        else:
            history = torch.zeros(time.shape[0], 0, *spec.step_shape)
        out = self.network(
            *self.normalisation.inputs(parameters.float(), self._step(time)),
            self.normalisation.fields(history),
        )
        fields = self.normalisation.physical(out)
        if not self.window.inputs:
            fields = fields[:, 0]
        return by_name(spec, fields)

    def _step(self, time: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the step at a time, a fraction between two; whole with a history."""
        before, after = self.times[:-1], self.times[1:]
        passed = (time.double()[:, None] - before) / (after - before)
        step = passed.clamp(0, 1).sum(1)
        return (step.round() if self.window.inputs else step).float()

    def inputs(self) -> list[dict[str, Any]]:
        """Return name, type, shape, units and bounds of each input."""
        spec = self.spec
        time = type_of_times(spec), spec.time_units, spec.times[0], spec.times[-1]
        rows = {p.name: ("float32", p.units, p.low, p.high) for p in spec.parameters}
        single: list[dict[str, Any]] = [
            {
                **{"name": name, "dtype": dtype, "units": units},
                **{"shape": ["batch"], "low": low, "high": high},
            }
            for name, (dtype, units, low, high) in (*rows.items(), ("time", time))
        ]
        shape = ["batch", self.window.inputs, *spec.shape]
        histories = [
            {**entry, "name": _history(v), "shape": shape}
            for entry, v in zip(self.outputs(), spec.variables, strict=True)
        ]
        return single + (histories if self.window.inputs else [])

    def outputs(self) -> list[dict[str, Any]]:
        """Return name, type, shape and units of each output."""
        steps = [self.window.outputs] if self.window.inputs else []
        return [
            {
                "name": v.name,
                # It has an offset or a scale where single precision is too coarse.
                "dtype": "float32" if v.plain else "float64",
                "units": v.units,
                "shape": ["batch", *steps, *self.spec.shape],
            }
            for v in self.spec.variables
        ]

    def description(self) -> dict[str, Any]:
        """Return all that a program must know, as plain data."""
        window = self.window
        usage = _ROLLOUT if window.inputs else _DIRECT
        return {
            "surrogate_flow": importlib.metadata.version("surrogate-flow"),
            "usage": usage.format(inputs=window.inputs, outputs=window.outputs),
            "inputs": self.inputs(),
            "outputs": self.outputs(),
            **{key: self.recipe[key] for key in ("network", "window", "spec")},
        }


class Samples:
    """Random inputs, and what the surrogate makes of them.

    Parameters are within their bounds, times within those of the spec, and histories
    vary as the fields that the surrogate was trained on.
    """

    def __init__(self, surrogate: Surrogate, count: int) -> None:
        spec, window = surrogate.spec, surrogate.window
        chance, device = np.random.default_rng(count), surrogate.device
        drawn = [[p.at(chance.random()) for p in spec.parameters] for _ in range(count)]
        parameters = torch.tensor(drawn, dtype=torch.float32, device=device)
        known, last = np.array(spec.times), spec.steps - window.outputs
        times = chance.uniform(known[0], known[-1], count)
        if window.inputs:
            times = known[chance.integers(window.inputs, last + 1, count)]
        noise = chance.standard_normal((count, window.inputs, *spec.step_shape))
        normal = torch.from_numpy(noise.astype(np.float32)).to(device)
        history = surrogate.normalisation.physical(normal)
        columns = parameters.cpu().unbind(1)
        self.inputs = {p.name: x for p, x in zip(spec.parameters, columns, strict=True)}
        time = torch.from_numpy(times).to(getattr(torch, type_of_times(spec)))
        self.inputs["time"] = time
        if window.inputs:
            seen = by_name(spec, history.cpu())
            self.inputs |= {_history(v): seen[v.name] for v in spec.variables}
        steps = np.interp(time.double().numpy(), known, np.arange(spec.steps))
        if window.inputs:
            steps = np.rint(steps)
        was_training = surrogate.training
        with torch.no_grad():
            step = torch.from_numpy(steps).float().to(device)
            out = surrogate.eval()(parameters, step, history).cpu()
        surrogate.train(was_training)
        self._spec, self._expected = spec, out if window.inputs else out[:, 0]

    def difference(self, fields: Tensors) -> float:
        """Return the largest difference, as a part of the largest value of a field."""
        channels = self._expected.unbind(-1 - len(self._spec.dims))
        largest = 0.0
        for v, expected in zip(self._spec.variables, channels, strict=True):
            got = stored(v, fields[v.name])
            size = expected.abs().max().clamp(min=1e-30)
            if got.shape != expected.shape or not got.isfinite().all():
                return math.inf
            largest = max(largest, float((got - expected).abs().max() / size))
        return largest


def by_name(spec: FieldSpec, fields: Float[Tensor, "*batch channel *space"]) -> Tensors:
    """Return stored fields in their units."""
    channels = fields.unbind(-1 - len(spec.dims))
    return {
        v.name: field if v.plain else v.offset + v.scale * field.double()
        for v, field in zip(spec.variables, channels, strict=True)
    }


def stored(variable: Variable, field: Tensor) -> Tensor:
    """Return a field as networks have it, ``(u - offset) / scale``."""
    if variable.plain:
        return field
    return ((field.double() - variable.offset) / variable.scale).float()


def type_of_times(spec: FieldSpec) -> str:
    """Return the type that tells a thousandth of the distance of two steps apart."""
    gaps = np.diff(spec.times)
    largest = np.float32(np.abs(spec.times).max())
    fine = not gaps.size or np.spacing(largest) < gaps.min() / 1000
    return "float32" if fine else "float64"


def _history(variable: Variable) -> str:
    return f"{variable.name}_history"
