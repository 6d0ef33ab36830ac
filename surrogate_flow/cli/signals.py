"""Ctrl-C and SIGTERM: the first ends a command in order, the next Ctrl-C at once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["stop_requested"]

logger = logging.getLogger(__name__)


@contextmanager
def stop_requested(stop: Callable[[], object] = bool) -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C, or any SIGTERM, sets.

    A second Ctrl-C raises KeyboardInterrupt, and so does what leaves because of the
    first. A batch system sends SIGTERM before it kills, and often more than once.

    Parameters
    ----------
    stop : callable
        Called in the handler of the signal, after the event was set; by default it
        does nothing. It must take no lock: the interrupted code may hold it.
    """
    requested = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        requested.set()
        if number == signal.SIGINT:
            logger.warning("Ctrl-C: ending in order. Once more to leave at once.")
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        stop()

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield requested
    except SystemExit as error:
        # Lightning's, with 1 in the place of KeyboardInterrupt; with 0 after SIGTERM.
        if not (requested.is_set() and error.code):
            raise
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
