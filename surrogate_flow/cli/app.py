"""The command line: answers what needs no torch, and hands the rest to the parser.

Dask starts its workers by importing the main script again; so nothing here imports
torch before `main` runs.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from surrogate_flow.cli import help as help_
from surrogate_flow.cli.recipes import CommandLine
from surrogate_flow.fields.errors import UserError

__all__ = ["main"]

# Raised by this package with a message that says what to do.
_FOR_USERS = (
    ValueError,
    RuntimeError,
    FileNotFoundError,
    ImportError,
    TimeoutError,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``surrogate-flow COMMAND ...``; `help` has the commands."""
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
        from surrogate_flow.cli import lightning
        from surrogate_flow.report.console import show_logs

        show_logs()
        lightning.run(line)
    except Exception as error:
        ours = _ours(error)
        if ours is None:
            raise
        print(f"surrogate-flow: error: {ours}", file=sys.stderr)
        sys.exit(2)


def _ours(error: BaseException | None) -> BaseException | None:
    """Return the cause whose message was written here, for users, if there is one.

    For all else, mistakes of ours among them, a traceback helps more.
    """
    package = str(Path(__file__).parents[1])
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        here = frames and frames[-1].filename.startswith(package)
        if isinstance(error, UserError) or (here and isinstance(error, _FOR_USERS)):
            return error
        error = error.__cause__
    return None
