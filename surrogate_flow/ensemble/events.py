"""What happens to the simulations of a study, and the table of attempts that failed."""

from __future__ import annotations

import contextlib
import csv
import datetime
import logging
import os
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from surrogate_flow.ensemble.placement import Place
from surrogate_flow.fields.errors import (
    UserError,
    in_a_line,
    kind_of,
    line_of,
    users_frames,
)
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.files import observing
from surrogate_flow.solvers.programs.process import ProcessError

__all__ = [
    "Event",
    "Exhausted",
    "Failed",
    "FailureLog",
    "Finished",
    "Listener",
    "Retried",
    "Submitted",
    "described",
]

logger = logging.getLogger(__name__)

_SHORT = 100  # characters of an error that was logged before
_KINDS = 100  # of failures that the log tells apart


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
    place: Place | None = None


@dataclass(frozen=True)
class Failed:
    """This attempt failed and was the last: the simulation has failed permanently."""

    simulation: Simulation
    attempt: int
    error: BaseException
    place: Place | None = None


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


def described(error: BaseException) -> tuple[str, str]:
    """Return an error in a line, and where in the user's code it was."""
    return in_a_line(f"{type(error).__name__}: {error}"), line_of(error)


def _traceback(error: BaseException) -> str:
    """Return the user's own lines on the way to an error, if any.

    Of what is a defect of this package, or of a library, the end is returned.
    """
    if frames := users_frames(traceback.extract_tb(error.__traceback__)):
        said = traceback.format_exception_only(error)
        return "".join(traceback.format_list(frames) + said).strip()
    if isinstance(error, UserError | ProcessError):
        return ""
    return "".join(traceback.format_exception(error)[-4:]).strip()


class FailureLog:
    """A listener that writes one row for each failed attempt; no file without any.

    The log has the first attempt of those that fail in one way at one line of the
    solver, and says of the others, at ten, a hundred and so on, how many they are.

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
        "worker",
        "host",
        "error",
        "message",
        "parameters",
        "traceback",
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self._late: list[tuple[object, ...]] = []
        self._alike: Counter[tuple[str, str]] = Counter()

    def __call__(self, event: Event) -> None:
        """Append a row for a failed attempt, flush it, and log it."""
        if isinstance(event, Exhausted):
            for (kind, _), count in self._alike.items():
                if count > 1:
                    logger.warning(
                        "%d attempts failed with %s in all [%s]", count, kind, self.path
                    )
        if not isinstance(event, Retried | Failed):
            return
        simulation, error, place = event.simulation, event.error, event.place
        outcome = "retried" if isinstance(event, Retried) else "failed permanently"
        self._log(event, outcome)
        self._late.append(
            (
                datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                simulation.number,
                simulation.part,
                event.attempt,
                outcome,
                place.worker if place else "",
                place.host if place else "",
                type(error).__name__,
                str(error),
                dict(simulation.parameters),
                _traceback(error),
            )
        )
        with observing(self.path):
            self._write()

    def _log(self, event: Retried | Failed, outcome: str) -> None:
        said, line = described(event.error)
        # Without a line, one kind of message is one defect, whatever numbers and paths.
        kind = type(event.error).__name__
        alike = kind, line or kind_of(str(event.error))
        if alike not in self._alike and len(self._alike) >= _KINDS:
            alike = kind, ""
        self._alike[alike] += 1
        count = self._alike[alike]
        if count == 1:
            logger.warning(
                "Simulation %d (%s), attempt %d, failed on worker %s: %s [%s; %s]%s",
                event.simulation.number,
                event.simulation.part,
                event.attempt,
                event.place or "unknown",
                said,
                outcome,
                self.path,
                line,
            )
        elif count == 10 ** (len(str(count)) - 1):
            short = in_a_line(f"{kind}: {event.error}", _SHORT)
            logger.warning("%d attempts have failed so: %s", count, short)

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
