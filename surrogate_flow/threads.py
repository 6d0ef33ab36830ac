"""Threads that end a run with what they raise, and what wakes them."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress

__all__ = ["LoudThread", "Waker", "repeat"]

logger = logging.getLogger(__name__)

_LASTING = 3  # failures in a row until they are said


class LoudThread(threading.Thread):
    """A daemon thread; what it raises is raised again by `check`, where the run is.

    Parameters
    ----------
    target : callable
    name : str

    Attributes
    ----------
    error : BaseException or None
        What ended it.

    Examples
    --------
    >>> thread = LoudThread(lambda: 1 / 0, "division")
    >>> thread.start(), thread.join()
    (None, None)
    >>> thread.check()
    Traceback (most recent call last):
    ZeroDivisionError: division by zero
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self.error: BaseException | None = None

    def run(self) -> None:
        """Call the target."""
        try:
            super().run()
        except BaseException as error:
            self.error = error

    def check(self) -> None:
        """Raise what ended it, if anything did."""
        if self.error is not None:
            raise self.error


class Waker:
    """A self-pipe that wakes a thread blocked in `poll`; `resources` close it."""

    def __init__(self, resources: ExitStack) -> None:
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
            resources.callback(end.close)

    def fileno(self) -> int:
        """Return what can be polled: readable after `wake`."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Make the pipe readable; from any thread, never blocks."""
        # A full pipe is readable already; after closing nobody polls.
        with suppress(OSError):
            self._writer.send(b"!")

    def clear(self) -> None:
        """Make the pipe unreadable until the next `wake`."""
        self._reader.recv(4096)


def repeat(
    act: Callable[[], object], closing: threading.Event, seconds: float, failing: str
) -> None:
    """Act every so many seconds until an event is set, whoever does not answer.

    Who is too busy is asked again; where that lasts, one warning says so.

    Parameters
    ----------
    act : callable
    closing : threading.Event
    seconds : float
    failing : str
        What an OSError of `act`, such as a TimeoutError, means, in words.
    """
    failures = 0
    while not closing.wait(seconds):
        try:
            act()
            failures = 0
        except OSError as error:
            failures += 1
            level = logging.WARNING if failures == _LASTING else logging.DEBUG
            logger.log(level, "%s, %d times in a row: %r", failing, failures, error)
