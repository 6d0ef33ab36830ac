"""Attempts at simulations as tasks of Dask: where they run, and how they ended."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future, KilledWorker

from surrogate_flow.dataset import ArchiveError
from surrogate_flow.ensemble.attempt import Summary
from surrogate_flow.ensemble.deaths import WorkerDied
from surrogate_flow.ensemble.placement import Place, Placement
from surrogate_flow.ensemble.workers import EnsembleError
from surrogate_flow.fields.quantities import Simulation

__all__ = ["Outcome", "Tasks"]

logger = logging.getLogger(__name__)

_GRACE = 3.0  # seconds that tasks have to end by themselves
_ELSEWHERE = 5.0  # seconds that an urgent attempt waits for a worker of its choice
_SOON = 60.0  # seconds; later another worker may have the address of a restarted one
_REPORT = 3.0  # seconds for a nanny to report how its worker has died
_LOOK = 0.1  # seconds between two looks whether it has
_LOST = 3  # machines that may be lost with a simulation before it is charged

Attempt = Callable[[Simulation, int], Summary]


@dataclass(frozen=True)
class Outcome:
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
    placement : Placement
        Where attempts may run, and why workers have died.
    unarchived : callable, optional
        The task from the moment that the data set cannot be written.
    """

    def __init__(
        self,
        client: Client,
        task: Attempt,
        name: str,
        placement: Placement,
        unarchived: Attempt | None = None,
    ) -> None:
        self.client, self.placement = client, placement
        self._task, self._unarchived = task, unarchived
        self._name = name
        self._ends: dict[str, Outcome] = {}
        self._in_flight: dict[str, tuple[Simulation, int, Future[Summary]]] = {}
        self._bound: dict[str, tuple[list[str], float]] = {}
        self._anywhere: set[int] = set()
        self._restarted: dict[str, float] = {}
        self._lost: Counter[int] = Counter()
        self._dying: dict[str, float] = {}
        self._ended: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        #: Tasks submitted so far.
        self.submitted = 0

    def __len__(self) -> int:
        return len(self._in_flight)

    def key(self, simulation: Simulation, attempt: int) -> str:
        """Return the name of a task, which no other study on the cluster shares."""
        number = f"{simulation.number}-{attempt}"
        return f"{self._name}-{simulation.part}-{number}-{self.placement.study}"

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
        workers = None if number in self._anywhere else self.placement.choose(tried)
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
        place = self.placement.at(address)
        self._cancel(key, error, place)

    def restarting(self, addresses: Collection[str]) -> None:
        """Charge no attempt with the death of these workers, which comes soon."""
        now = time.monotonic()
        recent = {at: until for at, until in self._restarted.items() if until > now}
        self._restarted = recent | dict.fromkeys(addresses, now + _SOON)

    def free(self) -> None:
        """Cancel what waits for workers that have gone, or for too long if urgent."""
        present = self.placement.present.keys()
        for key in self._bound.keys() - self._dying.keys():
            workers, until = self._bound[key]
            late = time.monotonic() > until
            if not late and present.isdisjoint(workers):
                # If it had begun, it has ended by the next look.
                self._bound[key] = workers, 0.0
            elif late and self._executes(key):
                del self._bound[key]
            elif late:
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
            self._ends[key] = Outcome(simulation, attempt, error, place, charged)
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

    def wait(self, timeout: float) -> Iterator[Outcome]:
        """Yield what has ended.

        Blocks for the first one, `timeout` seconds at most.

        Raises
        ------
        ConnectionError
            If the scheduler is gone.
        """
        with contextlib.suppress(queue.Empty):
            wait = min(timeout, _LOOK) if self._dying else timeout
            key = self._ended.get(timeout=wait)
            while True:
                if key in self._in_flight and (ended := self._settle(key)):
                    yield ended
                key = self._ended.get_nowait()
        for key in list(self._dying):
            if ended := self._settle(key):
                yield ended

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

    def _settle(self, key: str) -> Outcome | None:
        simulation, attempt, future = self._in_flight[key]
        ended, status = self._ends.pop(key, None), future.status
        if ended is None and status not in ("finished", "error", "cancelled"):
            # Its worker died with the result, and Dask runs it again.
            future.add_done_callback(self._note)
            return None
        error, charged, died = None, True, None
        if ended is None and status == "error":
            try:
                error = future.exception(timeout=_GRACE)
            except TimeoutError:
                # The client is busy, and answers later.
                future.add_done_callback(self._note)
                return None
            if isinstance(error, KilledWorker):
                if self._unexplained(key, error.last_worker):
                    return None
                at = error.last_worker
                died = Place(str(at.name), at.address, at.host)
                error, charged = self._died(key, simulation.number, at)
        del self._in_flight[key]
        self._bound.pop(key, None)
        self._dying.pop(key, None)
        place = self.placement.of(key) or died
        if ended is not None:
            return ended
        if status == "cancelled":
            # Nobody else cancels: the client does, when the scheduler is gone.
            raise ConnectionError(f"task {key} was cancelled")
        if status == "finished":
            self._lost.pop(simulation.number, None)
        return Outcome(simulation, attempt, error, place, charged)

    def _unexplained(self, key: str, worker: Any) -> bool:
        """Whether a nanny may still report how its worker has died."""
        if not worker.nanny or self.placement.death(worker.server_id):
            return False
        now = time.monotonic()
        return now < self._dying.setdefault(key, now + _REPORT)

    def _died(self, key: str, number: int, worker: Any) -> tuple[WorkerDied, bool]:
        """Return why a worker has died, and whether the attempt is to blame."""
        if time.monotonic() < self._restarted.get(worker.address, 0.0):
            return WorkerDied("Another simulation on its worker hung."), False
        death = self.placement.death(worker.server_id)
        if death and death["ran"]:
            error = WorkerDied.of(death["code"], death["ran"].get(key, ""))
            return error, key in death["ran"]
        # With its nanny, or before it began anything.
        self._lost[number] += 1
        charged = not worker.nanny or self._lost[number] > _LOST
        return WorkerDied.of(death["code"] if death else None), charged
