"""``surrogate-flow watch``: the live page of a run or a sweep, by its folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surrogate_flow.cli.parser import Parser, parse
from surrogate_flow.cli.recipes import CommandLine
from surrogate_flow.fields.names import RecipeError
from surrogate_flow.report.folder.run_folder import newest_in
from surrogate_flow.report.live.follow import Follower
from surrogate_flow.report.live.server import serve

__all__ = ["run"]


def run(words: Sequence[str]) -> None:
    """Serve the page until Ctrl-C."""
    parser = Parser(prog="surrogate-flow watch", allow_abbrev=False)
    parser.add_argument("run", nargs="*", type=Path)
    parser.add_argument("--port", type=int, default=5006)
    options: Any = parse(
        CommandLine(["watch", *words]), lambda words: parser.parse_args(words[1:])
    )
    if len(options.run) > 1:
        raise RecipeError(
            f"watch: expected one folder of a run or a sweep, got {len(options.run)}. "
            "surrogate-flow report puts several side by side."
        )
    if not 0 <= options.port < 2**16:
        raise RecipeError(f"--port: expected 0 to 65535, got {options.port}.")
    folder = (options.run or [Path("runs")])[0]
    if (folder / "sweep.yaml").is_file():
        # Optuna takes a second to import.
        from surrogate_flow.cli.sweep.follow import SweepFollower

        serve(SweepFollower(folder), folder, options.port)
        return
    folder = newest_in(folder)
    serve(Follower(folder), folder, options.port)
