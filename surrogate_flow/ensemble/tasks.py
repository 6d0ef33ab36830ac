"""The attempts that are in flight on Dask, each a task with a name of its own."""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from distributed import Client, Future

from surrogate_flow.dataset import ArchiveError
from surrogate_flow.ensemble.task import Summary
from surrogate_flow.fields.quantities import Simulation

__all__ = ["Ended", "Tasks"]

logger = logging.getLogger(__name__)

_GRACE = 3.0  # seconds that tasks have to end by themselves


class Ended(NamedTuple):
    """An attempt that has ended: its error, and whether it was cancelled as hung."""

    simulation: Simulation
    attempt: int
    error: BaseException | None
    hung: bool


class Tasks:
    """A task for each attempt at a simulation, from `submit` until `wait` yields it.

    Parameters
    ----------
    client : distributed.Client
    task : callable
        ``task(simulation, attempt) -> Summary``; pickled, runs on a worker.
    name : str
        Of the workflow; tasks are called
        ``<name>-<part>-<number>-<attempt>-<study>``.
    unarchived : callable, optional
        The task from the moment that the data set cannot be written.

    Notes
    -----
    One thread submits and waits; `cancel_hung`, `names` and `wake` may be called from
    any.
    """

    def __init__(
        self,
        client: Client,
        task: Callable[[Simulation, int], Summary],
        name: str,
        unarchived: Callable[[Simulation, int], Summary] | None = None,
    ) -> None:
        self.client = client
        self._task, self._unarchived = task, unarchived
        self._name, self._token = name, secrets.token_hex(3)
        self._hung: dict[str, TimeoutError] = {}
        self._in_flight: dict[str, tuple[Simulation, int, Future[Summary]]] = {}
        self._ended: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        #: Tasks submitted so far.
        self.submitted = 0

    def __len__(self) -> int:
        return len(self._in_flight)

    def key(self, simulation: Simulation, attempt: int) -> str:
        """Return the name of a task, which no other study on the cluster shares."""
        number = f"{simulation.number}-{attempt}"
        return f"{self._name}-{simulation.part}-{number}-{self._token}"

    def names(self) -> dict[tuple[int, int], str]:
        """Return the name of the task of each (simulation, attempt)."""
        in_flight = list(self._in_flight.items())
        return {(simulation.number, n): key for key, (simulation, n, _) in in_flight}

    def submit(self, simulation: Simulation, attempt: int) -> None:
        """Begin an attempt; those at held-out simulations go first."""
        key = self.key(simulation, attempt)
        future = self.client.submit(
            self._task,
            simulation,
            attempt,
            key=key,
            pure=False,
            priority=int(simulation.part != "training"),
        )
        self.submitted += 1
        self._in_flight[key] = (simulation, attempt, future)
        self._watch(future)

    def cancel_hung(self, key: str, error: TimeoutError) -> None:
        """Cancel a hung task; it ends with this error."""
        if task := self._in_flight.get(key):
            self._hung[key] = error
            task[2].cancel()
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
        """Yield attempts that have ended; wait for the first for `timeout` seconds.

        Raises
        ------
        ConnectionError
            If the scheduler is gone.
        """
        with contextlib.suppress(queue.Empty):
            keys = [self._ended.get(timeout=timeout)]
            while keys:
                key = keys.pop()
                if key in self._in_flight and (ended := self._settle(key)):
                    yield ended
                if not self._ended.empty():
                    keys.append(self._ended.get())

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

    def _watch(self, future: Future[Summary]) -> None:
        future.add_done_callback(lambda f: self._ended.put(f.key))

    def _settle(self, key: str) -> Ended | None:
        simulation, attempt, future = self._in_flight[key]
        hung = self._hung.pop(key, None)
        status = "error" if hung else future.status
        if status not in ("finished", "error", "cancelled"):
            # Its worker died with the result, and Dask runs it again.
            self._watch(future)
            return None
        del self._in_flight[key]
        if status == "cancelled":
            # Nobody else cancels: the client does, when the scheduler is gone.
            raise ConnectionError(f"task {key} was cancelled")
        error: BaseException | None = hung
        if status == "error" and error is None:
            error = future.exception(timeout=_GRACE)
        return Ended(simulation, attempt, error, hung is not None)
