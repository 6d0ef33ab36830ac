"""A surrogate as a file for programs without this package: ONNX, or torch's own."""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import json
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from traceback import FrameSummary
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from surrogate_flow.fields.errors import (
    MissingPackageError,
    UserError,
    line_in,
    line_of,
    raised_by_user,
)
from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.files import write_atomically
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["FORMATS", "KEY", "Exported", "export"]

FORMATS = ("pt2", "onnx")
#: Of the description in the file, a JSON text: in the metadata of ONNX; with .json, an
#: extra file of pt2.
KEY = "surrogate_flow"
_BATCHES = (3, 1, 17)
_TOLERANCE = 1e-5
_LARGEST = 2**31 - 2**20  # bytes of weights in an ONNX file, a message of protobuf
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


def export(
    surrogate: Surrogate, path: str | Path, format: Literal["pt2", "onnx"]
) -> float:
    """Write a surrogate to a file for others, and compare what that predicts with it.

    Parameters
    ----------
    surrogate : Surrogate
    path : str or Path
        Of the file, which is written whole or not at all.
    format : {"pt2", "onnx"}
        That of ``torch.export``, or ONNX.

    Returns
    -------
    float
        The largest difference of the file from the surrogate, for batches of 1, 3 and
        17 random samples, as a part of the largest value of each field.

    Raises
    ------
    UserError
        If the network has no counterpart in the format, the file cannot be written, or
        it does not predict what the surrogate does.
    MissingPackageError
        If a package that ONNX needs is not installed.
    """
    if format not in FORMATS:
        raise UserError("export: format", " or ".join(FORMATS), repr(format))
    if format == "onnx":
        _require_onnx(surrogate)
    path, exported = Path(path), Exported(surrogate)
    samples = [Samples(surrogate, count) for count in _BATCHES]
    with _quiet(), torch.no_grad():
        content = _content(exported, samples[0].inputs, format)
        try:
            with write_atomically(path) as part:
                part.write_bytes(content)
                predict = _opened(part, format)
                difference = max(s.difference(predict(s.inputs)) for s in samples)
                if difference > _TOLERANCE:
                    raise UserError(
                        f"export: the file differs from the surrogate by "
                        f"{difference:.1g} of the field's size, more than "
                        f"{_TOLERANCE:g}, and is not kept. A network that draws random "
                        "numbers as it predicts cannot be exported."
                    )
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error}). Expected a folder where you may "
                "write, on a disk with room; name another file."
            ) from error
    return difference


def _require_onnx(surrogate: Surrogate) -> None:
    """Refuse ONNX without its packages, and for weights that exceed a file."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingPackageError(
                f"--format onnx needs {name}, which cannot be imported ({error}). Type "
                "pip install onnx onnxscript onnxruntime, or use --format pt2."
            ) from error
    size = sum(p.numel() * p.element_size() for p in surrogate.parameters())
    if size > _LARGEST:
        raise UserError(
            "--format onnx",
            "weights of at most 2 GiB, as a file holds",
            f"{size / 2**30:.1f} GiB",
            "Use --format pt2.",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence logs and warnings of torch, which no user can mend."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _content(exported: Exported, inputs: Tensors, format: str) -> bytes:
    """Return the file's content, for batches of any size."""
    name = exported.name
    description, buffer = json.dumps(exported.description()), BytesIO()
    batch = torch.export.Dim("batch", min=1)
    shapes = ({key: {0: batch} for key in inputs},)
    try:
        program = torch.export.export(
            exported, (inputs,), dynamic_shapes=shapes, strict=False
        )
    except Exception as error:
        # Of any type, by what the network does.
        raise _untraced(name, error) from error
    if format == "pt2":
        extra = {f"{KEY}.json": description}
        torch.export.save(program, buffer, extra_files=extra)
        return buffer.getvalue()
    try:
        made: Any = torch.onnx.export(
            program,
            (inputs,),
            input_names=list(inputs),
            output_names=[v.name for v in exported.spec.variables],
            verbose=False,
        )
    except Exception as error:
        raise _unconverted(name, program, error) from error
    model = made.model
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape[0] = "batch"
    model.metadata_props[KEY] = description
    model.doc_string = exported.description()["usage"]
    made.save(buffer)
    return buffer.getvalue()


def _untraced(name: str, error: Exception) -> UserError:
    """Return why torch cannot follow a network, at its line if that is a user's."""
    text = str(error)
    if "Constraints violated" in text:
        what = "it takes batches of one size"
        remedy = "Write x.shape[0], or -1 in reshape, in place of len(x)."
    elif "data-dependent" in text:
        what = "what it does depends on the values of a tensor"
        remedy = "Use torch.where in place of if, and neither item() nor float()."
    else:
        what = f"{type(error).__name__} ({text.strip().splitlines()[0]})"
        remedy = "Compute everything with torch."
    place = line_of(error) if raised_by_user(error) else ""
    return UserError(f"{name} cannot be exported: {what}. {remedy} {place.strip()}")


