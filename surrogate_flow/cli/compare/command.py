"""``surrogate-flow compare``: its options, and the files that it leaves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from rich.console import Console

from surrogate_flow.cli.compare.comparison import Comparison
from surrogate_flow.cli.compare.table import ComparisonTable
from surrogate_flow.cli.compare.variant import NAMES, Overrides, variants_of
from surrogate_flow.cli.signals import end_at_once, interrupted
from surrogate_flow.fields.names import RecipeError
from surrogate_flow.report.console import print_lines, the_console

__all__ = ["add_arguments", "compare", "run"]

_WIDTH = 130  # characters of the table where there is no terminal


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command; ``compare --help`` describes them."""
    add = parser.add_argument
    add("--data", required=True, type=str)
    add("--model", required=True, type=str)
    add("--batches", type=PositiveInt, default=3000)
    add("--offline", type=PositiveInt, default=50)
    add("--seeds", type=PositiveInt, default=3)
    add("--variants", "--arms", nargs="+", type=str, default=list(NAMES))
    add("--output", type=Path | None)
    # Options for the runs: --data.X, --model.X and --trainer.X.
    add("--overrides", type=list[str], default=[])


def run(options: Any) -> None:
    """Run a comparison; Ctrl-C and SIGTERM end it, and the same command resumes it."""
    end_at_once()
    try:
        compare(options, the_console())
    except KeyboardInterrupt as error:
        print("Type the same command again to go on.", file=sys.stderr)
        sys.exit(interrupted(error))


def compare(options: Any, console: Console) -> None:
    """Train from a data set and from several reservoirs, and put the errors together.

    Raises
    ------
    RecipeError
        If an option is wrong.
    ComparisonError, RunError
        If a run fails, or the folder holds runs of another comparison.
    """
    overrides = Overrides.read(options.overrides)
    workflow, model = Path(options.data), Path(options.model)
    for option, path in (("--data", workflow), ("--model", model)):
        if not path.is_file():
            raise RecipeError(f"compare {option}", "a recipe", path)
    recipe = yaml.safe_load(workflow.read_text("utf-8")) or {}
    overrides.add_batch_size(recipe)
    folder = options.output or Path("runs/compare") / f"{workflow.stem}-{model.stem}"
    comparison = Comparison(
        folder=folder,
        variants=variants_of(recipe, options.variants, overrides.reservoir),
        seeds=options.seeds,
        workflow=workflow,
        model=str(model),
        batches=options.batches,
        offline=options.offline,
        overrides=overrides,
    )
    comparison.run(console)
    table = ComparisonTable.of(comparison)
    # A log has no width of its own, and a spread that is cut off says nothing.
    wide = Console(width=_WIDTH, file=console.file)
    (console if console.is_terminal else wide).print(table.table())
    if warning := table.warning():
        print_lines(console, warning)
    numbers, curves = folder / "comparison.csv", folder / "comparison.png"
    table.write_csv(numbers)
    table.plot().savefig(curves)
    print_lines(
        console, f"{numbers}: all numbers", f"{curves}: the errors over the batches"
    )
