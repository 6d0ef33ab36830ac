"""The command line: answers what needs no torch, and hands the rest to the parser.

Dask starts its workers by importing the main script again; so nothing here imports
torch before `main` runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from surrogate_flow.cli import help as help_
from surrogate_flow.cli.recipes import CommandLine
from surrogate_flow.fields.errors import user_error

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``surrogate-flow COMMAND ...``; `help` has the commands.

    A `UserError` is shown in one line, every other exception with its traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Torch's threads would spin while they wait, on cores that simulations need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if help_.show(words):
            sys.exit(0)
        if words[:1] == ["check"]:
            from surrogate_flow.cli import check

            check.run(words[1:])
            return
        line = CommandLine.of(words)
        # Seconds of imports, for a command line that makes sense so far.
        from surrogate_flow.cli import commands
        from surrogate_flow.report.console import show_logs

        show_logs()
        commands.run(line)
    except Exception as error:
        # jsonargparse wraps what a constructor raises.
        advice = user_error(error)
        if advice is None:
            raise
        print(f"surrogate-flow: error: {advice}", file=sys.stderr)
        sys.exit(2)
