"""The command line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``surrogate-flow COMMAND ...``; Ctrl-C ends it in one line, imports too."""
    try:
        from surrogate_flow.cli import app

        app.main(arguments)
    except KeyboardInterrupt:
        print("surrogate-flow: interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
