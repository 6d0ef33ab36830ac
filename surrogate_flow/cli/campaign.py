"""``surrogate-flow import``: a campaign of files into a data set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dask.utils import format_bytes
from rich.progress import track

from surrogate_flow.cli.inspect import steps_of
from surrogate_flow.cli.parser import Parser, parse
from surrogate_flow.cli.recipes import CommandLine
from surrogate_flow.dataset.campaign import Campaign
from surrogate_flow.fields.names import RecipeError
from surrogate_flow.fields.quantities import in_units
from surrogate_flow.report.console import print_lines, the_console
from surrogate_flow.solvers.stored.runs import found, listed

__all__ = ["run"]


def run(words: Sequence[str]) -> None:
    """Write a data set of the files that a command line names, and describe it."""
    parser = Parser(prog="surrogate-flow import", allow_abbrev=False)
    parser.add_argument("files", nargs="*", type=str)
    parser.add_argument("--output", type=Path)
    names = ("parameters", "variables", "inputs", "initial", "masked", "time")
    for option in (*names, "held_out"):
        parser.add_argument(f"--{option}", type=str, default="")
    parser.add_argument("--seed", type=int, default=0)
    for option in ("skip_damaged", "may_end_early"):
        parser.add_argument(f"--{option}", type=bool, default=False)
    options: Any = parse(
        CommandLine(["import", *words]), lambda words: parser.parse_args(words[1:])
    )
    if not options.files or options.output is None:
        raise RecipeError(
            "import needs files and --output. Type, for example, "
            "surrogate-flow import 'campaign/*.nc' --output campaign.zarr."
        )
    held_out: Any = options.held_out
    held_out = (
        int(held_out) if held_out.isdigit() else found([held_out] * bool(held_out))
    )
    console, files = the_console(), found(options.files)
    campaign = Campaign(
        files,
        parameters=options.parameters,
        variables=options.variables,
        time=options.time,
        inputs=listed(options.inputs),
        initial=options.initial,
        masked=listed(options.masked),
        held_out=held_out if held_out != [] else None,
        seed=options.seed,
        skip_damaged=options.skip_damaged,
        may_end_early=options.may_end_early,
        follow=partial(track, console=console),
    )
    archive = campaign.write(options.output)
    spec, complete = campaign.spec, len(archive.complete())
    stored = campaign.stored
    every = len(campaign.rows) + len(stored.left_out)
    bounds = (
        f"{p.name} ({p.low:g} to {in_units(p.high, p.units, 6)})"
        for p in spec.parameters
    )
    variables, inputs = (
        ", ".join(f"{v.name} [{v.units}]" if v.units else v.name for v in some)
        for some in (spec.variables, spec.inputs)
    )
    left_out = [n for n in stored.differing if n not in stored.parameters]
    print_lines(
        console,
        *(f"Left out: {why}" for why in stored.left_out.values()),
        f"Data set: {archive.path}, {complete} of {every} simulations, "
        f"{campaign.held_out} of them held out; {format_bytes(archive.size())} on disk",
        f"  parameters: {', '.join(bounds) or 'none'}"
        + "; all numbers that differ: --parameters NAME,NAME takes others"
        * (not options.parameters),
        *[
            "  differ between files, but are no numbers in each, or of a run (its id, "
            f"seed, date, duration), left out: {', '.join(left_out)}"
        ]
        * bool(left_out),
        *[f"  inputs: {inputs}"] * bool(inputs),
        f"  variables: {variables}, {steps_of(stored)} of "
        f"{dict(zip(spec.dims, spec.shape, strict=True))}"
        + f"; without {', '.join(stored.not_taken)}"
        * bool(stored.not_taken),
        f"Next: surrogate-flow fit --data {archive.path} --model fully_connected "
        "--trainer.max_epochs 10",
    )
