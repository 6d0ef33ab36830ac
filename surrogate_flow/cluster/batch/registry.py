"""The jobs of a study, called over: which have workers, and what holds up others."""

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

from surrogate_flow.cluster.batch import batch_queue as queue
from surrogate_flow.cluster.batch.batch_queue import Standing, State
from surrogate_flow.cluster.batch.job import Job
from surrogate_flow.cluster.batch.jobqueue import JobQueueCluster
from surrogate_flow.cluster.batch.walltime import UNTIL

__all__ = ["Registry"]

logger = logging.getLogger(__name__)

_ASK = 5.0  # seconds between two questions to the queue while something changes
_SELDOM = 30.0  # the same, at most, while nothing does
_RETURN = 3.0  # seconds that workers may be away while nannies restart them
_LOST = 60.0  # the same, if the queue says that the job runs, or says nothing
_BIRTH = 300.0  # seconds in which workers of a job that runs must come
_AGAIN = 10.0  # seconds until a job that is still there is cancelled once more
_LEFT = 6  # times that it is


class Registry:
    """All jobs that were submitted, until the queue says that they are gone.

    Parameters
    ----------
    cluster : JobQueueCluster
    client : distributed.Client
        Of it.
    timed : bool
        Whether jobs know when their time is over.

    Notes
    -----
    Not locked: one thread calls `look` and changes; the others may read.
    """

    def __init__(
        self, cluster: JobQueueCluster, client: Client, *, timed: bool
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._queue = queue.of(cluster)
        self._timed = timed
        self._standing: Mapping[str, Standing] = {}
        self._silent = False
        self._asked, self._pause = -_ASK, _ASK
        self._questions: dict[int, concurrent.futures.Future[Any]] = {}
        # Cancelled, but perhaps not gone: when that was last tried, and how often.
        self._cancelled: dict[str, tuple[Job, float, int]] = {}
        self.now = time.monotonic()
        self.jobs: list[Job] = []

    @property
    def at_work(self) -> list[Job]:
        """Jobs that have had workers, and go on."""
        return [job for job in self.jobs if job.seen is not None and not job.leaving]

    @property
    def staying(self) -> list[Job]:
        """Jobs that do not leave, in the queue and at work."""
        return [job for job in self.jobs if not job.leaving]

    def look(self) -> None:
        """Note who has workers, and what the queue says of the others."""
        self.now = now = time.monotonic()
        workers = self.workers()
        for job in self.jobs:
            if mine := [address for address, name in workers.items() if job.owns(name)]:
                job.seen = now
                if self._timed and job.until is None:
                    self._learn_until(job, mine[0])
        away = [job for job in self.jobs if job.seen != now]
        if any(job.seen is not None for job in away):
            # Something has happened.
            self._pause = _ASK
        if now - self._asked >= self._pause:
            self.ask(away)
            self._cancel_again()

    def ask(self, jobs: list[Job]) -> None:
        """Note what the queue says of some jobs, and of those that were cancelled."""
        self._asked = self.now = time.monotonic()
        ids = [job.id for job in jobs] + list(self._cancelled)
        answer = self._queue.look(ids) if ids else {}
        self._silent = answer is None
        told = answer or {}
        changed = told.keys() != self._standing.keys() or any(
            told[job].state is not self._standing[job].state for job in told
        )
        self._pause = _ASK if changed else min(_SELDOM, 1.5 * self._pause)
        self._standing = told
        for job in jobs:
            if job.runs is None and self._state(job.id) is State.RUNNING:
                job.runs = self.now

    def workers(self) -> dict[str, str]:
        """Return address and name of each worker."""
        workers = list(self._cluster.scheduler.workers.values())
        return {worker.address: str(worker.name) for worker in workers}

    def add(self, job: Job) -> None:
        """Begin to look after a job."""
        self.jobs.append(job)
        self._pause = _ASK

    def cancel(self, job: Job) -> None:
        """End a job, and do not rest until it is gone."""
        if job in self.jobs:
            self.jobs.remove(job)
        job.cancel()
        self._cancelled[job.id] = (job, time.monotonic(), 1)

    def stillborn(self) -> list[Job]:
        """Return the jobs that ended, or ran for too long, without a worker."""
        new = [job for job in self.jobs if job.seen is None]
        return [
            job
            for job in new
            if self._state(job.id) is State.GONE
            or (job.runs is not None and self.now - job.runs > _BIRTH)
        ]

    def lost(self) -> list[Job]:
        """Return the jobs whose workers are gone for good."""
        return [
            job
            for job in self.jobs
            if job.seen is not None and self.now - job.seen > self._patience(job)
        ]

    def standing(self, job: Job) -> str:
        """Return what the queue said of a job last."""
        told = self._standing.get(job.id)
        if told is not None:
            return told.words
        return "the queue has said nothing" if self._silent else "just submitted"

    def remaining(self) -> list[Job]:
        """Ask, and return the cancelled jobs that are not known to be gone."""
        self.ask([])
        if isinstance(self._queue, queue.Silent):
            return []
        return [
            job
            for job, _, _ in self._cancelled.values()
            if self._state(job.id) is not State.GONE
        ]

    def _cancel_again(self) -> None:
        now = time.monotonic()
        for name, (job, since, times) in list(self._cancelled.items()):
            if self._state(name) is State.GONE or times >= _LEFT:
                del self._cancelled[name]
                if times >= _LEFT and not isinstance(self._queue, queue.Silent):
                    logger.warning("Job %s does not end: %s", name, job.cancel_command)
            elif now - since > _AGAIN:
                job.cancel()
                self._cancelled[name] = (job, time.monotonic(), times + 1)

    def _state(self, name: str) -> State | None:
        told = self._standing.get(name)
        return told.state if told else None

    def _patience(self, job: Job) -> float:
        state = self._state(job.id)
        # A job that waits has been put back into the queue: its node is down, say.
        return _RETURN if state in (State.GONE, State.WAITING) else _LOST

    def _learn_until(self, job: Job, worker: str) -> None:
        """Ask a worker when the time of its job is over, and wait for nobody."""
        question = self._questions.get(job.number)
        loop = cast(Any, self._client.loop).asyncio_loop
        if question is None:
            self._questions[job.number] = asyncio.run_coroutine_threadsafe(
                # Not os.environ.get, which would take this process's own along.
                self._client._run(
                    os.getenv, UNTIL, workers=[worker], on_error="ignore"
                ),
                loop,
            )
        elif question.done():
            del self._questions[job.number]
            if question.exception() is None and (told := question.result()):
                said = told.get(worker)
                job.until = float(said) if said else math.inf
