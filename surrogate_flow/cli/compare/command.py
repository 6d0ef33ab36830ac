"""``surrogate-flow compare``: its options, and the files that it leaves."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console

from surrogate_flow.cli.compare.comparison import Comparison
from surrogate_flow.cli.compare.table import ComparisonTable
from surrogate_flow.cli.compare.variant import NAMES, Overrides, variants_of
from surrogate_flow.fields.names import RecipeError

__all__ = ["compare"]

_OPTIONS = (
    *("--batches", "--data", "--model", "--offline"),
    *("--output", "--seeds", "--variants"),
)
_WIDTH = 130  # characters of the table where there is no terminal


def compare(words: Sequence[str], console: Console) -> None:
    """Train from a data set and from several reservoirs, and put the errors together.

    Raises
    ------
    RecipeError
        If an option is wrong.
    ComparisonError, RunError
        If a run fails, or the folder holds runs of another comparison.
    """
    options, passed = _parser().parse_known_args(list(words))
    overrides = Overrides.read(passed, _OPTIONS)
    workflow, model = Path(options.data), Path(options.model)
    for option, path in (("--data", workflow), ("--model", model)):
        if not path.is_file():
            raise RecipeError(f"compare: expected a recipe as {option}, got {path}.")
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
        console.print(warning, soft_wrap=True, highlight=False)
    table.write_csv(folder / "comparison.csv")
    table.plot().savefig(folder / "comparison.png")
    for name, what in (("csv", "all numbers"), ("png", "the errors over the batches")):
        console.print(f"{folder / f'comparison.{name}'}: {what}", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="surrogate-flow compare",
        description=(
            "Train the same surrogate offline, from a data set of few simulations read "
            "in many epochs, and online, from simulations as they run, with several "
            "policies of the reservoir: the same number of batches, the same "
            "validation set. Typed again, the command goes on where it was."
        ),
        epilog=(
            "Arguments of 'fit' under --data., --model. and --trainer. go to every run,"
            " those under --data. only where something is simulated."
        ),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data", required=True, help="A workflow, such as heat2d.")
    add("--model", required=True, help="A model, such as fully_connected.")
    add("--batches", type=_count, default=3000, help="Of each run (default: 3000).")
    add(
        "--offline",
        type=_count,
        default=50,
        help="Simulations of the data set (default: 50). Online ones go on as long as "
        "they are trained on, unless --data.simulations says how many.",
    )
    add("--seeds", type=_count, default=3, help="Runs of each variant (default: 3).")
    add(
        *("--variants", "--arms"),
        nargs="+",
        default=list(NAMES),
        help=f"Any of {', '.join(NAMES)} (default: all).",
    )
    add(
        "--output",
        type=Path,
        help="Folder of the comparison (default: runs/compare/<workflow>-<model>).",
    )
    return parser


def _count(word: str) -> int:
    count = int(word)
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {count}")
    return count
