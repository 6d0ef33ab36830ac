"""``surrogate-flow compare``: its words, and what it leaves."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from surrogate_flow.cli.compare.arm import NAMES, arms_of
from surrogate_flow.cli.compare.contest import Contest
from surrogate_flow.cli.compare.verdict import Verdict
from surrogate_flow.fields.names import RecipeError, nearest

__all__ = ["compare"]

_OURS = ("--arms", "--batches", "--data", "--model", "--offline", "--output", "--seeds")
_RESERVOIR = "--data.reservoir"
_BATCH = "batch_size"  # which a data set takes, too
_WIDTH = 130  # letters of the table where there is no terminal


def compare(words: Sequence[str], console: Console) -> None:
    """Train from a data set and from several reservoirs, and put the errors together.

    Raises
    ------
    RecipeError
        If a word makes no sense.
    ContestError
        If a run fails, or the folder holds runs of another comparison.
    """
    options, passed = _parser().parse_known_args(list(words))
    given = _Given.read(passed)
    workflow, model = Path(options.data), Path(options.model)
    for option, path in (("--data", workflow), ("--model", model)):
        if not path.is_file():
            raise RecipeError(f"compare: expected a recipe as {option}, got {path}.")
    recipe = yaml.safe_load(workflow.read_text()) or {}
    folder = options.output or Path("runs/compare") / f"{workflow.stem}-{model.stem}"
    contest = Contest(
        folder=folder,
        arms=arms_of(recipe, options.arms, given.reservoir),
        seeds=options.seeds,
        model=str(model),
        batches=options.batches,
        offline=options.offline,
        workflow=workflow,
        words=given.others,
        of_study=given.of_study,
        of_data=given.of_data or _batch_size(recipe),
        reservoir=given.reservoir,
    )
    contest.run(console)
    verdict = Verdict.of(contest)
    # A log has no width of its own, and a spread that is cut off says nothing.
    wide = Console(width=_WIDTH, file=console.file)
    (console if console.is_terminal else wide).print(verdict.table())
    if warning := verdict.warning():
        console.print(warning, soft_wrap=True, highlight=False)
    verdict.write_csv(folder / "comparison.csv")
    verdict.picture().savefig(folder / "comparison.png")
    for name, what in (("csv", "all numbers"), ("png", "the errors over the batches")):
        console.print(f"{folder / f'comparison.{name}'}: {what}", soft_wrap=True)


def _batch_size(recipe: Mapping[str, Any]) -> list[str]:
    arguments = recipe.get("init_args", recipe)
    return [f"--data.{_BATCH}={arguments[_BATCH]}"] if _BATCH in arguments else []


@dataclass
class _Given:
    """Arguments for the runs, by who takes them."""

    reservoir: dict[str, Any] = field(default_factory=dict)
    of_study: list[str] = field(default_factory=list)
    of_data: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, words: Sequence[str]) -> _Given:
        given, rest = cls(), list(words)
        while rest:
            option, equals, value = rest.pop(0).partition("=")
            head = option.partition(".")[0]
            if head not in ("--data", "--model", "--trainer") or option == head:
                raise RecipeError(
                    f"compare takes no {option!r}. {nearest(option, _OURS)}"
                )
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise RecipeError(f"compare: expected a value after {option}.")
                value = rest.pop(0)
            given._add(option.replace("--data.init_args.", "--data.", 1), value)
        return given

    def _add(self, option: str, value: str) -> None:
        if option == _RESERVOIR or option == f"{_RESERVOIR}.class_path":
            raise RecipeError(
                f"{option}: compare gives each arm a policy of its own. Name the arms "
                "instead, such as --arms offline reservoir; capacity and threshold "
                f"may be given, as {_RESERVOIR}.capacity."
            )
        word = f"{option}={value}"
        if option.startswith(f"{_RESERVOIR}."):
            name = option[len(_RESERVOIR) + 1 :].removeprefix("init_args.")
            self.reservoir[name] = yaml.safe_load(value)
        elif option.startswith("--data."):
            self.of_study.append(word)
            if option == f"--data.{_BATCH}":
                self.of_data.append(word)
        else:
            self.others.append(word)


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
    add("--seeds", type=_count, default=3, help="Runs of each arm (default: 3).")
    add(
        "--arms",
        nargs="+",
        default=list(NAMES),
        help=f"Of {', '.join(NAMES)} (default: all).",
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
