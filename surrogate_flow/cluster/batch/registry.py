"""The jobs of a study: which have workers, and what holds up the others."""

from __future__ import annotations

import logging
import math
import time

from surrogate_flow.cluster.batch.batch_queue import JobState, Statuses, queue_of
from surrogate_flow.cluster.batch.job import Job, JobTiming
from surrogate_flow.cluster.batch.jobqueue import JobQueueCluster
from surrogate_flow.cluster.batch.walltime import UNTIL

__all__ = ["Registry"]

logger = logging.getLogger(__name__)

_CANCELS = 6  # times that a job is cancelled


class Registry:
    """All submitted jobs, until the queue reports that they are gone.

    Not locked: one thread updates it; the others may read.
    """

    def __init__(self, cluster: JobQueueCluster, timing: JobTiming) -> None:
        self._timing = timing
        self._query_queue = queue_of(type(cluster))
        self._known: Statuses = {}
        self._no_answer = False
        self._queried, self._interval = -math.inf, timing.query
        self._now = time.monotonic()
        self._cancelled: list[Job] = []
        #: Jobs that were not cancelled.
        self.jobs: list[Job] = []

    @property
    def at_work(self) -> list[Job]:
        """Jobs that have had workers, and do not drain."""
        return [job for job in self.staying if job.last_seen is not None]

    @property
    def staying(self) -> list[Job]:
        """Jobs in the queue or at work that do not drain."""
        return [job for job in self.jobs if not job.draining]

    def update(self) -> None:
        """Record which jobs have workers, and from time to time query the queue."""
        self._now = time.monotonic()
        for job in self.jobs:
            if workers := job.workers():
                job.last_seen = self._now
                job.ends_at = workers[0].resources.get(UNTIL)
        away = [job for job in self.jobs if job.last_seen != self._now]
        if any(job.last_seen is not None for job in away):
            self._interval = self._timing.query
        if self._now - self._queried >= self._interval:
            self._query(away)
            self._cancel_again()

    def add(self, job: Job) -> None:
        """Begin to watch a job."""
        self.jobs.append(job)
        self._interval = self._timing.query

    def cancel(self, job: Job) -> None:
        """Cancel a job, again and again until it is gone."""
        if job in self.jobs:
            self.jobs.remove(job)
        self._cancelled.append(job)
        job.cancel()

    def failed_to_start(self) -> list[Job]:
        """Return the jobs that ended, or ran for too long, without a worker."""
        missing = [job for job in self.jobs if job.last_seen is None]
        began = self._now - self._timing.start
        return [
            job
            for job in missing
            if self._over(job) or (job.running_since or began) < began
        ]

    def lost(self) -> list[Job]:
        """Return the jobs whose workers will not return."""
        return [
            job
            for job in self.jobs
            if job.last_seen is not None
            and self._now - job.last_seen > self._patience(job)
        ]

    def status(self, job: Job) -> str:
        """Return what the queue last reported of a job."""
        if known := self._known.get(job.id):
            return known.text
        return "the queue does not answer" if self._no_answer else "just submitted"

    def remaining(self) -> list[Job]:
        """Query the queue; return the cancelled jobs that are not known to be gone."""
        self._query([])
        if self._query_queue is None:
            return []
        return [job for job in self._cancelled if not self._over(job)]

    def _query(self, jobs: list[Job]) -> None:
        """Record the status of some jobs, and of those that were cancelled."""
        self._queried = self._now = time.monotonic()
        before = {job: status.state for job, status in self._known.items()}
        ids = [job.id for job in (*jobs, *self._cancelled)]
        answer = self._query_queue(ids) if ids and self._query_queue else {}
        self._no_answer = answer is None or self._query_queue is None
        self._known = answer or {}
        changed = before != {job: s.state for job, s in self._known.items()}
        longer = min(self._timing.query_idle, 1.5 * self._interval)
        self._interval = self._timing.query if changed else longer
        for job in jobs:
            if job.running_since is None and self._state(job) is JobState.RUNNING:
                job.running_since = self._now

    def _cancel_again(self) -> None:
        for job in list(self._cancelled):
            if self._over(job):
                self._cancelled.remove(job)
            elif job.cancels >= _CANCELS:
                self._cancelled.remove(job)
                if self._query_queue is not None:
                    logger.warning(
                        "Job %s does not end: %s", job.id, job.cancel_command
                    )
            elif time.monotonic() - job.cancelled_at > self._timing.cancel_again:
                job.cancel()

    def _state(self, job: Job) -> JobState | None:
        known = self._known.get(job.id)
        return known.state if known else None

    def _over(self, job: Job) -> bool:
        state = self._state(job)
        return state is not None and state.over

    def _patience(self, job: Job) -> float:
        # A job that waits again was requeued: its node is down, for example.
        ended = self._over(job) or self._state(job) is JobState.WAITING
        return self._timing.restart if ended else self._timing.lost
