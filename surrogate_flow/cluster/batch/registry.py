"""The jobs of a study: which have workers, and what holds up the others."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import math
import os
import time
from collections.abc import Mapping
from typing import Any, cast

from distributed import Client

from surrogate_flow.cluster.batch.batch_queue import (
    JobStatus,
    State,
    Unknown,
    queue_of,
)
from surrogate_flow.cluster.batch.job import Job, Timing
from surrogate_flow.cluster.batch.jobqueue import JobQueueCluster
from surrogate_flow.cluster.batch.walltime import UNTIL

__all__ = ["Registry"]

logger = logging.getLogger(__name__)

_CANCEL_AGAIN = 10.0  # seconds until a job in the queue is cancelled again
_CANCELS = 6  # times that a job is cancelled


class Registry:
    """All submitted jobs, until the queue reports that they are gone.

    Parameters
    ----------
    cluster : JobQueueCluster
    client : distributed.Client
        A client of the cluster.
    timed : bool
        Whether jobs have a walltime.
    timing : Timing

    Notes
    -----
    Not locked: one thread updates it; the others may read.
    """

    def __init__(
        self, cluster: JobQueueCluster, client: Client, *, timed: bool, timing: Timing
    ) -> None:
        self._cluster, self._client = cluster, client
        self._queue = queue_of(cluster)
        self._timed, self._timing = timed, timing
        self._status: Mapping[str, JobStatus] = {}
        self._no_answer = False
        self._queried, self._interval = -math.inf, timing.query
        self._end_queries: dict[int, concurrent.futures.Future[Any]] = {}
        # Jobs that may not be gone: when they were last cancelled, and how often.
        self._cancelled: dict[str, tuple[Job, float, int]] = {}
        self.now = time.monotonic()
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
        self.now = now = time.monotonic()
        workers = self.workers()
        for job in self.jobs:
            if mine := [address for address, name in workers.items() if job.owns(name)]:
                job.last_seen = now
                if self._timed and job.ends_at is None:
                    self._query_end(job, mine[0])
        away = [job for job in self.jobs if job.last_seen != now]
        if any(job.last_seen is not None for job in away):
            self._interval = self._timing.query
        if now - self._queried >= self._interval:
            self._query(away)
            self._cancel_again()

    def workers(self) -> dict[str, str]:
        """Return address and name of each worker."""
        workers = list(self._cluster.scheduler.workers.values())
        return {worker.address: str(worker.name) for worker in workers}

    def add(self, job: Job) -> None:
        """Begin to watch a job."""
        self.jobs.append(job)
        self._interval = self._timing.query

    def cancel(self, job: Job) -> None:
        """Cancel a job, again and again until it is gone."""
        if job in self.jobs:
            self.jobs.remove(job)
        job.cancel()
        self._cancelled[job.id] = (job, time.monotonic(), 1)

    def failed_to_start(self) -> list[Job]:
        """Return the jobs that ended, or ran for too long, without a worker."""
        limit = self._timing.start
        return [
            job
            for job in self.jobs
            if job.last_seen is None
            and (
                self._state(job.id) is State.GONE
                or (job.running_since and self.now - job.running_since > limit)
            )
        ]

    def lost(self) -> list[Job]:
        """Return the jobs whose workers are gone for good."""
        return [
            job
            for job in self.jobs
            if job.last_seen is not None
            and self.now - job.last_seen > self._patience(job)
        ]

    def status(self, job: Job) -> str:
        """Return what the queue last said of a job."""
        known = self._status.get(job.id)
        if known is not None:
            return known.text
        return "the queue does not answer" if self._no_answer else "just submitted"

    def remaining(self) -> list[Job]:
        """Query the queue; return the cancelled jobs that are not known to be gone."""
        self._query([])
        if isinstance(self._queue, Unknown):
            return []
        jobs = [job for job, _, _ in self._cancelled.values()]
        return [job for job in jobs if self._state(job.id) is not State.GONE]

    def _query(self, jobs: list[Job]) -> None:
        """Record the status of some jobs, and of those that were cancelled."""
        self._queried = self.now = time.monotonic()
        ids = [job.id for job in jobs] + list(self._cancelled)
        answer = self._queue.status(ids) if ids else {}
        self._no_answer = answer is None
        known = answer or {}
        changed = known.keys() != self._status.keys() or any(
            known[job].state is not self._status[job].state for job in known
        )
        longer = min(self._timing.query_idle, 1.5 * self._interval)
        self._interval = self._timing.query if changed else longer
        self._status = known
        for job in jobs:
            if job.running_since is None and self._state(job.id) is State.RUNNING:
                job.running_since = self.now

    def _cancel_again(self) -> None:
        now = time.monotonic()
        for name, (job, since, times) in list(self._cancelled.items()):
            if self._state(name) is State.GONE or times >= _CANCELS:
                del self._cancelled[name]
                if times >= _CANCELS and not isinstance(self._queue, Unknown):
                    logger.warning("Job %s does not end: %s", name, job.cancel_command)
            elif now - since > _CANCEL_AGAIN:
                job.cancel()
                self._cancelled[name] = (job, time.monotonic(), times + 1)

    def _state(self, name: str) -> State | None:
        known = self._status.get(name)
        return known.state if known else None

    def _patience(self, job: Job) -> float:
        # A job that waits again was requeued: its node is down, for example.
        ended = self._state(job.id) in (State.GONE, State.WAITING)
        return self._timing.restart if ended else self._timing.lost

    def _query_end(self, job: Job, worker: str) -> None:
        """Read from a worker when the walltime of its job ends; never blocks."""
        query = self._end_queries.get(job.number)
        loop = cast(Any, self._client.loop).asyncio_loop
        if query is None:
            self._end_queries[job.number] = asyncio.run_coroutine_threadsafe(
                # Not os.environ.get, which would be pickled with this environment.
                self._client._run(
                    os.getenv, UNTIL, workers=[worker], on_error="ignore"
                ),
                loop,
            )
        elif query.done():
            del self._end_queries[job.number]
            if query.exception() is None and (answers := query.result()):
                end = answers.get(worker)
                job.ends_at = float(end) if end else math.inf
