"""``surrogate-flow predict`` from a checkpoint alone."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
import yaml
from dask.utils import format_bytes
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from rich.console import Console
from rich.text import Text

from surrogate_flow.cli.runs import given_checkpoint
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.quantities import counted
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.files import NETCDF
from surrogate_flow.report.console import LiveLine, print_lines, the_console
from surrogate_flow.sampling import (
    BlockSampler,
    Halton,
    LatinHypercube,
    Sobol,
    Uniform,
)
from surrogate_flow.surrogate.inputs import (
    read_history,
    read_inputs,
    read_parameters,
)
from surrogate_flow.surrogate.prediction import Prediction, require_memory
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.surrogate.writing import ZARR, require_writable, write

__all__ = ["add_arguments", "run"]

_TABLES = (".csv", ".tsv", ".txt", *NETCDF)
_SAMPLERS: dict[str, type[BlockSampler]] = {
    "sobol": Sobol,
    "halton": Halton,
    "latin_hypercube": LatinHypercube,
    "uniform": Uniform,
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command; `help` describes them."""
    parser.add_argument("--ckpt_path", required=True, type=str)
    parser.add_argument("--parameters", type=str | None)
    parser.add_argument("--samples", type=PositiveInt)
    parser.add_argument("--sampler", type=Literal[*_SAMPLERS], default="sobol")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=list[float] | None)
    parser.add_argument("--history", type=Path | None)
    parser.add_argument("--inputs", type=Path | None)
    parser.add_argument("--batch_size", type=int | None)
    parser.add_argument("--device", type=Literal["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--output", type=Path, default=Path("field.nc"))


def run(options: Any) -> None:
    """Write what a trained surrogate predicts to a netCDF file or a Zarr store."""
    output: Path = options.output
    # Without parameters, input fields or histories alone tell samples apart.
    fields = options.inputs or options.history
    fields_alone = fields is not None and options.samples is None
    if (options.parameters is None) == (options.samples is None) and not (
        fields_alone and options.parameters is None
    ):
        both = "both" if options.samples is not None else "none of them"
        raise UserError(
            f"predict needs --parameters or --samples, got {both}. Such as "
            "--parameters table.csv, or --samples 1000."
        )
    require_writable(output)
    given = options.parameters and _parameters(options.parameters)
    if fields_alone and given is None:
        given = {}
    inputs = None if options.inputs is None else read_inputs(options.inputs)
    sampler = _sampler(options) if given is None else None
    device = _device(options.device)
    replaced = output.exists()
    path = given_checkpoint(options.ckpt_path)
    surrogate = Surrogate.load(path).to(device)
    history = None if options.history is None else read_history(options.history)
    if history is None and (steps := surrogate.window.inputs):
        left = Path(path).absolute().parent.parent / "history.nc"
        raise UserError(
            "predict",
            f"a history of {counted(steps, 'step')}",
            "none",
            f"Such as --history {left}, of the run that left the checkpoint.",
        )
    if sampler is not None:
        if output.suffix != ZARR:
            # Before minutes go by; a history leaves fewer steps, at least one.
            spec = surrogate.spec
            times = 1 if history is not None else len(options.times or spec.times)
            require_memory(spec, options.samples, times)
        seen = surrogate.conditions.seen(surrogate.spec)
        given = _drawn(sampler, options.samples, seen)
    if surrogate.spec.inputs and inputs is None:
        left = Path(path).absolute().parent.parent / "inputs.nc"
        raise UserError(
            "predict",
            f"the input field {surrogate.spec.inputs[0].name!r}",
            "none",
            f"Such as --inputs {left}, of the run that left the checkpoint.",
        )
    prediction = Prediction(
        surrogate, given, options.times, history, options.batch_size, inputs
    )
    if history is not None:
        _warn_of_others(prediction, history)
    console = the_console()
    line = LiveLine(_progress(prediction), console, every=5.0)
    if prediction.several:
        line.start()
    try:
        write(prediction, output, type(surrogate.network).__name__)
    except KeyboardInterrupt:
        line.stop()
        rest = "the file that was there stays" if replaced else "nothing is left of it"
        print_lines(Console(), f"{output} was not written: {rest}.")
        raise
    finally:
        line.stop()
    line.check()
    if replaced:
        print_lines(Console(), f"{output}: the file that was there is replaced.")
    spec = surrogate.spec
    for variable, (low, high) in zip(spec.variables, prediction.ranges, strict=True):
        dims = variable.dims or spec.dims
        names = ("sample",) * prediction.several + ("time", *dims)
        sizes = (*prediction.shape[:2], *spec.shape_of(variable))[-len(names) :]
        print_lines(
            Console(),
            f"{output}: {variable.name} {dict(zip(names, sizes, strict=True))}, "
            f"{low:.4g} to {high:.4g} {variable.units}",
        )


def _parameters(text: str) -> Any:
    """Return a table of a file, or the mapping that a text is."""
    if Path(text).suffix in _TABLES:
        return read_parameters(Path(text))
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or None in found.values():
        raise UserError(
            "--parameters",
            "a mapping, or a table such as points.csv",
            repr(text),
            "Put quotes around a mapping, and a blank behind each colon: '{a: 1}'.",
        )
    return found


def _sampler(options: Any) -> BlockSampler:
    """Return the sampler of --samples."""
    kind = _SAMPLERS[options.sampler]
    if kind is LatinHypercube:
        # One design, of as many strata as there are samples.
        return LatinHypercube(options.seed, strata=options.samples)
    return kind(options.seed)


def _drawn(sampler: BlockSampler, count: int, spec: FieldSpec) -> dict[str, Any]:
    if not spec.parameters:
        raise UserError(
            "--samples draws parameters, and the surrogate sees none: leave it out, "
            "and give --inputs fields.nc or --history steps.nc with a dim 'sample'."
        )
    points = sampler.ask(0, count, spec.parameters)
    return {p.name: points[:, k] for k, p in enumerate(spec.parameters)}


def _device(name: str) -> torch.device:
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError(
            "--device cuda: torch finds no GPU here. Leave it out: the CPU predicts."
        )
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def _warn_of_others(prediction: Prediction, history: xr.Dataset) -> None:
    """Warn once of a history of another simulation, or of others."""
    differs, count = {}, prediction.count
    for p, values in zip(prediction.spec.parameters, prediction.table.T, strict=True):
        theirs = np.ravel(history.coords.get(p.name, []))
        if theirs.size in (1, count) and theirs.dtype.kind in "fiu":
            other = ~np.isclose(values, theirs, rtol=1e-3, atol=0)
            if other.any():
                said = f" ({values[0]:g} in place of {theirs[0]:g})" * (count == 1)
                differs[p.name + said] = other
    if differs:
        rows = np.any([*differs.values()], axis=0).sum()
        what = f"{rows:,} of {count:,} samples have" if count > 1 else "the sample has"
        warnings.warn(
            f"The history is of another simulation: {what} another "
            f"{', '.join(differs)}.",
            stacklevel=2,
        )


def _progress(prediction: Prediction) -> Any:
    """Return what describes how far a prediction is."""
    start = time.monotonic()

    def line() -> Text:
        done, count = prediction.done, prediction.count
        pace = done / max(time.monotonic() - start, 1e-9)
        size = format_bytes(prediction.nbytes * done // count)
        return Text(
            f"predict | {done:,} of {count:,} samples | {size} | {pace:,.0f} samples/s",
            no_wrap=True,
            overflow="ellipsis",
        )

    return line
