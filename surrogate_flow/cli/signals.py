"""Ctrl-C and what else ends a command in order; the next Ctrl-C ends it at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Request", "end_at_once", "interrupted", "stop_requested"]

logger = logging.getLogger(__name__)

# A terminal's, and what batch systems send before they kill.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
_SIGNALS = [signal.Signals[name] for name in _NAMES]


class Request(threading.Event):
    """Set when a command is to end; `number` is that of the first signal, or 0."""

    number = 0

    @property
    def status(self) -> int:
        """What the command exits with: 128 and the signal's number, or 0."""
        return 128 + self.number if self.number else 0


def interrupted(error: KeyboardInterrupt) -> int:
    """Return the exit status of a command that leaves with it."""
    return 128 + int(error.args[0] if error.args else signal.SIGINT)


@contextmanager
def stop_requested(stop: Callable[[], object] = bool) -> Iterator[Request]:
    """Yield an event that the first Ctrl-C sets, or any other signal to end.

    A second Ctrl-C raises KeyboardInterrupt, and so does what leaves because of the
    first. A batch system sends SIGTERM before it kills, and often more than once. A
    command that ignores SIGHUP, as under ``nohup``, goes on.

    Parameters
    ----------
    stop : callable
        Called in the handler of the signal, after the event was set; by default it
        does nothing. It must take no lock: the interrupted code may hold it.
    """
    requested = Request()

    def handle(number: int, frame: FrameType | None) -> None:
        first, requested.number = not requested.number, requested.number or number
        requested.set()
        if number == signal.SIGHUP:
            _leave_terminal()
        if number == signal.SIGINT:
            logger.warning("Ctrl-C: ending in order. Once more to leave at once.")
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        elif first:
            logger.warning("%s: ending in order.", signal.Signals(number).name)
        stop()

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, handle)
    try:
        yield requested
    except SystemExit as error:
        # Lightning's, with 1 in the place of KeyboardInterrupt.
        if not (requested.is_set() and error.code):
            raise
        raise KeyboardInterrupt(requested.number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_at_once() -> None:
    """Raise KeyboardInterrupt at each signal to end from now on."""

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        raise KeyboardInterrupt(number)

    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


def _leave_terminal() -> None:
    """Send to nowhere what is printed to a terminal, which is gone: it would fail."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            file = stream.fileno()
            if stat.S_ISCHR(os.fstat(file).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, file)
                os.close(nowhere)
