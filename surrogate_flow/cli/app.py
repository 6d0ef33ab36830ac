"""The command line: answers what needs no torch, and hands the rest to the parser.

Dask starts its workers by importing the main script again; so nothing here imports
torch before `main` runs.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from surrogate_flow.cli import help as help_
from surrogate_flow.cli.recipes import CommandLine
from surrogate_flow.cli.sweep import attempt
from surrogate_flow.fields.errors import raised_by_user, user_error
from surrogate_flow.fields.names import RecipeError

__all__ = ["main"]

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``surrogate-flow COMMAND ...``; `help` has the commands.

    A `UserError` is shown in one line, every other exception with its traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Torch's threads would spin while they wait, on cores that simulations need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not attempt.begin():
        print("Another process trains this trial: nothing is left to do.")
        return
    try:
        if help_.show(words):
            sys.exit(0)
        if words[:1] == ["check"]:
            from surrogate_flow.cli import check

            check.run(words[1:])
            return
        if words[:1] == ["new"]:
            from surrogate_flow.cli import new

            new.run(words[1:])
            return
        if words[:1] == ["import"]:
            from surrogate_flow.cli import campaign

            campaign.run(words[1:])
            return
        if words[:1] == ["inspect"]:
            from surrogate_flow.cli import inspect

            inspect.run(words[1:])
            return
        if words[:1] == ["include"]:
            from surrogate_flow.solvers.programs.channel import INCLUDE

            if words[1:]:
                raise RecipeError(f"include takes no options, got {words[1]!r}.")
            print(INCLUDE)
            return
        if words[:1] == ["report"]:
            from surrogate_flow.cli import reports

            reports.report(words[1:])
            return
        if words[:1] == ["watch"]:
            from surrogate_flow.cli import watch

            watch.run(words[1:])
            return
        if words[:1] == ["sweep"]:
            from surrogate_flow.cli.sweep import command

            command.run(words[1:])
            return
        # Seconds of imports, for a command line that makes sense so far.
        _run(CommandLine.of(words))
    except (Exception, SystemExit) as error:
        # jsonargparse wraps what a constructor raises.
        advice = user_error(error) or raised_by_user(error)
        if advice is None:
            raise
        print(f"surrogate-flow: error: {advice}", file=sys.stderr)
        sys.exit(advice.status)


def _run(line: CommandLine) -> None:
    """Parse and run a command: Lightning's, or a module's with a parser of its own."""
    from surrogate_flow.cli import generate, plan, predict
    from surrogate_flow.cli.compare import command as compare
    from surrogate_flow.cli.lightning import LightningParser, build, execute
    from surrogate_flow.cli.parser import parse
    from surrogate_flow.data.online import OnlineData
    from surrogate_flow.report.console import print_lines, show_logs, the_console

    show_logs()  # after the import of Lightning, which adds a handler of its own
    own = {"plan": plan, "generate": generate, "compare": compare}
    command: Any = own.get(line.command)
    if line.command == "predict" and line.needs_no_workflow:
        command = predict
    if line.command == "export":
        from surrogate_flow.cli import export as command

    def run_own(words: Sequence[str]) -> None:
        parser = LightningParser(prog=f"surrogate-flow {words[0]}", allow_abbrev=False)
        command.add_arguments(parser)
        command.run(parser.instantiate(parser.parse_args(words[1:])))

    simulated = line.without("--model")
    if command is generate and simulated != line:
        logger.warning("generate trains nothing: --model is ignored.")
        line = simulated
    if command is plan and simulated != line:
        data, surrogate = build(["fit", *line.words[1:]])
        plan.require_trained(surrogate)
        if isinstance(data, OnlineData):
            plan.require_reservoir(data, surrogate.window)
        print_lines(the_console(), plan.size(surrogate, data))
        line = simulated
    parse(line, run_own if command else execute)
