"""A line of progress, rewritten on a terminal, and printed now and then elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

__all__ = ["Ticker"]


class Ticker:
    """Shows what `line` returns, from `start` to `stop`.

    On a terminal it is rewritten four times a second; elsewhere (a batch job's log) it
    is printed every `every` seconds, and once more at the end if it has changed.

    Parameters
    ----------
    line : callable
        Called in a thread of its own.
    console : rich.console.Console
    every : float
        Seconds between two lines where there is no terminal.
    """

    def __init__(
        self, line: Callable[[], Text], console: Console, *, every: float
    ) -> None:
        self._line = line
        self._console = console
        self._every = every
        self._live: Live | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to show the line; may be called again."""
        if self._live or self._thread:
            return
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._line, console=self._console, refresh_per_second=4
            )
            self._live.start()
        else:
            self._over.clear()
            self._thread = threading.Thread(
                target=self._print_lines, name="progress", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Leave its last state standing; may be called again."""
        if self._live:
            self._live.stop()
            self._live = None
        if self._thread:
            self._over.set()
            self._thread.join()
            self._thread = None

    def _print_lines(self) -> None:
        line = None
        while not self._over.wait(self._every):
            line = self._line()
            self._console.print(line, soft_wrap=True)
        if (last := self._line()) != line:
            self._console.print(last, soft_wrap=True)
