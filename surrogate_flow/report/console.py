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

from surrogate_flow.files import observing
from surrogate_flow.threads import LoudThread

__all__ = ["LiveLine", "print_lines", "show_logs", "the_console"]

# Of Lightning, about a product, devices that are absent, and what no user can mend.
_UNWANTED_LOGS = (
    *("litlogger", "available: False", "TPU available", "Detected KeyboardInterrupt"),
)
_UNWANTED_WARNINGS = (
    "`isinstance\\(treespec",
    "\\s*``instantiate_classes``",
    "Be aware that when using `ckpt_path`",
    "The dirpath has changed",
)


@functools.cache
def the_console() -> Console:
    """Return the console of this process."""
    return Console()


def print_lines(console: Console, *lines: str) -> None:
    """Print lines as they are: not wrapped, without markup or colours."""
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def show_logs() -> None:
    """Show the logs of this package and of Lightning, without what no user can mend."""
    console = the_console()
    handler: logging.Handler = RichHandler(
        console=console, show_path=False, markup=False, log_time_format="%X"
    )
    if not console.is_terminal:
        # One line for each record, which can be searched in the log of a job.
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-8s %(message)s", "%X")
        )
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: not any(word in record.getMessage() for word in _UNWANTED_LOGS)
    )
    for name in ("surrogate_flow", "pytorch_lightning", "lightning_fabric"):
        package = logging.getLogger(name)
        # The other ranks would repeat the first.
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        package.setLevel(logging.INFO if first else logging.WARNING)
        package.handlers[:] = [handler]
    # Else Bokeh, which logs by it, gives it one that shows each line a second time.
    logging.getLogger().addHandler(logging.NullHandler())
    # The seed is in config.yaml, and a command line may yet be refused.
    logging.getLogger("lightning_fabric.utilities.seed").setLevel(logging.WARNING)
    # One line each, without a line of this package's source.
    warnings.formatwarning = lambda message, *_: (
        f"surrogate-flow: warning: {' '.join(str(message).split())}\n"
    )
    for text in _UNWANTED_WARNINGS:
        warnings.filterwarnings("ignore", text)
    if "SLURM_JOB_ID" not in os.environ:
        # Lightning's, on each login node of a cluster.
        warnings.filterwarnings("ignore", "The `srun` command is available")


class LiveLine:
    """Shows what `line` returns, from `start` to `stop`.

    On a terminal it is rewritten four times a second; elsewhere (a batch job's log) it
    is printed every `every` seconds and at the end, if it has changed.

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
        self._thread: LoudThread | None = None
        self._defect: BaseException | None = None

    def start(self) -> None:
        """Begin to show the line; may be called again."""
        if self._live or self._thread:
            return
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._text, console=self._console, refresh_per_second=4
            )
            self._live.start()
        else:
            self._over.clear()
            self._thread = LoudThread(self._print_lines, "progress")
            self._thread.start()

    def stop(self) -> None:
        """Leave its last state on the console; may be called again."""
        if self._live:
            self._live.stop()
        if self._thread:
            self._over.set()
            self._thread.join()
            self._defect = self._defect or self._thread.error
        self._live = self._thread = None

    def check(self) -> None:
        """Raise what ended the line, if anything did."""
        if self._defect is not None:
            raise self._defect
        if self._thread is not None:
            self._thread.check()

    def _text(self) -> Text:
        if self._defect is None:
            try:
                return self._line()
            except Exception as error:
                # Raised by check() in the caller's thread.
                self._defect = error
        return Text("")

    def _print_lines(self) -> None:
        line, over = None, False
        while not over:
            over = self._over.wait(self._every)
            if (now := self._text()) != line:
                line = now
                # A log on a full disk, or a pipe that nobody reads, ends no run.
                with observing("The progress"):
                    self._console.print(line, soft_wrap=True)
