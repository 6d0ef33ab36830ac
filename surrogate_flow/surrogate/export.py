"""A surrogate as a file for programs without this package: ONNX, or torch's own."""

from __future__ import annotations

import importlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from traceback import FrameSummary
from typing import Any, Literal

import torch

from surrogate_flow.fields.errors import (
    MissingPackageError,
    UserError,
    line_in,
    line_of,
    raised_by_user,
)
from surrogate_flow.files import write_atomically
from surrogate_flow.surrogate.exported import Exported, Samples, Tensors
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["FORMATS", "KEY", "export"]

FORMATS = ("pt2", "onnx")
#: Of the description in the file, a JSON text: in the metadata of ONNX; with .json, an
#: extra file of pt2.
KEY = "surrogate_flow"
_BATCHES = (3, 1, 17)
_TOLERANCE = 1e-5
_LARGEST = 2**31 - 2**20  # bytes of weights in an ONNX file, a message of protobuf


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
