"""The jobs of a study: as many as are wanted, whatever happens to each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from distributed import Client

from surrogate_flow.cluster.batch.cancellation import cancel_all, undisturbed
from surrogate_flow.cluster.batch.controller import Bounds, Load, Size
from surrogate_flow.cluster.batch.drain import Departure
from surrogate_flow.cluster.batch.job import Job, Refused
from surrogate_flow.cluster.batch.jobqueue import JobQueueCluster
from surrogate_flow.cluster.batch.registry import Registry
from surrogate_flow.cluster.batch.walltime import walltime_of

__all__ = ["FleetError", "Supervisor"]

logger = logging.getLogger(__name__)

_POLL = 1.0  # seconds between two looks at the workers
_REFUSED = 30.0  # seconds until the next attempt, when the queue has refused a job
_STILLBORN = 3  # jobs in a row that end without a worker before the study does
_PAUSE = 5.0  # seconds after a job that ended without a worker; each time twice as many
_LONGEST = 300.0  # the same, at most
_SLOWEST = 600.0  # seconds, at most, over which waits are measured
_END = 10.0  # seconds for a look that is under way, when the study ends
_SETTLE = 30.0  # seconds, at least, over which waits are measured


class FleetError(RuntimeError):
    """There are no jobs, and there will be none."""


class Supervisor:
    """As many jobs stay as are wanted.

    A job that is lost (killed, its node down, its time over) is replaced; one whose
    time is running out leaves in order, and is replaced meanwhile. At most a quarter
    more jobs than wanted are there at a time, and at least one more.

    Parameters
    ----------
    cluster : JobQueueCluster
        With a scheduler in this process, and without jobs.
    bounds : Bounds
        Number of jobs.

    Raises
    ------
    FleetError
        On entering, if the batch system refuses the first job, with its words.

    Notes
    -----
    One thread looks, submits and replaces. All methods may be called from any.
    """

    def __init__(self, cluster: JobQueueCluster, bounds: Bounds) -> None:
        self._cluster = cluster
        self._size = Size(bounds)
        self._load: Callable[[], Load] = Load
        self._numbers = self._stillborn = 0
        self._next = 0.0
        self._refusal = ""
        self._error: BaseException | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        #: Jobs that were replaced, whatever the cause.
        self.replaced = 0

    def __enter__(self) -> Self:
        cluster = self._cluster
        walltime = walltime_of(cluster.job_script())
        self._client = Client(
            cluster.scheduler_address, security=cluster.security, set_as_default=False
        )
        self._roster = Registry(cluster, self._client, timed=walltime is not None)
        self._departure = Departure(cluster, self._client, walltime)
        try:
            self._submit()
        except Refused as refused:
            self._client.close()
            raise FleetError(
                f"The batch system refuses the job: {refused}\nChange the arguments "
                "under data.cluster; `surrogate-flow plan` shows the job's script."
            ) from refused
        except BaseException:
            self._client.close()
            raise
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        try:
            self._thread.join(_END)
        finally:
            # After a second Ctrl-C too; a third one waits.
            with undisturbed():
                try:
                    cancel_all(self._roster, self._thread)
                finally:
                    self._client.close()

    def follow(self, load: Callable[[], Load]) -> None:
        """Have the number of jobs follow what `load` tells, within the bounds."""
        self._load = load

    def check(self) -> None:
        """Raise what makes it impossible to go on, if anything does.

        Raises
        ------
        FleetError
            If jobs end again and again before a worker of theirs has come.
        """
        if self._error is not None:
            raise self._error

    @property
    def wanted(self) -> int:
        """Number of jobs that shall be at work."""
        return self._size.wanted

    @property
    def at_work(self) -> int:
        """Number of jobs that have workers, and go on."""
        return len(self._roster.at_work)

    def words(self) -> str:
        """Say how many jobs are at work, and what holds up the others."""
        said = [f"{self.at_work} of {self.wanted} jobs have workers"]
        waiting = [job for job in self._roster.staying if job.seen is None]
        said += [f"job {job.id}: {self._roster.standing(job)}" for job in waiting[:3]]
        if self._refusal:
            said.append(f"the batch system refuses more: {self._refusal}")
        return "; ".join(said)

    def leaving(self) -> set[str]:
        """Return the addresses of the workers that begin no further simulation."""
        jobs = [job for job in list(self._roster.jobs) if job.leaving]
        workers = self._roster.workers().items()
        return {a for a, name in workers if any(job.owns(name) for job in jobs)}

    def _run(self) -> None:
        try:
            while not self._closing.wait(_POLL):
                try:
                    self._tick()
                except (OSError, TimeoutError) as error:
                    # Somebody was too busy: the next look will show.
                    logger.debug("Could not look after the jobs: %r", error)
        except BaseException as error:
            # Handed to the trainer by check(); this thread has nobody else to tell.
            self._error = error

    def _tick(self) -> None:
        roster, load = self._roster, self._load()
        before = set(roster.at_work)
        roster.look()
        if set(roster.at_work) - before:
            self._stillborn = 0
        self._bury()
        for job in roster.lost():
            self._give_up(job)
        for job in roster.at_work:
            if self._departure.due(job, load.longest):
                logger.info("Job %s leaves before its time is over", job.id)
                job.leaving = True
                self.replaced += 1
        self._fit(load)
        for job in [job for job in roster.jobs if job.leaving]:
            if self._departure.over(job):
                self._departure.end(job)
                roster.cancel(job)

    def _bury(self) -> None:
        roster = self._roster
        for job in roster.stillborn():
            # If it runs without workers, or the queue was wrong.
            roster.cancel(job)
            self._stillborn += 1
            pause = min(_PAUSE * 2 ** (self._stillborn - 1), _LONGEST)
            self._next = time.monotonic() + pause
            words = (
                f"No worker of job {job.id} has come ({roster.standing(job)}), and it "
                f"is given up. {job.log()}"
            )
            if self._stillborn >= _STILLBORN and not roster.at_work:
                raise FleetError(
                    f"{words}\nSo were the {self._stillborn - 1} before. Usual cause: "
                    "a node without this Python environment, or from which the "
                    f"scheduler at {self._cluster.scheduler_address} is not to be "
                    "reached. Set python, job_script_prologue or interface under "
                    "data.cluster; `surrogate-flow plan` shows the job's script."
                )
            logger.warning("%s\nAnother one is submitted in %g s.", words, pause)

    def _give_up(self, job: Job) -> None:
        standing = self._roster.standing(job)
        self._roster.cancel(job)
        if not job.leaving:
            self.replaced += 1
            logger.warning(
                "Job %s is lost (%s): its simulations run again elsewhere, and another "
                "job is submitted.",
                job.id,
                standing,
            )

    def _fit(self, load: Load) -> None:
        """Submit what is missing, and have leave what is too much."""
        now, roster = time.monotonic(), self._roster
        before = self.wanted
        self._size.settle = min(max(_SETTLE, 2 * load.longest), _SLOWEST)
        wanted = self._size.update(now, load.waits, len(roster.at_work))
        if self.wanted != before:
            logger.info("Jobs wanted: %d, before %d", self.wanted, before)
        for job in self._surplus(wanted):
            if job.seen is None:
                roster.cancel(job)
            else:
                job.leaving = True
        # Those that leave may take long: what the user asked for is what a site sees.
        most = wanted + max(1, wanted // 4)
        while (
            len(roster.staying) < wanted
            and len(roster.jobs) < most
            and now >= self._next
            and not self._closing.is_set()
        ):
            try:
                self._submit()
                self._refusal = ""
            except Refused as refused:
                self._next = now + _REFUSED
                self._tell_refusal(str(refused))

    def _surplus(self, wanted: int) -> list[Job]:
        """Return those too many: first that wait, then with the least time left."""
        staying = self._roster.staying
        staying.sort(key=lambda job: (job.seen is not None, job.until or 0.0))
        return staying[: max(0, len(staying) - wanted)]

    def _tell_refusal(self, words: str) -> None:
        if self._refusal != words:
            self._refusal = words
            logger.warning(
                "The batch system refuses a further job, which is tried again every "
                "%g s: %s",
                _REFUSED,
                words,
            )

    def _submit(self) -> None:
        # A number is used once, whatever becomes of the job.
        job = Job(self._cluster, self._numbers)
        self._numbers += 1
        job.submit()
        self._roster.add(job)
        logger.info("Job %s is in the queue", job.id)
