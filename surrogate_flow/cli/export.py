"""``surrogate-flow export``: a checkpoint as a file for programs without this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any, Literal

from dask.utils import format_bytes
from jsonargparse import ArgumentParser

from surrogate_flow.cli.runs import given_checkpoint
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.quantities import counted
from surrogate_flow.report.console import print_lines, the_console
from surrogate_flow.surrogate.export import export
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.surrogate.writing import require_place

__all__ = ["add_arguments", "run"]

_SILENT = 1.0  # seconds


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command; `help` describes them."""
    parser.add_argument("--ckpt_path", required=True, type=str)
    parser.add_argument("--format", required=True, type=Literal["pt2", "onnx"])
    parser.add_argument("--output", type=Path | None)


def run(options: Any) -> None:
    """Write a surrogate to a file, and say what is in it."""
    suffix = f".{options.format}"
    output: Path = options.output or Path(f"surrogate{suffix}")
    require_place(output, f"surrogate{suffix}")
    if output.suffix != suffix:
        expected = f"a file's name that ends in {suffix}"
        remedy = f"Such as --output {output.with_suffix(suffix)}."
        raise UserError(f"--output {output}", expected, repr(output.name), remedy)
    replaced = output.exists()
    surrogate = Surrogate.load(given_checkpoint(options.ckpt_path))
    with _said_if_slow(f"Exporting {type(surrogate.network).__name__}, and checking"):
        difference = export(surrogate, output, options.format)
    spec, window = surrogate.spec, surrogate.window
    conditions = surrogate.conditions
    seen, predicted = counted(len(conditions.columns(spec)), "parameter"), ""
    seen += " and time" * conditions.time
    if window.inputs:
        seen += f", after {counted(window.inputs, 'step')} of history"
        predicted = f" at {counted(window.outputs, 'time')}"
    if spec.inputs:
        seen += f", with {counted(len(spec.inputs), 'input field')}"
    size = format_bytes(output.stat().st_size)
    print_lines(
        the_console(),
        *[f"{output}: the file that was there is replaced."] * replaced,
        f"{output} ({size}): {', '.join(v.name for v in spec.variables)}{predicted} "
        f"from {seen}, in their units.",
        f"It differs from the surrogate by {difference:.1e} of a field's largest "
        "value, in batches of 1, 3 and 17 random samples.",
    )


@contextmanager
def _said_if_slow(what: str) -> Iterator[None]:
    """Print a line if the user would wait for longer than a second."""
    timer = Timer(_SILENT, print_lines, (the_console(), f"{what} ..."))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
