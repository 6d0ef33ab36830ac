"""``surrogate-flow sweep``: many models on one ensemble."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from surrogate_flow.cli.parser import Parser, parse
from surrogate_flow.cli.recipes import (
    SECTIONS,
    CommandLine,
    find_recipe,
    pairs,
)
from surrogate_flow.cli.signals import Request, stop_requested
from surrogate_flow.cli.sweep import detached, table
from surrogate_flow.cli.sweep.folder import SweepError, SweepFolder, TrialRow
from surrogate_flow.cli.sweep.page import sweep_page
from surrogate_flow.cli.sweep.places import Place, place_of
from surrogate_flow.cli.sweep.recipe import SweepRecipe
from surrogate_flow.fields.names import RecipeError, closest, nearest
from surrogate_flow.fields.quantities import counted
from surrogate_flow.files import leave, write_text
from surrogate_flow.report.console import print_lines, show_logs, the_console
from surrogate_flow.report.folder.run_folder import REPORT, RunFolder
from surrogate_flow.report.folder.words import percent, python_path

__all__ = ["run"]

logger = logging.getLogger(__name__)

_WIDTH = 120  # characters of the table where there is no terminal
_OWN = ("folder", "detach", "help")
# Options of fit that a sweep takes for all trials.
_OF_FIT = re.compile(rf"seed_everything$|({'|'.join(SECTIONS)})\.")
_PATIENCE = 300.0  # seconds until a lock of a node that has failed is free
_ACTIONS = ("status", "resume", "stop")


def run(words: Sequence[str]) -> None:
    """Begin a sweep, or look at one, go on with it, or stop it.

    What trains is imported where it is needed: who looks does not wait for it.
    """
    if words and words[0] in _ACTIONS:
        _act(words[0], words[1:])
        return
    given = [word for word in words[:2] if not word.startswith("-")]
    if len(given) > 1 and not Path(words[0]).exists() and closest(words[0], _ACTIONS):
        raise RecipeError(
            f"sweep: unknown word {words[0]!r}. {nearest(words[0], _ACTIONS)}"
        )
    parser = Parser(prog="surrogate-flow sweep", allow_abbrev=False)
    parser.add_argument("recipe", nargs="?", type=str)
    parser.add_argument("--folder", type=Path | None)
    parser.add_argument("--detach", action="store_true")
    changed, others = _changed(words)
    options = _parsed(parser, others)
    if options.recipe is None:
        raise RecipeError(
            "sweep needs a recipe, got none. Type, for example, surrogate-flow sweep "
            "learning_rate; or sweep status FOLDER."
        )
    path = find_recipe("workflows/sweeps", options.recipe)
    recipe = SweepRecipe.read(path, changed)
    place = options.folder or Path("sweeps") / path.stem
    from surrogate_flow.cli.sweep import checks

    show_logs()  # after the import of Lightning, which adds a handler of its own
    checks.require_possible(SweepFolder(place, recipe))
    _run(SweepFolder.create(place, recipe), options.detach)


def _changed(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return what is given for keys of the recipe and options of fit, and the rest."""
    changed: dict[str, str] = {}
    others: list[str] = []
    known = {*SweepRecipe.__struct_fields__} - {"space", "cases", "options"}
    for option, value, joined in pairs(words):
        name = option.removeprefix("--")
        if not option.startswith("--") or name in _OWN:
            given = [] if value is None else [value]
            others += [f"{option}={value}"] if joined else [option, *given]
        elif name not in known and not _OF_FIT.match(name):
            near = nearest(option, [f"--{each}" for each in sorted({*_OWN, *known})])
            raise RecipeError(f"sweep: unknown option {option!r}. {near}")
        elif value is None:
            raise RecipeError(f"sweep: expected a value after {option}.")
        else:
            changed[name] = value
    return changed, others


def _act(action: str, words: Sequence[str]) -> None:
    parser = Parser(prog=f"surrogate-flow sweep {action}", allow_abbrev=False)
    parser.add_argument("folder", nargs="?", type=Path)
    if action == "resume":
        parser.add_argument("--detach", action="store_true")
        # Whether trials that have failed begin again.
        parser.add_argument("--failed", action="store_true")
        # Seconds that the job has in which this runs, 0 for no limit.
        parser.add_argument("--walltime", type=float | None)
    options = _parsed(parser, words)
    if options.folder is None:
        raise RecipeError(f"sweep {action} needs the folder of a sweep, got none.")
    folder = SweepFolder(options.folder)
    place = folder.working_folder
    # Not there, it has been moved: with the folder from which this is typed.
    if place.is_dir() and not place.samefile("."):
        folder.path = folder.path.absolute()
        os.chdir(place)
    if action == "status":
        page = sweep_page(folder, _show(folder))
        leave(folder.path / REPORT, lambda part: part.write_text(page, "utf-8"))
    elif action == "stop":
        detached.stop(folder)
    else:
        from surrogate_flow.cli.sweep import checks

        show_logs()
        checks.require_possible(folder)
        _run(folder, options.detach, options.walltime, failed=options.failed)


