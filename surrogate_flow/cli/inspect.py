"""``surrogate-flow inspect``: what stored runs hold, as a recipe that replays them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from surrogate_flow.cli.parser import Parser, parse
from surrogate_flow.cli.recipes import CommandLine
from surrogate_flow.fields.names import RecipeError
from surrogate_flow.fields.quantities import counted, in_units
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import THRESHOLD
from surrogate_flow.solvers.stored.opening import Reading
from surrogate_flow.solvers.stored.runs import StoredRuns, found, listed

__all__ = ["run", "steps_of"]


def run(words: Sequence[str]) -> None:
    """Print the recipe of the runs in the files that a command line names.

    Comments say what it found; it is YAML as a whole, to be saved.
    """
    parser = Parser(prog="surrogate-flow inspect", allow_abbrev=False)
    parser.add_argument("files", nargs="*", type=str)
    for option in ("parameters", "variables", "inputs", "initial", "masked", "time"):
        parser.add_argument(f"--{option}", type=str, default="")
    for option in ("skip_damaged", "may_end_early"):
        parser.add_argument(f"--{option}", type=bool, default=False)
    options: Any = parse(
        CommandLine(["inspect", *words]), lambda words: parser.parse_args(words[1:])
    )
    if not options.files:
        raise RecipeError(
            "inspect needs files. Type, for example, surrogate-flow inspect "
            "'runs/*.nc' > mine.yaml."
        )
    files = found(options.files)
    inputs, masked = listed(options.inputs), listed(options.masked)
    stored = StoredRuns(
        files,
        reading=Reading(options.time, inputs=inputs, masked=masked),
        parameters=options.parameters,
        variables=options.variables,
        initial=options.initial,
        skip_damaged=options.skip_damaged,
        may_end_early=options.may_end_early,
    )
    for line in _comments(stored, len(files)):
        print(f"# {line}")
    if (holes := stored.holes()) and not masked:
        options.masked = ",".join(holes)
        print(f"# NaN at some points, which is where they are masked: {options.masked}")
    arguments: dict[str, Any] = {"files": _as_pattern(options.files, files)}
    names = ("parameters", "variables", "inputs", "initial", "masked")
    for name in (*names, "skip_damaged", "may_end_early"):
        if value := getattr(options, name):
            arguments[name] = value
    if options.time not in ("", "time"):
        arguments["names"] = {options.time: "time"}
    recipe: dict[str, Any] = {
        "name": files[0].absolute().parent.name or "runs",
        "solver": {
            "class_path": "surrogate_flow.solvers.Replay",
            "init_args": arguments,
        },
    }
    samples = sum(run.steps for run in stored.runs)
    if samples < 4 * THRESHOLD:
        recipe["reservoir"] = {
            "class_path": "surrogate_flow.reservoir.Reservoir",
            "init_args": {"threshold": max(1, samples // 4)},
        }
    print(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), end="")


def _comments(stored: StoredRuns, files: int) -> Iterator[str]:
    """Yield what the runs hold, a line each."""
    spec = stored.spec
    yield f"{counted(len(stored.runs), 'run')} in {counted(files, 'file')}"
    for p in spec.parameters:
        count = len({run.quantities[p.name][0] for run in stored.runs})
        yield (
            f"parameter {p.name}: {p.low:g} to {in_units(p.high, p.units, 6)}, "
            f"{counted(count, 'value')}" + ", of the initial state alone" * p.initial
        )
    points = {tuple(stored.parameters_of(run).values()) for run in stored.runs}
    if len(points) < len(stored.runs) and not spec.inputs:
        names = ",".join(v.name for v in spec.variables)
        yield (
            f"only {len(points)} of the runs differ in their parameters: train from "
            "step to step, such as --model fully_connected_autoregressive, or give "
            f"networks the initial state, by inspect ... --inputs {names}"
        )
    yield from _fields(spec)
    last = in_units(spec.times[-1], spec.time_units)
    yield f"time: {steps_of(stored)}, {spec.times[0]:g} to {last}"
    if stored.differing:
        yield (
            "differ, but are no numbers of all runs, or of the computer, left out: "
            + ", ".join(stored.differing)
        )
    if stored.not_taken:
        yield f"variables left out: {', '.join(stored.not_taken)}"
    for why in stored.left_out.values():
        yield f"left out: {why}"


def _fields(spec: FieldSpec) -> Iterator[str]:
    for kind, fields in (("variable", spec.variables), ("input", spec.inputs)):
        for v in fields:
            units = f" [{v.units}]" * bool(v.units)
            yield f"{kind} {v.name}{units} {v.long_name}".rstrip()
    for dim, size in zip(spec.dims, spec.shape, strict=True):
        along = [c for c in spec.coordinates if c.dim == dim]
        ends = (
            f", {c.name} {min(c.values):g} to {in_units(max(c.values), c.units)}"
            for c in along
        )
        yield f"dim {dim}: {counted(size, 'point')}" + "".join(ends)


def steps_of(stored: StoredRuns) -> str:
    """Return how many steps the runs have, in words."""
    # The first one of some is an input, and no step.
    most = max(run.steps for run in stored.runs)
    least = stored.spec.steps - most + min(run.steps for run in stored.runs)
    shorter = f"{least} to " * (least < stored.spec.steps)
    return f"{shorter}{counted(stored.spec.steps, 'step')}"


def _as_pattern(given: Sequence[str], files: Sequence[Path]) -> str | list[str]:
    """Return what names the files, as short as it can be: a shell writes all out."""
    if len(given) == 1:
        return given[0]
    folders, suffixes = {f.parent for f in files}, {f.suffix for f in files}
    if len(folders) == len(suffixes) == 1:
        (folder,), (suffix,) = folders, suffixes
        start = re.split(r"[\d*?[]", files[0].name)[0].removesuffix(suffix)
        for pattern in (f"{start}*{suffix}", f"*{suffix}"):
            if {*folder.glob(pattern)} == {*files}:
                return str(folder / pattern)
    return [*map(str, files)]
