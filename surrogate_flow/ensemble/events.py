"""What happens to the simulations of a study, and the table of attempts that failed."""

from __future__ import annotations

import contextlib
import csv
import datetime
import logging
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.files import tolerate_full_disk

__all__ = [
    "Event",
    "Exhausted",
    "Failed",
    "FailureLog",
    "Finished",
    "Listener",
    "Retried",
    "Submitted",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submitted:
    """A worker will make this attempt; the first one has number 0."""

    simulation: Simulation
    attempt: int


@dataclass(frozen=True)
class Finished:
    """Every step of a simulation has arrived, and the attempt's task has ended."""

    simulation: Simulation
    attempt: int


@dataclass(frozen=True)
class Retried:
    """This attempt failed; another one follows."""

    simulation: Simulation
    attempt: int
    error: BaseException


@dataclass(frozen=True)
class Failed:
    """This attempt failed and was the last: the simulation has failed permanently."""

    simulation: Simulation
    attempt: int
    error: BaseException


@dataclass(frozen=True)
class Exhausted:
    """Every simulation of the design is complete or has failed permanently."""


Event = Submitted | Finished | Retried | Failed | Exhausted


class Listener(Protocol):
    """What is called with every event of a study."""

    def __call__(self, event: Event) -> None:
        """Handle an event, without blocking; called by the ensemble's thread.

        What it raises ends the study.
        """
        ...


class FailureLog:
    """A listener that writes one row for each failed attempt; no file without any.

    Rows for which the disk has no room wait for the next failure.

    Parameters
    ----------
    path : Path
        Of the CSV file, to which rows are appended.
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
        with tolerate_full_disk(self.path):
            self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
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
