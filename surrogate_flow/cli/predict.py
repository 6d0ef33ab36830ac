"""``surrogate-flow predict`` from a checkpoint alone."""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from surrogate_flow.cli.runs import newest
from surrogate_flow.fields.conventions import about, to_netcdf
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.quantities import counted
from surrogate_flow.report.console import print_lines
from surrogate_flow.surrogate.checks import read_history
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)

_NETCDF = ("", ".nc", ".nc3", ".nc4", ".cdf", ".netcdf", ".h5", ".hdf5")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command; `help` describes them."""
    parser.add_argument("--ckpt_path", required=True, type=str)
    parser.add_argument("--parameters", required=True, type=dict[str, float])
    parser.add_argument("--times", type=list[float] | None)
    parser.add_argument("--history", type=Path | None)
    parser.add_argument("--output", type=Path, default=Path("field.nc"))


def run(options: Any) -> None:
    """Write what a trained surrogate predicts to a netCDF file."""
    output: Path = options.output
    if output.is_dir():
        raise UserError(
            f"--output {output}: expected a file's name, got a folder. Name the file "
            f"in it, such as {output / 'field.nc'}."
        )
    if output.suffix not in _NETCDF:
        raise UserError(
            f"--output {output}",
            "the name of a netCDF file",
            repr(output.suffix),
            f"Name it {output.with_suffix('.nc')}, and convert it with xarray.",
        )
    if not output.parent.is_dir():
        raise UserError(
            f"--output {output}: there is no folder {output.parent}. Make it first."
        )
    replaced = output.exists()
    path = options.ckpt_path
    named = path in ("last", "best")
    if named and (found := newest(Path("runs"), f"*/*/checkpoints/{path}.ckpt")):
        logger.info("From the checkpoint %s", found)
        path = found
    surrogate = Surrogate.load(path)
    history = None if options.history is None else read_history(options.history)
    if history is None and (inputs := surrogate.window.inputs):
        left = Path(path).absolute().parent.parent / "history.nc"
        raise UserError(
            "predict",
            f"a history of {counted(inputs, 'step')}",
            "none",
            f"Such as --history {left}, of the run that left the checkpoint.",
        )
    for name, value in options.parameters.items():
        theirs = None if history is None else history.coords.get(name)
        if theirs is None or theirs.size != 1:
            continue
        if not math.isclose(float(theirs), value, rel_tol=1e-3):
            warnings.warn(
                f"{name} = {value:g}, but the history is of a simulation with "
                f"{name} = {float(theirs):g}.",
                stacklevel=2,
            )
    dataset = surrogate.predict(options.parameters, options.times, history)
    try:
        network = f"{type(surrogate.network).__name__}"
        to_netcdf(dataset, output, **about("Prediction of a surrogate", network))
    except UnicodeEncodeError as error:
        raise UserError(
            f"--output {output}: netCDF 3, as SciPy writes it, holds no name such as "
            f"{error.object!r}. Install netCDF4, which writes newer files."
        ) from error
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--output {output}: cannot be written ({error}). Expected a folder where "
            "you may write, on a disk with room; name another file."
        ) from error
    if replaced:
        print_lines(Console(), f"{output}: the file that was there is replaced.")
    for name, field in dataset.data_vars.items():
        print_lines(
            Console(),
            f"{output}: {name} {dict(field.sizes)}, {float(field.min()):.4g} "
            f"to {float(field.max()):.4g} {field.attrs.get('units', '')}",
        )
