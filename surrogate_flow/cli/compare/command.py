"""``surrogate-flow compare``: a sweep over the sources of samples, and its table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from rich.console import Console

from surrogate_flow.cli.compare.table import ComparisonTable, FinishedRun
from surrogate_flow.cli.compare.variant import (
    NAMES,
    OFFLINE,
    Overrides,
    cases_of,
    parts_of,
)
from surrogate_flow.cli.generate import generate
from surrogate_flow.cli.lightning import build
from surrogate_flow.cli.signals import stop_requested
from surrogate_flow.cli.sweep.checks import require_possible
from surrogate_flow.cli.sweep.controller import Controller
from surrogate_flow.cli.sweep.folder import SweepError, SweepFolder, TrialRow
from surrogate_flow.cli.sweep.page import sweep_page
from surrogate_flow.cli.sweep.places import Here
from surrogate_flow.cli.sweep.recipe import CASE, SEED, SweepRecipe
from surrogate_flow.data.online import OnlineData
from surrogate_flow.fields.names import RecipeError
from surrogate_flow.files import last_lines, write_text
from surrogate_flow.report.console import print_lines, the_console
from surrogate_flow.report.folder.run_folder import REPORT

__all__ = ["add_arguments", "compare", "run"]

_CURVE = 20  # validations of a run
_TAIL = 20  # lines of the log of a run that has failed
_WIDTH = 130  # characters of the table where there is no terminal
_STUDY = "fifo"  # the online variant whose simulations may be as few as there are
_SECONDS = "data set seconds"  # what the study's attribute is called


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command; ``compare --help`` describes them."""
    add = parser.add_argument
    add("--data", required=True, type=str)
    add("--model", required=True, type=str)
    add("--batches", type=PositiveInt, default=3000)
    add("--offline", nargs="+", type=PositiveInt, default=[50])
    add("--seeds", type=PositiveInt, default=3)
    add("--variants", "--arms", nargs="+", type=str, default=list(NAMES))
    add("--output", type=Path | None)
    # Options for the runs: --data.X, --model.X and --trainer.X.
    add("--overrides", type=list[str], default=[])


def run(options: Any) -> None:
    """Run a comparison; Ctrl-C and SIGTERM end it, and the same command resumes it."""
    if status := compare(options, the_console()):
        sys.exit(status)


