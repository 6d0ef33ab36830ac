"""The command line."""

from __future__ import annotations

import locale
import os
import sys
from collections.abc import Sequence

from surrogate_flow.cli.signals import interrupted

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``surrogate-flow COMMAND ...``; Ctrl-C ends it in one line, imports too."""
    try:
        if arguments is None:
            _speak_utf8()
        from surrogate_flow.cli import app

        app.main(arguments)
    except KeyboardInterrupt as error:
        print("surrogate-flow: interrupted.", file=sys.stderr)
        sys.exit(interrupted(error))


def _speak_utf8() -> None:
    """Begin again with UTF-8, for files of all libraries, if the locale has another."""
    utf8 = locale.getencoding().lower().replace("-", "") == "utf8"
    if not utf8 and not sys.flags.utf8_mode and os.name == "posix":
        # Of this process's children, too.
        environment = {**os.environ, "PYTHONUTF8": "1"}
        words = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
        os.execve(sys.executable, words, environment)
