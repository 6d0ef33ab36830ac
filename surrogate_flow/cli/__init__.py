"""The command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from surrogate_flow.cli.signals import interrupted

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``surrogate-flow COMMAND ...``; Ctrl-C ends it in one line, imports too."""
    try:
        from surrogate_flow.cli import app

        app.main(arguments)
    except KeyboardInterrupt as error:
        print("surrogate-flow: interrupted.", file=sys.stderr)
        sys.exit(interrupted(error))
