"""The thread of a process that sends what has waited long enough."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Flusher"]

GRAIN = 0.005


class Flusher:
    """Calls each of its visitors every so many seconds, from one thread.

    A thread for each outlet would do the same, but hundreds of them in one process wake
    each other, and take more time for that than for what they send.

    Notes
    -----
    The thread lives while there is somebody to visit. A visit must not wait, and not
    raise: it would hold up the others.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[Callable[[], None], tuple[float, float]] = {}
        self._thread: threading.Thread | None = None

    def add(self, visit: Callable[[], None], seconds: float) -> None:
        """Call `visit` every so many `seconds` from now on."""
        with self._changed:
            self._due[visit] = (time.monotonic() + seconds, seconds)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="flusher", daemon=True
                )
                self._thread.start()
            else:
                self._changed.notify()

    def remove(self, visit: Callable[[], None]) -> None:
        """Call it no more; one last call may be under way."""
        with self._changed:
            if self._due.pop(visit, None) is None or self._due:
                return
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while visits := self._await_visits():
            for visit in visits:
                visit()

    def _await_visits(self) -> list[Callable[[], None]]:
        """Wait until visits are due and return them, or [] when there is nobody."""
        with self._changed:
            while self._thread is threading.current_thread():
                now = time.monotonic()
                visits = [visit for visit, (due, _) in self._due.items() if due <= now]
                if visits:
                    for visit in visits:
                        seconds = self._due[visit][1]
                        self._due[visit] = (now + seconds, seconds)
                    return visits
                first = min(due for due, _ in self._due.values())
                # Visits that are nearly due at once are made at once.
                self._changed.wait(max(GRAIN, first - now))
        return []
