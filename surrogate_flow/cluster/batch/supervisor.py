"""The jobs of a study: as many as are wanted, whatever happens to each."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from surrogate_flow.cluster.batch.controller import Bounds, JobCountController, Load
from surrogate_flow.cluster.batch.job import Job, JobRefused, JobTiming
from surrogate_flow.cluster.batch.jobqueue import JobQueueCluster
from surrogate_flow.cluster.batch.registry import Registry
from surrogate_flow.cluster.batch.walltime import Drain, walltime_of
from surrogate_flow.fields.errors import UserError
from surrogate_flow.threads import LoudThread, repeat

__all__ = ["JobError", "Supervisor"]

logger = logging.getLogger(__name__)

_FAILURES = 3  # jobs in a row that fail to start before the study ends
_LONGEST_RETRY = 300.0  # seconds, at most, until the next job after such a failure
_LONGEST_SETTLE = 600.0  # seconds, at most, over which waits are measured
_JOIN = 10.0  # seconds for the thread's present tick when the study ends


class JobError(UserError, RuntimeError):
    """The batch system runs no jobs for this study."""


class Supervisor:
    """Keeps as many jobs as are wanted.

    A lost job (killed, its node down, its walltime over) is replaced. A job whose
    walltime is nearly over drains, and is replaced meanwhile. There are at most a
    quarter more jobs than wanted at a time, and at least one more.

    Parameters
    ----------
    cluster : JobQueueCluster
        With a scheduler in this process, and without jobs.
    bounds : Bounds
        Number of jobs.
    per_job : int
        Simulations that a job runs at once.
    timing : JobTiming

    Raises
    ------
    JobError
        On entering, if the batch system refuses the first job, with its output.

    Notes
    -----
    One thread watches, submits and replaces. All methods may be called from any.
    """

    def __init__(
        self,
        cluster: JobQueueCluster,
        bounds: Bounds,
        *,
        per_job: int = 1,
        timing: JobTiming = JobTiming(),  # noqa: B008 - frozen
    ) -> None:
        self._cluster, self._timing = cluster, timing
        self._controller = JobCountController(bounds, per_job)
        self._registry = Registry(cluster, timing)
        self._drain = Drain(cluster, walltime_of(cluster.job_script()), timing.notice)
        self._load = Load()
        self._submitted = self._failures = 0
        self._next_submit = 0.0
        self._refusal = ""
        self._closing = threading.Event()
        self._thread = LoudThread(self._run, "jobs")
        #: Jobs that were replaced, whatever the cause.
        self.replaced = 0

    def __enter__(self) -> Self:
        try:
            self._submit()
        except JobRefused as refused:
            if isinstance(absent := refused.__cause__, FileNotFoundError):
                raise JobError(
                    f"There is no {absent.filename} on this machine. Type the command "
                    "where jobs are submitted, or without data.cluster."
                ) from refused
            raise JobError(
                f"The batch system refuses the job: {refused}\nChange the arguments "
                "under data.cluster; `surrogate-flow plan` shows the job's script."
            ) from refused
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        try:
            self._thread.join(_JOIN)
        finally:
            # After a second Ctrl-C, too; a third one waits.
            with _interrupts_ignored():
                self._cancel_all()

    def update(self, load: Load) -> None:
        """Let the number of jobs follow the load of the study; never blocks."""
        self._load = load

    def check(self) -> None:
        """Raise the error that ended the supervision, if any.

        Raises
        ------
        JobError
            If jobs end again and again before they have a worker.
        """
        self._thread.check()

    @property
    def wanted(self) -> int:
        """Number of jobs that should be at work."""
        return self._controller.wanted

    @property
    def at_work(self) -> int:
        """Number of jobs that have workers, and do not drain."""
        return len(self._registry.at_work)

    def describe(self) -> str:
        """Return how many jobs are at work, and what holds up the others."""
        parts = [f"{self.at_work} of {self.wanted} jobs have workers"]
        waiting = [job for job in self._registry.staying if job.last_seen is None]
        parts += [f"job {job.id}: {self._registry.status(job)}" for job in waiting[:3]]
        if self._refusal:
            parts.append(f"the batch system refuses more: {self._refusal}")
        return "; ".join(parts)

    def draining_workers(self) -> set[str]:
        """Return the addresses of the workers that begin no further simulation."""
        jobs = [job for job in list(self._registry.jobs) if job.draining]
        return {worker.address for job in jobs for worker in job.workers()}

    def _run(self) -> None:
        what = "The scheduler or the batch system did not answer: jobs are not checked"
        repeat(self._tick, self._closing, self._timing.poll, what)

    def _tick(self) -> None:
        registry, load = self._registry, self._load
        before = set(registry.at_work)
        registry.update()
        if set(registry.at_work) - before:
            self._failures = 0
        for job in registry.failed_to_start():
            self._give_up(job)
        for job in registry.lost():
            self._replace(job)
        for job in registry.at_work:
            if self._drain.due(job, load.longest):
                logger.info("Job %s drains before its walltime is over", job.id)
                job.draining = True
                self.replaced += 1
        self._adjust(load)
        for job in [job for job in registry.jobs if job.draining]:
            if self._drain.finished(job):
                self._drain.close(job)
                registry.cancel(job)

    def _give_up(self, job: Job) -> None:
        """Cancel a job that failed to start; the next one comes later each time."""
        status = self._registry.status(job)
        # It may run without workers, or the queue may be wrong.
        self._registry.cancel(job)
        self._failures += 1
        pause = min(self._timing.retry * 2 ** (self._failures - 1), _LONGEST_RETRY)
        self._next_submit = time.monotonic() + pause
        text = f"Job {job.id} has ended without a worker ({status}). {job.log()}"
        if self._failures >= _FAILURES and not self._registry.at_work:
            raise JobError(
                f"{text}\nSo have the {self._failures - 1} before. Usual cause: a node "
                "without this Python environment, or from which the scheduler at "
                f"{self._cluster.scheduler_address} cannot be reached. Set "
                "data.cluster.interface, or python or job_script_prologue under "
                "data.cluster.options; `surrogate-flow plan` shows the job's script."
            )
        logger.warning("%s\nAnother one is submitted in %g s.", text, pause)

    def _replace(self, job: Job) -> None:
        """Cancel what is left of a lost job; `_adjust` submits the next."""
        status = self._registry.status(job)
        self._registry.cancel(job)
        if not job.draining:
            self.replaced += 1
            logger.warning(
                "Job %s is lost (%s): its simulations run again elsewhere, and another "
                "job is submitted.",
                job.id,
                status,
            )

    def _adjust(self, load: Load) -> None:
        """Submit jobs that are missing, and drain those too many."""
        now, registry, before = time.monotonic(), self._registry, self.wanted
        settle = max(self._timing.settle, 2 * load.longest)
        self._controller.settle = min(settle, _LONGEST_SETTLE)
        wanted = self._controller.update(now, load, len(registry.at_work))
        if self.wanted != before:
            logger.info("Jobs wanted: %d, before %d", self.wanted, before)
        # Too many: first jobs without workers, then those with the least time.
        staying = registry.staying
        staying.sort(key=lambda job: (job.last_seen is not None, job.ends_at or 0.0))
        for job in staying[: max(0, len(staying) - wanted)]:
            if job.last_seen is None:
                registry.cancel(job)
            else:
                job.draining = True
        # Draining may take long, and a site sees all jobs.
        most = wanted + max(1, wanted // 4)
        while (
            len(registry.staying) < wanted
            and len(registry.jobs) < most
            and now >= self._next_submit
            and not self._closing.is_set()
        ):
            try:
                self._submit()
                self._refusal = ""
            except JobRefused as refused:
                pause = self._timing.retry_refused
                self._next_submit = now + pause
                if self._refusal != str(refused):
                    self._refusal = str(refused)
                    logger.warning(
                        "The batch system refuses a further job, which is submitted "
                        "again every %g s: %s",
                        pause,
                        refused,
                    )

    def _submit(self) -> None:
        # Each number is used once, whatever becomes of the job.
        job = Job(self._cluster, self._submitted, self._timing.submit)
        self._submitted += 1
        job.submit()
        self._registry.add(job)
        logger.info("Job %s is in the queue", job.id)

    def _cancel_all(self) -> None:
        """Cancel every job, wait until all are gone, and name those that are not."""
        registry = self._registry
        for job in list(registry.jobs):
            registry.cancel(job)
        if self._thread.is_alive():
            logger.info("Waiting for the batch system's answer, to cancel its job too.")
            self._thread.join(self._timing.submit)
        # A job that was being submitted meanwhile.
        for job in list(registry.jobs):
            registry.cancel(job)
        if self._thread.is_alive():
            logger.warning(
                "The batch system has not answered whether it accepted a last job. "
                "Look for it in the queue, and cancel it."
            )
        deadline = time.monotonic() + self._timing.cancel
        while (remaining := registry.remaining()) and time.monotonic() < deadline:
            time.sleep(0.2)
        # A scheduler that ends before its workers logs an error for each.
        while self._cluster.scheduler.workers and time.monotonic() < deadline:
            time.sleep(0.1)
        for job in remaining:
            logger.warning(
                "Job %s may still be in the queue (%s). End it: %s",
                job.id,
                registry.status(job),
                job.cancel_command,
            )


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
