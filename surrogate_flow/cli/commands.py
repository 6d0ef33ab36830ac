"""Who runs a command: Lightning, or a module with a parser of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from surrogate_flow.cli import generate, plan, predict
from surrogate_flow.cli.compare import command as compare
from surrogate_flow.cli.lightning import Parser, built, parse
from surrogate_flow.cli.recipes import CommandLine

__all__ = ["run"]

_OWN = {"plan": plan, "generate": generate, "compare": compare}


def run(line: CommandLine) -> None:
    """Parse a command line, and run its command.

    Raises
    ------
    UserError
        If something in it is wrong.
    """
    command: Any = _OWN.get(line.command)
    if line.command == "predict" and line.needs_no_workflow:
        command = predict
    parse(line, partial(_run_own, command) if command else built)


def _run_own(command: Any, words: Sequence[str]) -> None:
    parser = Parser(prog=f"surrogate-flow {words[0]}", allow_abbrev=False)
    command.add_arguments(parser)
    command.run(parser.instantiate(parser.parse_args(words[1:])))
