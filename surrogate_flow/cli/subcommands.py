"""Subcommands without a trainer: plan, generate, compare, predict from a checkpoint."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import xarray as xr
from jsonargparse import ArgumentParser
from rich.console import Console

from surrogate_flow.cli.compare import compare as run_comparison
from surrogate_flow.cli.generate import generate as write_data_set
from surrogate_flow.cli.plan import show
from surrogate_flow.data.online import OnlineData
from surrogate_flow.report.console import hush, show_logs, the_console
from surrogate_flow.surrogate.prediction import read_history
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["compare", "generate", "plan", "predict"]


def plan(words: Sequence[str]) -> None:
    """Print what a study would ask of its cluster."""
    parser = _parser_of_study(
        "plan",
        "Print the job script and the plan of a study: jobs, cores, memory, walltime, "
        "simulations at once, bytes a second. Nothing is submitted.",
    )
    options = parser.instantiate_classes(parser.parse_args(list(words)))
    show(options.data, the_console())


def generate(words: Sequence[str]) -> None:
    """Write the simulations of a study to a data set on disk."""
    parser = _parser_of_study(
        "generate",
        "Simulate the whole study, held-out simulations included, onto the disk: a "
        "data set in Zarr format 3, which xarray.open_zarr opens and 'fit --data' "
        "trains on. The workers write it, so they must share its file system. Typed "
        "again, the command adds the simulations that are missing.",
    )
    parser.add_argument(
        "--output", required=True, type=Path, help="The data set, such as heat2d.zarr."
    )
    options = parser.instantiate_classes(parser.parse_args(list(words)))
    try:
        whole = write_data_set(options.data, options.output, the_console())
    except KeyboardInterrupt:
        print("Left at once. The same command goes on.", file=sys.stderr)
        whole = False
    if not whole:
        sys.exit(128 + signal.SIGINT)


def compare(words: Sequence[str]) -> None:
    """Train offline and online, and put the errors side by side."""
    show_logs()
    hush()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_comparison(words, the_console())
    except KeyboardInterrupt:
        print("Type the same command again to go on.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _parser_of_study(command: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"surrogate-flow {command}", description=description, allow_abbrev=False
    )
    parser.add_subclass_arguments(OnlineData, "data", required=True)
    parser.set_defaults({"data": {"class_path": "surrogate_flow.OnlineData"}})
    # So that the words of a fit can be kept.
    parser.add_argument("--model", help="Ignored: it does not matter here.")
    show_logs()
    hush()
    return parser


def predict(words: Sequence[str]) -> None:
    """Write what a trained surrogate predicts to a netCDF file."""
    parser = ArgumentParser(
        prog="surrogate-flow predict",
        description=(
            "Predict fields from a checkpoint alone; neither solver nor cluster is "
            "needed. With --data and --model it is Lightning's own predict."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt_path", required=True, type=str, help="A checkpoint.")
    parser.add_argument(
        "--parameters",
        required=True,
        type=dict[str, float],
        help="Such as '{initial: 300, left: 100, ...}', in the units of the spec.",
    )
    parser.add_argument(
        "--times",
        type=list[float] | None,
        help="Such as '[0.1, 0.5]'; all steps of the solver by default.",
    )
    parser.add_argument(
        "--history",
        type=Path | None,
        help="A netCDF file with the first steps, for one that rolls out from them.",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("field.nc"), help="A netCDF file."
    )
    options = parser.parse_args(list(words))
    _require_file(options.output)
    surrogate = Surrogate.load(options.ckpt_path)
    history = None if options.history is None else read_history(options.history)
    dataset = surrogate.predict(options.parameters, options.times, history)
    _write(dataset, options.output)
    console = Console()
    for name, field in dataset.data_vars.items():
        console.print(
            f"{options.output}: {name} {dict(field.sizes)}, {float(field.min()):.4g} "
            f"to {float(field.max()):.4g} {field.attrs.get('units', '')}",
            soft_wrap=True,
            highlight=False,
        )


def _require_file(output: Path) -> None:
    if output.is_dir():
        raise FileNotFoundError(
            f"--output {output}: expected a file's name, got a folder. Name the file "
            f"in it, such as {output / 'field.nc'}."
        )
    if not output.parent.is_dir():
        raise FileNotFoundError(
            f"--output {output}: there is no folder {output.parent}. Make it first."
        )


def _write(dataset: xr.Dataset, output: Path) -> None:
    """Write a file that is whole, or none; through a link into what it points to."""
    target = output.resolve()
    part = target.with_name(f"{target.name}.part")
    try:
        try:
            dataset.to_netcdf(part)
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"--output {output}: cannot be written ({error}). Expected a folder where "
            "you may write, on a disk with room; name another file."
        ) from error
