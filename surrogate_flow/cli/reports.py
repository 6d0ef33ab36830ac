"""``surrogate-flow report``: pages about runs, from their folders alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surrogate_flow.cli.parser import Parser, parse
from surrogate_flow.cli.recipes import CommandLine
from surrogate_flow.fields.errors import UserError
from surrogate_flow.files import observing, write_text
from surrogate_flow.report.console import print_lines, the_console
from surrogate_flow.report.folder.cost import RunCost
from surrogate_flow.report.folder.crate import CRATE, write_crate
from surrogate_flow.report.folder.run_folder import REPORT, RunFolder, newest_in
from surrogate_flow.report.html.comparison_page import comparison_page, runs_in
from surrogate_flow.report.html.run_page import run_page

__all__ = ["report"]


def report(words: Sequence[str]) -> None:
    """Write the page of a run, or of several side by side."""
    parser = Parser(prog="surrogate-flow report", allow_abbrev=False)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--output", type=Path | None)
    options: Any = parse(
        CommandLine(["report", *words]), lambda words: parser.parse_args(words[1:])
    )
    # A folder without any is refused as a run, which names the newest one.
    paths = options.runs or [newest_in(Path("runs"))]
    folders = [run for path in paths for run in runs_in(path) or [path]]
    runs = [RunFolder(path) for path in dict.fromkeys(folders)]
    alone = len(runs) == 1
    output = options.output or (
        runs[0].path / REPORT if alone else Path("comparison.html")
    )
    own = alone and not options.output
    replaced = not own and output.exists()
    named = {} if alone else _names(paths)
    page = run_page(runs[0]) if alone else comparison_page(runs, named)
    try:
        write_text(output, page)
    except OSError as error:
        raise UserError(
            f"--output {output}: cannot be written ({error}). Expected the name of a "
            "file in a folder where you may write; name another."
        ) from error
    if own:
        # The page is there, whatever becomes of the list of the files.
        with observing(runs[0].path / CRATE):
            write_crate(runs[0])
    what = "the report" if alone else f"{len(runs)} runs side by side"
    print_lines(
        the_console(),
        *[f"{output}: the file that was there is replaced."] * replaced,
        *([str(cost)] if alone and (cost := RunCost.of(runs[0])) else []),
        f"{output}: {what}; open it in a browser.",
    )


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the case and the seed of a comparison's trials, by their folders."""
    sweeps = [path for path in paths if (path / "sweep.yaml").is_file()]
    if not sweeps:
        return {}
    # A second, for what a page of other runs does not need.
    from surrogate_flow.cli.sweep.folder import SweepFolder
    from surrogate_flow.cli.sweep.recipe import CASE, SEED

    names = {}
    for folder in map(SweepFolder, sweeps):
        before = f"{folder.path.name}/" * (len(paths) > 1)
        for trial in folder.trials():
            if {*trial.params} == {CASE, SEED}:
                name = f"{trial.params[CASE]}/seed-{trial.params[SEED]}"
                names[folder.trial(trial.number)] = before + name
    return names
