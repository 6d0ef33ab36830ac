"""The table of attempts that failed, as a CSV file that a study leaves behind."""

from __future__ import annotations

import contextlib
import csv
import datetime
import logging
import os
import traceback
from pathlib import Path

from surrogate_flow.ensemble.events import Event, Failed, Retried

__all__ = ["FailureLog"]

logger = logging.getLogger(__name__)


class FailureLog:
    """A listener that writes one row for each failed attempt; no file without any.

    Not thread-safe: the ensemble's own thread calls it.

    Parameters
    ----------
    path : Path
        Of the CSV file. Rows are appended to a file that exists; those for which the
        disk has no room are in the log, and wait for the next one.
    """

    columns = (
        "time",
        "simulation",
        "part",
        "attempt",
        "outcome",
        "error",
        "message",
        "parameters",
        "traceback",
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self._late: list[tuple[object, ...]] = []

    def __call__(self, event: Event) -> None:
        """Append a row for a failed attempt, flush it, and log it in one line."""
        if not isinstance(event, Retried | Failed):
            return
        simulation, error = event.simulation, event.error
        outcome = "retried" if isinstance(event, Retried) else "failed permanently"
        logger.warning(
            "Simulation %d (%s), attempt %d, failed: %s: %s [%s; %s]",
            simulation.number,
            simulation.part,
            event.attempt,
            type(error).__name__,
            str(error).partition("\n")[0],
            outcome,
            self.path,
        )
        self._late.append(
            (
                datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                simulation.number,
                simulation.part,
                event.attempt,
                outcome,
                type(error).__name__,
                str(error),
                dict(simulation.parameters),
                "".join(traceback.format_exception(error)[-4:]).strip(),
            )
        )
        try:
            self._write()
        except OSError as full:
            logger.error("%s was not written (%s). Make room there.", self.path, full)

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", newline="") as file:
                writer = csv.writer(file)
                if not size:
                    writer.writerow(self.columns)
                writer.writerows(self._late)
        except OSError:
            with contextlib.suppress(OSError):
                # Half a row would spoil the next one.
                os.truncate(self.path, size)
            raise
        self._late.clear()
