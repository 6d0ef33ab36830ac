"""The ensemble: keeps simulations submitted to Dask, retries failures, ends cleanly."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from operator import itemgetter

from surrogate_flow.dataset import ArchiveError
from surrogate_flow.ensemble.events import (
    Event,
    Exhausted,
    Failed,
    Finished,
    Listener,
    Retried,
    Submitted,
    described,
)
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.ledger import Ledger, SimulationState
from surrogate_flow.ensemble.placement import Place
from surrogate_flow.ensemble.tasks import Outcome, Tasks
from surrogate_flow.ensemble.workers import EnsembleError, Workers
from surrogate_flow.fields.errors import MissingFileError
from surrogate_flow.fields.quantities import Simulation, counted
from surrogate_flow.sampling import Design
from surrogate_flow.stream import SpecMismatch
from surrogate_flow.threads import LoudThread

__all__ = ["Ensemble", "EnsembleError", "EnsembleStats", "Tasks"]

logger = logging.getLogger(__name__)

_POLL = 1.0  # seconds between two checks of the size of the cluster
_CLOSE = 10.0  # seconds for a check that is under way, when the study ends
_PAUSE, _LONGEST = 0.25, 60.0  # seconds before a retry; four times as long each time


@dataclass(frozen=True)
class EnsembleStats:
    """Number of simulations by state, and of threads of workers, at one moment."""

    done: int
    running: int
    failed: int
    retried: int
    workers: int
    #: Workers and hosts that were set aside, in words.
    set_aside: tuple[str, ...] = ()
    #: Simulations of the whole study, the held-out ones included; None if endless.
    planned: int | None = None
    #: Jobs that there should be, and those of them that have workers; None where no
    #: jobs are submitted by this process.
    jobs_wanted: int | None = None
    jobs_at_work: int | None = None
    #: How many of those done have ended before their last step, by reason.
    early: Mapping[str, int] = field(default_factory=dict)


class Ensemble:
    """Keep `ahead` x worker threads simulations submitted; submit the next at an end.

    Just one a thread while held-out simulations are unfinished: these come first, and a
    retry of theirs must never wait behind training simulations that wait for the
    trainer. The design is asked only when there is room, so that memory does not grow
    with the number of simulations.

    A failed attempt ends in `_settle`, which submits it again or emits `events.Failed`:
    then `events.FailureLog` has its row, and the inlet closes the simulation in the
    sink, which `ledger.RecordingSink` records as failed.

    One thread of its own calls the listeners, in their order; `close` may be called
    from any thread, more than once.
    """

    def __init__(
        self,
        tasks: Tasks,
        workers: Workers,
        design: Design,
        ledger: Ledger,
        *,
        faults: Faults,
        listeners: Sequence[Listener] = (),
        ahead: int = 2,
    ) -> None:
        self._tasks, self._workers = tasks, workers
        self._design, self._exhausted = design, False
        self._ledger, self._listeners = ledger, listeners
        self._faults, self._ahead = faults, ahead
        # When, which attempt, and where those before have failed.
        self._again: list[tuple[float, Simulation, int]] = []
        self._tried: dict[int, list[Place | None]] = {}
        self._failed = self._retried = self._held_out = 0
        self._bounds: dict[str, tuple[float, float]] = {}  # of those that failed
        self._closing = threading.Event()
        self._thread = LoudThread(self._run, "ensemble")

    def start(self) -> None:
        """Begin to submit."""
        self._thread.start()

    def wait(self, timeout: float) -> bool:
        """Block until nothing is in flight and nothing will be; return whether so."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raise what stopped the ensemble, if anything did."""
        self._thread.check()
        self._workers.check()

    @property
    def remaining(self) -> int | None:
        """Number of simulations that could run at once, once all have begun."""
        return len(self._tasks) + len(self._again) if self._exhausted else None

    def stats(self) -> EnsembleStats:
        """Count simulations by state, those of earlier processes too."""
        counts, threads = self._ledger.counts(), self._workers.own_threads
        jobs = self._workers.jobs
        return EnsembleStats(
            done=counts.complete,
            running=min(len(self._tasks), threads),
            failed=counts.failed,
            retried=self._retried,
            workers=threads,
            set_aside=self._tasks.placement.set_aside,
            planned=self._design.planned,
            jobs_wanted=None if jobs is None else jobs.wanted,
            jobs_at_work=None if jobs is None else jobs.at_work,
            early=self._ledger.counts_early(),
        )

    def waiting(self) -> str:
        """Return which workers begin no simulation for want of memory, or ""."""
        return self._workers.describe() if self._tasks else ""

    def halt(self) -> None:
        """Submit nothing more; what ends from now on has not failed."""
        self._closing.set()
        self._tasks.wake()

    def close(self) -> None:
        """Submit nothing more, and cancel what does not end within some seconds.

        Have the inlet stop the outlets before.
        """
        self.halt()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE)
        if not self._thread.is_alive():
            self._tasks.cancel()

    def _run(self) -> None:
        try:
            self._look()
            checked = time.monotonic()
            while not self._closing.is_set():
                self._submit()
                if not self.remaining and self._exhausted:
                    self._end()
                    break
                due = min((at for at, *_ in self._again), default=math.inf)
                for ended in self._tasks.wait(
                    min(_POLL, max(0.0, due - time.monotonic()))
                ):
                    self._settle(ended)
                if time.monotonic() - checked > _POLL:
                    self._look()
                    self._workers.trim_scheduler(self._tasks.submitted)
                    checked = time.monotonic()
        except Exception as error:
            raise self._explained(error)  # noqa: B904 - or the error itself

    def _look(self) -> None:
        self._workers.wait(self._faults, self._closing, self._ahead)
        self._tasks.placement.present = self._workers.present
        self._tasks.placement.check()
        self._tasks.free()

    def _end(self) -> None:
        # The inlet may still hand over what failed simulations had sent.
        while not self._ledger.wait(_POLL):
            if self._closing.is_set():
                return
        self._emit(Exhausted())

    def _emit(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    def _submit(self) -> None:
        now = time.monotonic()
        while len(self._tasks) < (
            room := self._workers.room(1 if self._held_out else self._ahead)
        ):
            if due := [retry for retry in self._again if retry[0] <= now]:
                _, simulation, attempt = again = min(due, key=itemgetter(0))
                self._again.remove(again)
            elif len(self._tasks) + len(self._again) >= room:
                # A retry keeps its thread: those that wait for it would take all.
                return
            elif following := self._design.next():
                simulation, attempt = following, 0
                self._held_out += simulation.part != "training"
                self._ledger.begin(simulation)
            else:
                self._exhausted = True
                return
            self._emit(Submitted(simulation, attempt))
            tried = self._tried.get(simulation.number, ())
            urgent = self._ahead == 1 or simulation.part != "training"
            self._tasks.submit(simulation, attempt, tried, urgent=urgent)

    def _settle(self, ended: Outcome) -> None:
        simulation, attempt, error = ended.simulation, ended.attempt, ended.error
        number, place = simulation.number, ended.place
        if place and error is None:
            self._tasks.placement.succeeded(place)
        if self._ledger.state(number) is SimulationState.COMPLETE:
            if error is not None:
                logger.warning("Simulation %d is complete, but: %s", number, error)
            self._held_out -= simulation.part != "training"
            self._tried.pop(number, None)
            self._emit(Finished(simulation, attempt))
            return
        if self._closing.is_set():
            return
        error = error or EnsembleError(
            "The task has ended, but not all of its steps have arrived: another "
            "attempt had taken its place, and did not end."
        )
        again = attempt + 1
        if isinstance(error, ArchiveError):
            self._tasks.archive_no_more(error)
            self._again.append((0.0, simulation, again))
            return
        if not ended.charged:
            logger.info("Simulation %d begins again. %s", number, error)
            self._again.append((0.0, simulation, again))
            return
        missing = isinstance(error, MissingFileError)
        if missing and place and self._tasks.placement.lacks(place):
            raise error  # So it would be for all others.
        tried = self._tried.setdefault(number, [])
        # What has failed on another worker, too, says little of this one.
        if place and all(at and at.worker == place.worker for at in tried):
            self._tasks.placement.failed(place, error)
        tried.append(place)
        # What a solver yields against its own spec, it will yield again.
        if len(tried) <= self._faults.retries and not isinstance(error, SpecMismatch):
            self._retried += 1
            pause = min(_PAUSE * 4.0 ** (len(tried) - 1), _LONGEST)
            self._again.append((time.monotonic() + pause, simulation, again))
            self._emit(Retried(simulation, attempt, error, place))
        else:
            self._failed += 1
            self._tasks.placement.give_up(self._tried.pop(number))
            self._held_out -= simulation.part != "training"
            for name, value in simulation.parameters.items():
                if isinstance(value, str):  # of a choice, which is told below
                    continue
                low, high = self._bounds.get(name, (value, value))
                self._bounds[name] = min(low, value), max(high, value)
            self._emit(Failed(simulation, attempt, error, place))
            self._check_failures(simulation, error)

    def _check_failures(self, last: Simulation, error: BaseException) -> None:
        if self._tasks.placement.count() > self._faults.max_failures:
            said, line = described(error)
            ranges = (f"{n} {a:.4g} to {b:.4g}" for n, (a, b) in self._bounds.items())
            raise EnsembleError(
                f"{counted(self._failed, 'simulation')} failed permanently, more than "
                f"max_failures={self._faults.max_failures} (the option "
                f"--data.faults.max_failures), with {', '.join(ranges)}; the last was "
                f"{last.number} with {dict(last.parameters)}: {said.rstrip('.')}. "
                f"All are listed in failures.csv in the run's folder.{line}"
            )

    def _explained(self, error: BaseException) -> BaseException:
        lost = self._tasks.client.status != "running"
        if isinstance(error, ConnectionError) or (
            lost and isinstance(error, CancelledError | OSError | RuntimeError)
        ):
            explained = EnsembleError(
                f"Lost the scheduler {self._workers.address}: "
                f"{type(error).__name__}: {error}"
            )
            explained.__cause__ = error
            return explained
        return error
