"""How jobs leave before their time is over, or when there are too many."""

from __future__ import annotations

import time
from typing import Any

from distributed import Client
from distributed.core import Status

from surrogate_flow.cluster.batch.job import Job
from surrogate_flow.cluster.batch.jobqueue import JobQueueCluster

__all__ = ["Departure"]

_MARGIN = 1.2  # times the longest simulation
_GRACE = 30.0  # seconds, at most, for a job to end in order
_NOTICE = 6.0  # seconds until it shows that a job has nothing to do, and it is closed
_SHARE = 0.05  # the same, of the walltime
_STAGGER = 0.1  # of the walltime, over which jobs that began together leave
_WAVES = 8  # different moments within
_WORK = 0.1  # of the walltime, in which a job begins simulations however long they are
_ANSWER = 30.0  # seconds that the scheduler may be too busy to answer
_HEARTBEATS = 2.0  # seconds until the scheduler knows what a worker executes


class Departure:
    """A job leaves when left < 1.2 times the longest simulation + margin + stagger.

    From then on its workers begin no simulation, and when those under way have ended
    it ends.

    Parameters
    ----------
    cluster : JobQueueCluster
    client : distributed.Client
        Of it.
    walltime : float or None
        Of each job, in seconds; without, none is ever due.
    """

    def __init__(
        self, cluster: JobQueueCluster, client: Client, walltime: float | None
    ) -> None:
        self._scheduler = cluster.scheduler
        self._client = client
        self.walltime = walltime
        # Since when no worker of a job begins anything.
        self._quiet: dict[int, float] = {}

    def due(self, job: Job, longest: float) -> bool:
        """Whether a job had better leave now.

        Parameters
        ----------
        job : Job
        longest : float
            Seconds that simulations take.
        """
        if self.walltime is None or job.until is None:
            return False
        stagger = _STAGGER * (job.number % _WAVES) / _WAVES
        grace = _NOTICE + min(_GRACE, _SHARE * self.walltime)
        margin = grace + stagger * self.walltime
        need = min(_MARGIN * longest + margin, (1 - _WORK) * self.walltime)
        return job.until - time.time() < need

    def over(self, job: Job) -> bool:
        """Have the workers of a job begin nothing; return whether all have ended.

        Raises
        ------
        OSError, TimeoutError
            If the scheduler is too busy: try again.
        """
        mine = self._workers(job)
        if loud := [worker for worker in mine if not self._is_quiet(worker)]:
            self._quiet.pop(job.number, None)
            # Results move to other workers; where there is none yet, next time.
            self._retire(loud, close_workers=False, remove=False)
            return False
        since = self._quiet.setdefault(job.number, time.time()) + _HEARTBEATS
        return all(w.last_seen > since and not w.executing for w in mine)

    def end(self, job: Job) -> None:
        """Close the workers of a job: what waits at them goes to others."""
        self._quiet.pop(job.number, None)
        if mine := self._workers(job):
            self._retire(mine, close_workers=True, remove=True)

    def _retire(self, workers: list[Any], **how: bool) -> None:
        scheduler = self._client.scheduler
        assert scheduler is not None, "set once it has started"
        addresses = [worker.address for worker in workers]
        self._client.sync(
            scheduler.retire_workers,
            workers=addresses,
            callback_timeout=_ANSWER,
            **how,
        )

    def _workers(self, job: Job) -> list[Any]:
        workers = list(self._scheduler.workers.values())
        return [worker for worker in workers if job.owns(str(worker.name))]

    @staticmethod
    def _is_quiet(worker: Any) -> bool:
        return bool(worker.status is Status.closing_gracefully)
