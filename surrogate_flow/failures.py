"""The table of attempts that failed, as a CSV file that a study leaves behind."""

from __future__ import annotations

import csv
import datetime
import logging
import traceback
from pathlib import Path

from surrogate_flow.simulation import Simulation

__all__ = ["Failures"]

logger = logging.getLogger(__name__)


class Failures:
    """One row for each failed attempt; no file while nothing has failed.

    Not thread-safe: the ensemble's own thread writes it.

    Parameters
    ----------
    path : Path
        Of the CSV file. Rows are appended to a file that exists.
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

    def add(
        self,
        simulation: Simulation,
        attempt: int,
        outcome: str,
        error: BaseException,
    ) -> None:
        """Append a row, flush it, and log it in one line."""
        logger.warning(
            "Simulation %d (%s), attempt %d, failed: %s: %s [%s; %s]",
            simulation.number,
            simulation.part,
            attempt,
            type(error).__name__,
            str(error).partition("\n")[0],
            outcome,
            self.path,
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(self.columns)
            writer.writerow(
                (
                    datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                    simulation.number,
                    simulation.part,
                    attempt,
                    outcome,
                    type(error).__name__,
                    str(error),
                    dict(simulation.parameters),
                    "".join(traceback.format_exception(error)[-4:]).strip(),
                )
            )
