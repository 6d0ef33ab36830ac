"""The ensemble: keeps simulations in flight on Dask, retries failures, ends cleanly."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from surrogate_flow.dataset import ArchiveError
from surrogate_flow.ensemble.events import (
    Event,
    Exhausted,
    Failed,
    Finished,
    Listener,
    Retried,
    Submitted,
)
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.ledger import Ledger, State
from surrogate_flow.ensemble.tasks import Ended, Tasks
from surrogate_flow.ensemble.workers import EnsembleError, Workers
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.sampling import Design
from surrogate_flow.stream import SpecMismatch

__all__ = ["Ensemble", "EnsembleError", "EnsembleStats"]

logger = logging.getLogger(__name__)

_POLL = 1.0  # seconds between two looks at the size of the cluster
_CLOSE = 10.0  # seconds for a look that is under way, when the study ends


@dataclass(frozen=True)
class EnsembleStats:
    """Number of simulations by state, and of threads of workers, at one moment."""

    done: int
    running: int
    failed: int
    retried: int
    workers: int


class Ensemble:
    """Keep `ahead` x worker threads simulations submitted; submit the next at an end.

    Just one a thread while held-out simulations are unfinished: these come first, and a
    retry of theirs must never wait behind training simulations that wait for the
    trainer.

    One thread of its own does everything; `close` may be called from any thread, more
    than once.

    Parameters
    ----------
    tasks : Tasks
        What runs on the workers.
    workers : Workers
    design : Design
        Which simulations; asked for the next one when there is room, so memory does not
        grow with their number.
    ledger : Ledger
        Of the study: the inlet notes there which simulations are complete.
    faults : Faults
    listeners : sequence of Listener
        Called with each event, in this order. One of them has the inlet give up the
        simulations that have failed permanently.
    ahead : int
        Simulations in flight for each worker thread, once the held-out ones have ended.
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
        self._again = deque[tuple[Simulation, int]]()
        self._failed = self._retried = self._held_out = 0
        self._closing = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ensemble", daemon=True)

    def start(self) -> None:
        """Begin to submit."""
        self._thread.start()

    def wait(self, timeout: float) -> bool:
        """Block until nothing is in flight and nothing will be; return whether so."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raise what stopped the ensemble, if anything did."""
        if self._error is not None:
            raise self._error
        self._workers.check()

    @property
    def useful(self) -> int | None:
        """Number of simulations that could run at once, once all have begun."""
        return len(self._tasks) if self._exhausted else None

    def stats(self) -> EnsembleStats:
        """Count simulations by state, those of earlier processes too."""
        counts, threads = self._ledger.counts(), self._workers.mine
        return EnsembleStats(
            done=counts.complete,
            running=min(len(self._tasks), threads),
            failed=counts.failed,
            retried=self._retried,
            workers=threads,
        )

    def waiting(self) -> str:
        """Return which workers begin no simulation for want of memory, or ""."""
        return self._workers.describe() if self._tasks else ""

    def halt(self) -> None:
        """Submit nothing more; what ends from now on was stopped, and has not failed.

        Never blocks.
        """
        self._closing.set()
        self._tasks.wake()

    def close(self) -> None:
        """Submit nothing more, and cancel what does not end within a moment.

        Blocks for some seconds at most. Have the inlet stop the outlets before.
        """
        self.halt()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE)
        if not self._thread.is_alive():
            self._tasks.cancel()

    def _run(self) -> None:
        try:
            self._workers.wait(self._faults, self._closing, self._ahead)
            looked = time.monotonic()
            while not self._closing.is_set():
                self._submit()
                if not self._tasks and self._exhausted:
                    self._end()
                    break
                for ended in self._tasks.wait(_POLL):
                    self._settle(ended)
                if time.monotonic() - looked > _POLL:
                    self._workers.wait(self._faults, self._closing, self._ahead)
                    self._workers.trim_scheduler(self._tasks.submitted)
                    looked = time.monotonic()
        except BaseException as error:
            # Raised again by check(), in the trainer's thread.
            self._error = self._explained(error)

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
        while len(self._tasks) < self._workers.room(
            1 if self._held_out else self._ahead
        ):
            if self._again:
                simulation, attempt = self._again.popleft()
            else:
                following = self._design.next()
                if following is None:
                    self._exhausted = True
                    return
                simulation, attempt = following, 0
                self._held_out += simulation.part != "training"
                self._ledger.begin(simulation)
            self._emit(Submitted(simulation, attempt))
            self._tasks.submit(simulation, attempt)

    def _settle(self, ended: Ended) -> None:
        simulation, attempt, error, _ = ended
        if self._ledger.state(simulation.number) is State.COMPLETE:
            if error is not None:
                logger.warning("%s", error)
            self._held_out -= simulation.part != "training"
            self._emit(Finished(simulation, attempt))
            return
        if self._closing.is_set():
            return
        error = error or EnsembleError(
            "The task has ended, but not all of its steps have arrived: another "
            "attempt had taken its place, and did not end."
        )
        if isinstance(error, ArchiveError):
            self._tasks.archive_no_more(error)
            self._again.append((simulation, attempt + 1))
            return
        # What a solver yields against its own spec, it will yield again.
        if attempt < self._faults.retries and not isinstance(error, SpecMismatch):
            self._retried += 1
            self._emit(Retried(simulation, attempt, error))
            self._again.append((simulation, attempt + 1))
            return
        self._failed += 1
        self._held_out -= simulation.part != "training"
        self._emit(Failed(simulation, attempt, error))
        if self._failed > self._faults.max_failures:
            raise EnsembleError(
                f"{self._failed} simulations failed permanently, more than "
                f"max_failures={self._faults.max_failures}; the last was "
                f"{simulation.number} with {dict(simulation.parameters)}: "
                f"{type(error).__name__}: {str(error).rstrip('.')}. All are listed in "
                "failures.csv in the run's folder."
            )

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, ConnectionError) or self._tasks.client.status != "running":
            lost = EnsembleError(
                f"Lost the scheduler {self._workers.address}: "
                f"{type(error).__name__}: {error}"
            )
            lost.__cause__ = error
            return lost
        return error
