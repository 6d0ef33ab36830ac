"""The ensemble: keeps simulations submitted to Dask, retries failures, ends cleanly."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from distributed import Client, Future, KilledWorker

from surrogate_flow.dataset import ArchiveError
from surrogate_flow.ensemble.deaths import WorkerDied
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
from surrogate_flow.ensemble.places import Place, Places
from surrogate_flow.ensemble.task import Summary
from surrogate_flow.ensemble.workers import EnsembleError, Workers
from surrogate_flow.fields.quantities import Simulation, counted
from surrogate_flow.sampling import Design
from surrogate_flow.stream import SpecMismatch

__all__ = ["Ensemble", "EnsembleError", "EnsembleStats", "Tasks"]

logger = logging.getLogger(__name__)

_POLL = 1.0  # seconds between two checks of the size of the cluster
_CLOSE = 10.0  # seconds for a check that is under way, when the study ends
_GRACE = 3.0  # seconds that tasks have to end by themselves
_PAUSE, _LONGEST = 0.25, 60.0  # seconds before a retry; four times as long each time
_ELSEWHERE = 5.0  # seconds that an urgent attempt waits for a worker of its choice
_LOST = 3  # machines that may be lost with a simulation before it is charged

Attempt = Callable[[Simulation, int], Summary]


@dataclass(frozen=True)
class Ended:
    """An attempt that has ended, and if it has failed why and where.

    It is not the simulation's failure if not `charged`: then it has not begun, or its
    machine is lost.
    """

    simulation: Simulation
    attempt: int
    error: BaseException | None = None
    place: Place | None = None
    charged: bool = True


class Tasks:
    """A Dask task for each attempt at a simulation, from `submit` until `wait` ends it.

    One thread submits and waits; `cancel_hung`, `names` and `wake` may be called from
    any.

    Parameters
    ----------
    client : distributed.Client
    task : callable
        ``task(simulation, attempt) -> Summary``; pickled, runs on a worker.
    name : str
        Of the workflow; tasks are called
        ``<name>-<part>-<number>-<attempt>-<study>``.
    places : Places
        Where attempts may run, and why workers have died.
    unarchived : callable, optional
        The task from the moment that the data set cannot be written.
    """

    def __init__(
        self,
        client: Client,
        task: Attempt,
        name: str,
        places: Places,
        unarchived: Attempt | None = None,
    ) -> None:
        self.client, self.places = client, places
        self._task, self._unarchived = task, unarchived
        self._name = name
        self._ends: dict[str, Ended] = {}
        self._in_flight: dict[str, tuple[Simulation, int, Future[Summary]]] = {}
        self._bound: dict[str, tuple[list[str], float]] = {}
        self._anywhere: set[int] = set()
        self._restarted: set[str] = set()
        self._lost: Counter[int] = Counter()
        self._ended: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        #: Tasks submitted so far.
        self.submitted = 0

    def __len__(self) -> int:
        return len(self._in_flight)

    def key(self, simulation: Simulation, attempt: int) -> str:
        """Return the name of a task, which no other study on the cluster shares."""
        number = f"{simulation.number}-{attempt}"
        return f"{self._name}-{simulation.part}-{number}-{self.places.token}"

    def names(self) -> dict[tuple[int, int], str]:
        """Return the name of the task of each (simulation, attempt)."""
        in_flight = list(self._in_flight.items())
        return {(simulation.number, n): key for key, (simulation, n, _) in in_flight}

    def submit(
        self,
        simulation: Simulation,
        attempt: int,
        tried: Sequence[Place | None] = (),
        *,
        urgent: bool = False,
    ) -> None:
        """Begin an attempt elsewhere than it was tried; held-out ones go first.

        One that is urgent runs anywhere if no thread elsewhere is free in time: those
        there may be held up until it has ended.
        """
        key, number = self.key(simulation, attempt), simulation.number
        workers = None if number in self._anywhere else self.places.choose(tried)
        self._anywhere.discard(number)
        future = self.client.submit(
            self._task,
            simulation,
            attempt,
            key=key,
            pure=False,
            priority=int(simulation.part != "training"),
            workers=workers,
        )
        self.submitted += 1
        if workers is not None:
            wait = _ELSEWHERE if urgent else math.inf
            self._bound[key] = workers, time.monotonic() + wait
        self._in_flight[key] = (simulation, attempt, future)
        future.add_done_callback(self._note)

    def cancel_hung(self, key: str, error: TimeoutError, address: str) -> None:
        """Cancel a hung task on a worker; it ends with this error."""
        place = self.places.at(address)
        self._cancel(key, error, place)

    def restarting(self, addresses: Collection[str]) -> None:
        """Charge no attempt with the death of these workers."""
        self._restarted.update(addresses)

    def free(self) -> None:
        """Cancel what waits for workers that have gone, or for too long if urgent."""
        present = self.places.present.keys()
        for key, (workers, until) in list(self._bound.items()):
            late = time.monotonic() > until
            if late and self._executes(key):
                del self._bound[key]
            elif late or present.isdisjoint(workers):
                simulation = self._in_flight[key][0]
                self._anywhere.add(simulation.number)
                error = EnsembleError(f"It has not begun on {' or '.join(workers)}.")
                self._cancel(key, error, charged=False)

    def _executes(self, key: str) -> bool:
        ask: Any = self.client.scheduler
        try:
            stack = self.client.sync(
                ask.call_stack, keys=[key], callback_timeout=_GRACE
            )
        except KeyError:
            return False
        except (OSError, TimeoutError):
            # A solver may hold the GIL.
            return True
        return bool(stack)

    def _cancel(
        self,
        key: str,
        error: BaseException,
        place: Place | None = None,
        charged: bool = True,
    ) -> None:
        if task := self._in_flight.get(key):
            simulation, attempt, future = task
            self._ends[key] = Ended(simulation, attempt, error, place, charged)
            future.cancel()
            self._ended.put(key)

    def archive_no_more(self, error: ArchiveError) -> None:
        """Have attempts from now on stream only, or raise if there is no such task."""
        if self._unarchived is None:
            raise error
        if self._task is not self._unarchived:
            logger.error("%s This run goes on, and archives no more.", error)
            self._task = self._unarchived

    def wake(self) -> None:
        """End a wait."""
        self._ended.put(None)

    def wait(self, timeout: float) -> Iterator[Ended]:
        """Yield what has ended.

        Blocks for the first one, `timeout` seconds at most.

        Raises
        ------
        ConnectionError
            If the scheduler is gone.
        """
        with contextlib.suppress(queue.Empty):
            key = self._ended.get(timeout=timeout)
            while True:
                if key in self._in_flight and (ended := self._settle(key)):
                    yield ended
                key = self._ended.get_nowait()

    def cancel(self) -> None:
        """Cancel what does not end within a moment."""
        # Tasks that were asked to stop end by themselves; cancelled ones complain.
        deadline = time.monotonic() + _GRACE
        while self._in_flight and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self._in_flight.pop(self._ended.get(timeout=left) or "", None)
        futures = [future for _, _, future in self._in_flight.values()]
        self._in_flight.clear()
        if futures and self.client.status == "running":
            try:
                self.client.sync(self.client._cancel, futures, callback_timeout=_GRACE)
            except (OSError, TimeoutError) as error:
                logger.warning("The scheduler does not answer: %r", error)

    def _note(self, future: Future[Summary]) -> None:
        self._ended.put(str(future.key))

    def _settle(self, key: str) -> Ended | None:
        simulation, attempt, future = self._in_flight[key]
        ended, status = self._ends.pop(key, None), future.status
        if ended is None and status not in ("finished", "error", "cancelled"):
            # Its worker died with the result, and Dask runs it again.
            future.add_done_callback(self._note)
            return None
        del self._in_flight[key]
        self._bound.pop(key, None)
        if ended is not None:
            return ended
        if status == "cancelled":
            # Nobody else cancels: the client does, when the scheduler is gone.
            raise ConnectionError(f"task {key} was cancelled")
        if status == "finished":
            self._lost.pop(simulation.number, None)
            return Ended(simulation, attempt)
        error, charged = future.exception(timeout=_GRACE), True
        if isinstance(error, KilledWorker):
            error, charged = self._died(key, simulation.number, error.last_worker)
        return Ended(simulation, attempt, error, self.places.of(key), charged)

    def _died(self, key: str, number: int, worker: Any) -> tuple[WorkerDied, bool]:
        """Return why a worker has died, and whether the attempt is to blame."""
        if worker.address in self._restarted:
            return WorkerDied("Another simulation on its worker hung."), False
        death = self.places.death(worker.address) if worker.nanny else None
        if death and death["ran"]:
            error = WorkerDied.of(death["code"], death["ran"].get(key, ""))
            return error, key in death["ran"]
        # With its nanny, or before it began anything.
        self._lost[number] += 1
        charged = not worker.nanny or self._lost[number] > _LOST
        return WorkerDied.of(death["code"] if death else None), charged


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
        self._failures: list[list[Place | None]] = []
        self._retried = self._held_out = 0
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
    def remaining(self) -> int | None:
        """Number of simulations that could run at once, once all have begun."""
        return len(self._tasks) + len(self._again) if self._exhausted else None

    def stats(self) -> EnsembleStats:
        """Count simulations by state, those of earlier processes too."""
        counts, threads = self._ledger.counts(), self._workers.own_threads
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
        except BaseException as error:
            # Raised again by check(), in the trainer's thread.
            self._error = self._explained(error)

    def _look(self) -> None:
        self._workers.wait(self._faults, self._closing, self._ahead)
        self._tasks.places.present = self._workers.present
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

    def _settle(self, ended: Ended) -> None:
        simulation, attempt, error = ended.simulation, ended.attempt, ended.error
        number, place = simulation.number, ended.place
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
        if place:
            self._tasks.places.failed(place, error)
        tried = self._tried.setdefault(number, [])
        tried.append(place)
        # What a solver yields against its own spec, it will yield again.
        if len(tried) <= self._faults.retries and not isinstance(error, SpecMismatch):
            self._retried += 1
            pause = min(_PAUSE * 4.0 ** (len(tried) - 1), _LONGEST)
            self._again.append((time.monotonic() + pause, simulation, again))
            self._emit(Retried(simulation, attempt, error, place))
        else:
            self._failures.append(self._tried.pop(number))
            self._held_out -= simulation.part != "training"
            self._emit(Failed(simulation, attempt, error, place))
            self._check_failures(simulation, error)

    def _check_failures(self, last: Simulation, error: BaseException) -> None:
        if self._tasks.places.count(self._failures) > self._faults.max_failures:
            failed, (first, line) = len(self._failures), described(error)
            raise EnsembleError(
                f"{counted(failed, 'simulation')} failed permanently, more than "
                f"max_failures={self._faults.max_failures}; the last was "
                f"{last.number} with {dict(last.parameters)}: {first.rstrip('.')}. "
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
