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
    """An attempt that has ended: what it failed with, and whether it was stopped."""

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
        Of the workflow; the first part of all names.
    unarchived : callable, optional
        The task from the moment that a data set cannot be written.

    Notes
    -----
    One thread submits and waits; `stop`, `names` and `wake` may be called from any.
    """

    def __init__(
        self,
        client: Client,
        task: Callable[[Simulation, int], Summary],
        name: str,
        unarchived: Callable[[Simulation, int], Summary] | None = None,
    ) -> None:
        self._client = client
        self._task = task
        self._unarchived = unarchived
        self._name = name
        self._token = secrets.token_hex(3)
        self._hanging: dict[str, TimeoutError] = {}
        self._flying: dict[str, tuple[Simulation, int, Future[Summary]]] = {}
        self._ended: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def __len__(self) -> int:
        return len(self._flying)

    def key(self, simulation: Simulation, attempt: int) -> str:
        """Return the name of a task, which no other study on the cluster shares."""
        number = f"{simulation.number}-{attempt}"
        return f"{self._name}-{simulation.part}-{number}-{self._token}"

    def names(self) -> dict[tuple[int, int], str]:
        """Return the name of the task of each (simulation, attempt)."""
        flying = list(self._flying.items())
        return {(simulation.number, n): key for key, (simulation, n, _) in flying}

    def submit(self, simulation: Simulation, attempt: int) -> None:
        """Begin an attempt; the held-out simulations go first."""
        key = self.key(simulation, attempt)
        future = self._client.submit(
            self._task,
            simulation,
            attempt,
            key=key,
            pure=False,
            priority=int(simulation.part != "training"),
        )
        self._flying[key] = (simulation, attempt, future)
        self._watch(future)

    def stop(self, key: str, error: TimeoutError) -> None:
        """Give up a task that hangs."""
        if flying := self._flying.get(key):
            self._hanging[key] = error
            flying[2].cancel()
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
                if key in self._flying and (ended := self._settle(key)):
                    yield ended
                if not self._ended.empty():
                    keys.append(self._ended.get())

    def cancel(self) -> None:
        """Cancel what does not end within a moment."""
        # Tasks that were told to stop end by themselves; cancelled ones complain.
        deadline = time.monotonic() + _GRACE
        while self._flying and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self._flying.pop(self._ended.get(timeout=left) or "", None)
        futures = [future for _, _, future in self._flying.values()]
        self._flying.clear()
        if futures and self._client.status == "running":
            try:
                self._client.sync(
                    self._client._cancel, futures, callback_timeout=_GRACE
                )
            except (OSError, TimeoutError) as error:
                logger.warning("The scheduler does not answer: %r", error)

    def _watch(self, future: Future[Summary]) -> None:
        future.add_done_callback(lambda f: self._ended.put(f.key))

    def _settle(self, key: str) -> Ended | None:
        simulation, attempt, future = self._flying[key]
        hanging = self._hanging.pop(key, None)
        status = "error" if hanging else future.status
        if status not in ("finished", "error", "cancelled"):
            # Its worker died with the result, and Dask runs it again.
            self._watch(future)
            return None
        del self._flying[key]
        if status == "cancelled":
            # Nobody else cancels: the client does, when the scheduler is gone.
            raise ConnectionError(f"task {key} was cancelled")
        error: BaseException | None = hanging
        if status == "error" and error is None:
            error = future.exception(timeout=_GRACE)
        return Ended(simulation, attempt, error, hanging is not None)