def _unconverted(name: str, program: Any, error: BaseException) -> UserError:
    """Return what ONNX lacks: an operator, at the line of a user that calls it."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    found = re.search(r"op='([\w.]+)'", "\n".join(map(str, causes)))
    if found is None:
        first = str(causes[-1]).strip().splitlines()[0]
        what = f"{type(causes[-1]).__name__} ({first})"
        return UserError(f"{name} cannot be written as ONNX: {what}. Use --format pt2.")
    operator = found[1].rpartition(".")[2]
    traces = [
        node.meta.get("stack_trace") or ""
        for node in program.graph.nodes
        if operator in str(node.target)
    ]
    calls = re.findall(r'File "(.+?)", line (\d+), in (.+)\n *(.*)', "\n".join(traces))
    frames = [FrameSummary(file, int(n), where, line=s) for file, n, where, s in calls]
    return UserError(
        f"{name} cannot be written as ONNX, which has no operator {found[1]}. Compute "
        f"it by others, or use --format pt2. {line_in(frames).strip()}"
    )


def _opened(path: Path, format: str) -> Callable[[Tensors], Tensors]:
    """Return what predicts as a program does that has only the file."""
    content = path.read_bytes()
    if format == "pt2":
        loaded: Any = torch.export.load(BytesIO(content)).module()
        return lambda inputs: dict(loaded(inputs))
    runtime: Any = importlib.import_module("onnxruntime")
    try:
        session = runtime.InferenceSession(content)
    except Exception as error:
        raise UserError(
            f"ONNX Runtime cannot open what torch has written ({error}). Use "
            "--format pt2."
        ) from error
    names = [output.name for output in session.get_outputs()]

    def predict(inputs: Tensors) -> Tensors:
        arrays = {name: value.numpy() for name, value in inputs.items()}
        found = map(torch.from_numpy, session.run(names, arrays))
        return dict(zip(names, found, strict=True))

    return predict


class Exported(nn.Module):
    """(parameters, time, history, inputs) -> fields, by name and in their units.

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
        self.window = surrogate.window
        #: With what the network sees of parameters and time, and nothing else.
        self.spec = surrogate.conditions.seen(surrogate.spec)
        self.has_time = surrogate.conditions.time
        self.recipe = dict[str, Any](surrogate.recipe)
        self.name = str(self.recipe["network"]["class_path"])
        self.network = copy.deepcopy(surrogate.network).cpu()
        self.normalisation = copy.deepcopy(surrogate.normalisation).cpu()
        self.normalisation.columns = None
        times = torch.tensor(self.spec.times, dtype=torch.float64)
        self.register_buffer("times", times)
        self.eval().requires_grad_(False)
        names = [entry["name"] for entry in self.inputs()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"export: {twice[0]!r} is the name of the input for a history, too. "
                "Rename it in the solver's spec."
            )

    def forward(self, inputs: Tensors) -> Tensors:
        """Predict the fields at the time, or those of the window that begins there."""
        spec, first = self.spec, next(iter(inputs.values()))
        columns = [inputs[p.name] for p in spec.parameters]
        count = first.shape[0]
        parameters = torch.stack(columns, 1) if columns else torch.zeros(count, 0)
        step = self._step(inputs["time"]) if self.has_time else torch.zeros(count)
        if self.window.inputs:
            seen = [
                _boxed(spec, v, stored(v, inputs[_history(v)])) for v in spec.variables
            ]
            history = torch.stack(seen, dim=2)
        else:
            history = torch.zeros(count, 0, *spec.step_shape)
        out = self.network(
            *self.normalisation.inputs(parameters.float(), step),
            self.normalisation.fields(history),
            *self._given(inputs),
        )
        fields = self.normalisation.masked(
            self.normalisation.predicted(out, history), history
        )
        if not self.window.inputs:
            fields = fields[:, 0]
        return by_name(spec, fields)

    def _given(self, inputs: Tensors) -> list[Tensor]:
        """Return the normalised input fields, if the spec has any."""
        given = [stored(v, inputs[v.name]) for v in self.spec.inputs]
        return [self.normalisation.given(torch.stack(given, 1))] if given else []

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
        rows |= {"time": time} if self.has_time else {}
        single: list[dict[str, Any]] = [
            {
                **{"name": name, "dtype": dtype, "units": units},
                **{"shape": ["batch"], "low": low, "high": high},
            }
            for name, (dtype, units, low, high) in rows.items()
        ]
        lead = ["batch", self.window.inputs]
        histories = [
            {**entry, "name": _history(v), "shape": [*lead, *spec.shape_of(v)]}
            for entry, v in zip(self.outputs(), spec.variables, strict=True)
        ]
        fields = [
            {
                **{"name": v.name, "dtype": "float32" if v.plain else "float64"},
                **{"units": v.units, "shape": ["batch", *spec.shape]},
            }
            for v in spec.inputs
        ]
        return single + (histories if self.window.inputs else []) + fields

    def outputs(self) -> list[dict[str, Any]]:
        """Return name, type, shape and units of each output."""
        steps = [self.window.outputs] if self.window.inputs else []
        return [
            {
                "name": v.name,
                # It has an offset or a scale where single precision is too coarse.
                "dtype": "float32" if v.plain else "float64",
                "units": v.units,
                "shape": ["batch", *steps, *self.spec.shape_of(v)],
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
            **{k: self.recipe[k] for k in ("network", "window", "spec", "conditions")},
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
        history = surrogate.normalisation.masked(history, history[:, :0])
        columns = parameters.cpu().unbind(1)
        self.inputs = {p.name: x for p, x in zip(spec.parameters, columns, strict=True)}
        time = torch.from_numpy(times).to(getattr(torch, type_of_times(spec)))
        self.inputs["time"] = time
        if window.inputs:
            seen = by_name(spec, history.cpu())
            self.inputs |= {_history(v): seen[v.name] for v in spec.variables}
        noise = chance.standard_normal((count, *spec.input_shape))
        given: list[Tensor] = []
        if spec.inputs:
            normal = torch.from_numpy(noise.astype(np.float32)).to(device)
            norm = surrogate.normalisation
            given = [normal * norm.input_scale + norm.input_shift]
            for v, u in zip(spec.inputs, given[0].cpu().unbind(1), strict=True):
                self.inputs[v.name] = u if v.plain else v.offset + v.scale * u.double()
        not_seen = {*surrogate.conditions.all_of(spec).names} - {
            *surrogate.conditions.names
        }
        self.inputs = {n: x for n, x in self.inputs.items() if n not in not_seen}
        steps = np.interp(time.double().numpy(), known, np.arange(spec.steps))
        if window.inputs:
            steps = np.rint(steps)
        was_training = surrogate.training
        with torch.no_grad():
            step = torch.from_numpy(steps).float().to(device)
            out = surrogate.eval()(parameters, step, history, *given).cpu()
        surrogate.train(was_training)
        self._spec, self._expected = spec, out if window.inputs else out[:, 0]

    def difference(self, fields: Tensors) -> float:
        """Return the largest difference, as a part of the largest value of a field."""
        largest = 0.0
        for channel, v in enumerate(self._spec.variables):
            expected = self._spec.part(self._expected, channel)
            got = stored(v, fields[v.name])
            known = ~(expected.isnan() & v.masked)
            if got.shape != expected.shape or not got.isfinite().equal(known):
                return math.inf
            got, expected = (torch.where(known, u, 0.0) for u in (got, expected))
            size = expected.abs().max().clamp(min=1e-30)
            largest = max(largest, float((got - expected).abs().max() / size))
        return largest


def by_name(spec: FieldSpec, fields: Float[Tensor, "*batch channel *space"]) -> Tensors:
    """Return stored fields in their units."""
    named = ((v, spec.part(fields, k)) for k, v in enumerate(spec.variables))
    return {
        v.name: field if v.plain else v.offset + v.scale * field.double()
        for v, field in named
    }


def stored(variable: Variable, field: Tensor) -> Tensor:
    """Return a field as networks have it, ``(u - offset) / scale``."""
    if variable.plain:
        return field
    return ((field.double() - variable.offset) / variable.scale).float()


def _boxed(spec: FieldSpec, variable: Variable, field: Tensor) -> Tensor:
    """Return a field with NaN up to the box of all variables."""
    pairs = zip(spec.shape, spec.shape_of(variable), strict=True)
    more = [m for n, own in reversed([*pairs]) for m in (0, n - own)]
    return nn.functional.pad(field, more, value=torch.nan) if any(more) else field


def type_of_times(spec: FieldSpec) -> str:
    """Return the type that tells a thousandth of the distance of two steps apart."""
    gaps = np.diff(spec.times)
    largest = np.float32(np.abs(spec.times).max())
    fine = not gaps.size or np.spacing(largest) < gaps.min() / 1000
    return "float32" if fine else "float64"


def _history(variable: Variable) -> str:
    return f"{variable.name}_history"