def _parsed(parser: ArgumentParser, words: Sequence[str]) -> Any:
    def act(words: list[str]) -> Namespace:
        return parser.parse_args(words[1:])

    return parse(CommandLine(["sweep", *words]), act)


def _run(
    folder: SweepFolder,
    detach: bool,
    walltime: float | None = None,
    *,
    failed: bool = False,
) -> None:
    # A job that goes on may find the lock of the one before, whose node has failed.
    by_job = walltime is not None
    if not by_job:
        detached.require_no_job(folder)
    place, runs = place_of(folder), False
    try:
        with folder.held(patience=_PATIENCE if by_job else 0.0, again=not by_job):
            if by_job and folder.stops:
                return
            if failed:
                folder.repeat_failed()
            if runs := not detach:
                ends = detached.ends_at(walltime or 0.0)
                stopped = _control(folder, place, ends)
    except Exception:
        if runs:
            with suppress(SweepError):  # what raises it is told of below
                _finish(folder)
        raise
    if detach:
        detached.detach(folder)
    else:
        # Nobody runs it any more, and so the table says.
        _end(folder, stopped, ends, by_job=bool(walltime))


def _control(folder: SweepFolder, place: Place, ends: float) -> Request:
    """Run the sweep until all trials have ended, or time is over, or it is stopped."""
    from surrogate_flow.cli.sweep.controller import Controller

    with stop_requested() as stopped:
        Controller(folder, place).run(stopped.is_set, ends)
    return stopped


def _end(folder: SweepFolder, stopped: Request, ends: float, *, by_job: bool) -> None:
    """Show what trials came to, and who goes on, or how."""
    _finish(folder)
    left = folder.left
    said = f"{counted(left, 'trial')} {'is' if left == 1 else 'are'} left"
    # What batch systems send before a walltime is over, where they are asked to.
    over = time.time() >= ends or stopped.number == signal.SIGUSR1
    if by_job and over and left and not folder.stops:
        job = detached.SweepJob(folder).submit()
        print_lines(the_console(), f"{said}: job {job} goes on.")
        return
    if left:
        print_lines(
            the_console(),
            f"{said}. To go on, type: surrogate-flow sweep resume "
            f"{shlex.quote(str(folder.path))}",
        )
    if stopped.is_set():
        sys.exit(stopped.status)


def _show(folder: SweepFolder) -> list[TrialRow]:
    rows, console = folder.rows(), the_console()
    count = folder.recipe.count
    who = detached.runner(folder)
    ended = f"{count - folder.left} of {count} trials have ended"
    print_lines(console, f"{folder.path}: {ended}; run by {who}")
    if said := table.cost(folder):
        print_lines(console, said)
    # A log has no width of its own.
    wide = Console(width=_WIDTH, file=console.file)
    (console if console.is_terminal else wide).print(table.shown(rows))
    print_lines(console, *(f"Warning: {note}" for note in table.unlike(folder, rows)))
    for row in rows:
        if row.why:
            print_lines(
                console, f"Trial {row.number} {row.lag or row.state}: {row.why}"
            )
    if any(row.state == "failed" for row in rows) and not folder.holder:
        again = f"surrogate-flow sweep resume {shlex.quote(str(folder.path))} --failed"
        print_lines(console, f"To begin what has failed again, type: {again}")
    return rows


def _finish(folder: SweepFolder) -> None:
    """Show and write what all trials came to."""
    rows, console = _show(folder), the_console()
    write_text(folder.path / "trials.csv", table.written(rows))
    write_text(folder.path / REPORT, sweep_page(folder, rows))
    best = table.leader(rows)
    if best is None:
        if rows and all(row.state == "failed" for row in rows):
            why = f"{rows[0].why.rstrip('.')}."
            raise SweepError(
                f"Every trial failed, the first with: {why} Its log is "
                f"{folder.log(rows[0].number)}."
            )
        return
    path = folder.keep_best(best)
    words = shlex.join(["surrogate-flow", "fit", *folder.recipe.words(best.point)])
    words = (python_path(RunFolder(best.run).settings) if best.run else "") + words
    print_lines(
        console,
        f"The best is trial {best.number}: {path or 'it has no checkpoint'}, with an "
        f"error of {percent(best.error)}",
        f"To train it again, in {folder.working_folder}: {words}",
        f"Open {folder.path / REPORT} in a browser.",
    )
