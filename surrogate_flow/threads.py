"""Threads that end a run with what they raise."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["LoudThread"]


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
