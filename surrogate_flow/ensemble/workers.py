"""The workers of a study's cluster: how many there are, and which are paused."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from dask.utils import format_bytes, key_split
from distributed import Client
from distributed.core import Status

from surrogate_flow.cluster.batch import Supervisor
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.fields.errors import UserError

__all__ = ["EnsembleError", "Workers"]

logger = logging.getLogger(__name__)

_LEAVING = {Status.closing_gracefully.name, Status.closing.name, Status.closed.name}
_REPORT = 30.0  # seconds between two log lines on what is waited for
_TRIM = 1000  # tasks after which the scheduler's notes on them are trimmed


class EnsembleError(UserError, RuntimeError):
    """The ensemble cannot go on."""


class Workers:
    """threads = those that begin simulations + those that Dask has paused.

    A worker is paused while its process holds more than a share of its memory limit
    (``distributed.worker.memory.pause``, 80 %). It executes what it has begun, and
    begins nothing. Workers that leave are not counted.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    jobs : Supervisor, optional
        The jobs of the workers, in the process that submits them.
    share : int
        Number of ensembles that share the workers evenly.
    from_jobs : bool
        Whether they are jobs of a batch system: new ones may come late.
    answer : float
        Seconds that the scheduler may be too busy to answer.
    """

    def __init__(
        self,
        client: Client,
        *,
        jobs: Supervisor | None = None,
        share: int = 1,
        from_jobs: bool = False,
        answer: float = 30.0,
    ) -> None:
        self._client, self.jobs = client, jobs
        self._share, self._from_jobs, self._answer = share, from_jobs, answer
        self.address: str = getattr(client.scheduler, "address", "")
        #: Threads of all workers that stay, and of those that are not paused.
        self.threads = self.ready = 0
        #: Name and host of all workers that stay, by their addresses.
        self.present: dict[str, tuple[str, str]] = {}
        self._count = self._trimmed = 0
        self._seen = False
        self._paused: dict[str, dict[str, Any]] = {}

    @property
    def own_threads(self) -> int:
        """Number of threads that are this ensemble's, rounded up."""
        return -(-self.threads // self._share)

    def room(self, ahead: int) -> int:
        """Return how many attempts this ensemble may submit, `ahead` a thread.

        Rounded down, so that the attempts of all ensembles fit into the cluster.
        """
        return max(1, ahead * self.ready // self._share)

    def check(self) -> None:
        """Raise what keeps workers from coming back, if anything does."""
        if self.jobs is not None:
            self.jobs.check()

    def wait(self, faults: Faults, closing: threading.Event, ahead: int) -> None:
        """Block until there are workers, or `closing` is set.

        If each ensemble has just its threads (`ahead` is 1), each needs one: an attempt
        that waits for another ensemble's would wait for ever.

        Raises
        ------
        EnsembleError
            If there are too few for ``faults.start_timeout``, or for
            ``faults.patience`` after jobs of a batch system have worked once.
        ConnectionError
            If the scheduler is gone.
        """
        least = self._share if ahead == 1 else 1
        name = "patience" if self._seen and self._from_jobs else "start_timeout"
        limit: float = getattr(faults, name)
        start = reported = time.monotonic()
        self.update()
        while self.threads < least and not closing.is_set():
            waited = time.monotonic() - start
            jobs = f" {self.jobs.describe()}." if self.jobs else ""
            if waited > limit:
                few = f"Only {self.threads} threads of workers have"
                raise EnsembleError(
                    f"{few if self.threads else 'No worker has'} been at "
                    f"{self.address} for {limit:g} s (faults.{name}), expected at "
                    f"least {least}.{jobs} Jobs have died, are still queued, or "
                    "cannot reach the scheduler: look at the queue and at the workers' "
                    "logs."
                )
            if time.monotonic() - reported > _REPORT:
                reported = time.monotonic()
                logger.info("No worker for %.0f s.%s", waited, jobs)
            closing.wait(0.1)
            self.update()
        self._seen = self._seen or self.threads >= least

    def update(self) -> None:
        """Ask the scheduler; warn of each worker that has been paused since.

        Raises
        ------
        ConnectionError
            If it gives no answer.
        """
        leaving = self.jobs.draining_workers() if self.jobs else ()
        staying = {
            address: worker
            for address, worker in self._known().items()
            if address not in leaving and worker["status"] not in _LEAVING
        }
        self._count, before = len(staying), self._paused
        self._paused = {
            address: worker
            for address, worker in staying.items()
            if worker["status"] == Status.paused.name
        }
        self.present = {a: (str(w["name"]), w["host"]) for a, w in staying.items()}
        self.threads = sum(worker["nthreads"] for worker in staying.values())
        paused = sum(worker["nthreads"] for worker in self._paused.values())
        self.ready = self.threads - paused
        for address in self._paused.keys() - before.keys():
            logger.warning(
                "Worker %s begins no simulation until it holds less: %s. If that lasts,"
                " give it more (memory of a queue's cluster, memory_limit of a "
                "LocalCluster, under data.cluster), or look for what the solver keeps "
                "from one simulation to the next.",
                address,
                _memory(self._paused[address]),
            )

    def _known(self) -> dict[str, Any]:
        ask: Any = self._client.scheduler
        try:
            try:
                known = self._client.sync(ask.identity, callback_timeout=self._answer)
            except TimeoutError:
                # If this process stood still, so did the answer.
                known = self._client.sync(ask.identity, callback_timeout=self._answer)
        except (OSError, TimeoutError) as error:
            raise ConnectionError(str(error)) from error
        workers: dict[str, Any] = known["workers"]
        return workers

    def trim_scheduler(self, submitted: int) -> None:
        """Have Dask forget, every 1,000 tasks, what it keeps of every task ever run.

        The scheduler records in its span, without end, that a task was a future (170
        bytes), and every process remembers what the names of the last 100,000 tasks
        begin with (20 MB). A scheduler that is too busy is asked again next time.

        Raises
        ------
        OSError
            If the scheduler is gone.
        """
        if submitted - self._trimmed < _TRIM:
            return
        self._trimmed = submitted
        key_split.cache_clear()
        try:
            self._client.run_on_scheduler(_trim, callback_timeout=self._answer)
        except TimeoutError as error:
            logger.debug("The scheduler does not answer: %r", error)
        except OSError:
            raise
        except Exception as error:
            # A scheduler of others that runs no functions.
            logger.debug("The scheduler at %s is not trimmed: %r", self.address, error)

    def describe(self) -> str:
        """Return which workers are paused, or ""."""
        if not self._paused:
            return ""
        address, worker = next(iter(self._paused.items()))
        return (
            f"{len(self._paused)} of {self._count} workers paused for want of memory ("
            f"{address}: {_memory(worker)})"
        )


def _memory(worker: dict[str, Any]) -> str:
    held = format_bytes(worker.get("metrics", {}).get("memory", 0))
    return f"its process holds {held} of at most {format_bytes(worker['memory_limit'])}"


def _trim(dask_scheduler: Any) -> None:
    key_split.cache_clear()
    spans = dask_scheduler.extensions.get("spans")
    for span in spans.spans.values() if spans else ():
        if span.metadata:
            del span.metadata["collections"][1:]