def compare(options: Any, console: Console) -> int:
    """Train from a data set and from several reservoirs, and put the errors together.

    Returns the exit status: 1 if a run has failed, or that of a signal.

    Raises
    ------
    RecipeError
        If an option is wrong; nothing has been written then.
    SweepError
        If the folder holds runs of another comparison, or is in use.
    """
    for option in ("data", "model"):
        if not Path(getattr(options, option)).is_file():
            got = getattr(options, option)
            raise RecipeError(f"compare --{option}", "a recipe", got)
    name = f"{Path(options.data).stem}-{Path(options.model).stem}"
    path = options.output or Path("runs/compare") / name
    if (path / "comparison.json").is_file():
        raise SweepError(
            f"{path} holds a comparison of an older version, which cannot go on. Name "
            "another folder with --output."
        )
    # Plain ones, which can be written.
    batches, sizes = int(options.batches), sorted({*map(int, options.offline)})
    overrides, data_set = Overrides.read(options.overrides), path / f"{OFFLINE}.zarr"
    names = list(dict.fromkeys(options.variants))
    recipe = SweepRecipe(
        model=options.model,
        options={
            "trainer.max_steps": batches,
            "trainer.val_check_interval": max(1, batches // _CURVE),
            **overrides.fit,
        },
        cases=cases_of(names, options.data, str(data_set), overrides, sizes),
        # Seed by seed, so that a machine that gets slower does so for all variants.
        space={SEED: list(range(options.seeds))},
        share_simulations=False,
        resume=False,
        at_once=1,
    )
    recipe.require_sense()
    # Without a data set yet.
    study = cases_of([_STUDY], options.data, "", overrides)[_STUDY]
    study["data.simulations"] = sizes[-1]
    stored = [case for case in recipe.cases if parts_of(case)[0] == OFFLINE]
    cases = {**recipe.cases, **dict.fromkeys(stored, study)}
    first = msgspec.structs.replace(recipe, cases=cases)
    require_possible(SweepFolder(path, first))
    folder = SweepFolder.create(path, recipe, "--output")
    with folder.held({"the study of the data set": study}):
        folder.repeat_failed()
        left, status = {str(point[CASE]) for point in folder.missing}, 0
        if left & {*stored}:
            words = first.words({CASE: stored[0], SEED: 0})
            status = _generate(folder, data_set, words, console)
        if not status:
            with stop_requested() as stopped:
                Controller(folder, Here(alone=True)).run(stopped.is_set)
            status = stopped.status
        if status or folder.left:
            print("Type the same command again to go on.", file=sys.stderr)
            return status
        return _finish(folder, names, sizes[-1], console)


def _generate(
    folder: SweepFolder, path: Path, words: Sequence[str], console: Console
) -> int:
    """Make the data set, or what is missing of it; return the exit status."""
    data, _ = build(["fit", *words])
    assert isinstance(data, OnlineData), "refused before"
    fresh, begin = not path.exists(), time.monotonic()
    status = generate(data, path, console)
    if fresh and not status:
        # Of one that was made in parts they are unknown.
        folder.study.set_user_attr(_SECONDS, time.monotonic() - begin)
    return status


def _finish(
    folder: SweepFolder, names: Sequence[str], stored: int, console: Console
) -> int:
    """Show and write what the runs came to; return 1 if one has failed."""
    rows = folder.rows()
    write_text(folder.path / REPORT, sweep_page(folder, rows))
    runs = [_finished(folder, row, stored) for row in rows if row.state == "complete"]
    runs.sort(key=lambda run: (_order(run.variant, names), run.seed))
    if runs:
        table = ComparisonTable(runs)
        # A log has no width of its own, and a spread that is cut off says nothing.
        wide = Console(width=_WIDTH, file=console.file)
        (console if console.is_terminal else wide).print(table.table())
        if warning := table.warning():
            print_lines(console, warning)
        numbers, curves = (
            folder.path / f"comparison.{kind}" for kind in ("csv", "png")
        )
        table.write_csv(numbers)
        table.plot().savefig(curves)
        print_lines(
            console,
            f"{numbers}: all numbers",
            f"{curves}: the errors over the batches",
            f"{folder.path / REPORT}: both, and what failed; for a browser",
        )
    failed = [row for row in rows if row.state == "failed"]
    for row in failed:
        log = folder.log(row.number)
        end = "\n".join(last_lines(log, _TAIL if row is failed[0] else 1))
        title = f"{row.point[CASE]}, seed {row.point[SEED]}"
        said = f"{title}: the run failed. {log} ends with:\n{end}"
        print(f"surrogate-flow: error: {said}", file=sys.stderr)
    return int(bool(failed))


def _order(variant: str, names: Sequence[str]) -> tuple[int, int]:
    name, size = parts_of(variant)
    return names.index(name), size


def _finished(folder: SweepFolder, row: TrialRow, stored: int) -> FinishedRun:
    summary, variant = folder.outcome(row.number), str(row.point[CASE])
    assert summary is not None, "of a complete trial"
    assert row.run is not None
    name, size = parts_of(variant)
    made: float | None = 0.0
    if name == OFFLINE:
        # That of the data set counts with each run, as each needs its part of it.
        made = folder.study.user_attrs.get(_SECONDS)
        made = None if made is None else made * (size or stored) / stored
    seed = int(row.point[SEED])
    return FinishedRun(variant, seed, summary, row.wall_seconds, made, row.run)
