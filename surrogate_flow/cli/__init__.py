"""The command line."""

from __future__ import annotations

import locale
import os
import signal
import sys
from collections.abc import Sequence

from surrogate_flow.cli.signals import end_at_once, interrupted

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``surrogate-flow COMMAND ...``; a signal ends it in one line, imports too."""
    try:
        if arguments is None:
            end_at_once()
            _speak_utf8()
        from surrogate_flow.cli import app

        app.main(arguments)
    except KeyboardInterrupt as error:
        status = interrupted(error)
        name = signal.Signals(status - 128).name
        by = "" if name == "SIGINT" else f" by {name}"
        print(f"surrogate-flow: interrupted{by}.", file=sys.stderr)
        sys.exit(status)


def _speak_utf8() -> None:
    """Begin again with UTF-8, for files of all libraries, if the locale has another."""
    utf8 = locale.getencoding().lower().replace("-", "") == "utf8"
    if not utf8 and not sys.flags.utf8_mode and os.name == "posix":
        # Of this process's children, too.
        environment = {**os.environ, "PYTHONUTF8": "1"}
        words = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
        os.execve(sys.executable, words, environment)
