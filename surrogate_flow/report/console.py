"""The console that progress and logs share, so that neither breaks the other."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.text import Text

__all__ = ["LiveLine", "hush", "show_logs", "the_console"]


_PLAIN = "%(asctime)s %(levelname)-8s %(message)s"


@functools.cache
def the_console() -> Console:
    """Return the one of this process."""
    return Console()


def _handler() -> logging.Handler:
    console = the_console()
    if console.is_terminal:
        return RichHandler(
            console=console, show_path=False, markup=False, log_time_format="%X"
        )
    # Whoever searches a job's log wants a line to be a line.
    plain = logging.StreamHandler(sys.stdout)
    plain.setFormatter(logging.Formatter(_PLAIN, datefmt="%X"))
    return plain


def show_logs() -> None:
    """Show what the package logs, in the manner of the progress line."""
    handler = _handler()
    # Lightning advertises a product, and the devices that are not there.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: (
            not any(
                word in record.getMessage()
                for word in ("litlogger", "available: False", "TPU available")
            )
        )
    )
    for name in ("surrogate_flow", "pytorch_lightning", "lightning_fabric"):
        package = logging.getLogger(name)
        # The others would say the same again.
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        package.setLevel(logging.INFO if first else logging.WARNING)
        package.handlers[:] = [handler]


def hush() -> None:
    """Silence warnings of Lightning's that no user could mend."""
    others = [
        "`isinstance\\(treespec",
        "\\s*``instantiate_classes``",
        "Be aware that when using `ckpt_path`",
        "The dirpath has changed",
    ]
    if "SLURM_JOB_ID" not in os.environ:
        # On every login node.
        others.append("The `srun` command is available")
    for words in others:
        warnings.filterwarnings("ignore", words)


class LiveLine:
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
