"""One job of workers, and the waiting times of all of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from distributed.scheduler import WorkerState

from surrogate_flow.cluster.batch.jobqueue import JobQueueCluster, Submission
from surrogate_flow.files import last_lines

__all__ = ["Job", "JobRefused", "JobTiming", "output_of"]

logger = logging.getLogger(__name__)

_LINES = 5  # lines of a log that an error shows


@dataclass(frozen=True)
class JobTiming:
    """Seconds between checks of jobs, and until something is given up.

    Attributes
    ----------
    poll : float
        Between two checks of the workers.
    query, query_idle : float
        Between two queries of the queue while jobs change, and at most.
    restart : float
        That workers may be away while their nannies restart them.
    lost : float
        The same, if the queue reports that the job runs, or does not answer.
    start : float
        In which a running job must have a worker.
    retry : float
        Until the next job after one that failed to start; each time twice as long.
    retry_refused : float
        Until the next attempt after the queue has refused a job.
    settle : float
        Over which waits are measured, at least.
    submit : float
        That the batch system may take to accept or cancel a job.
    notice : float
        Before the end of a walltime, to find that a job is idle and to close it.
    cancel_again : float
        Until a job that is still in the queue is cancelled again.
    cancel : float
        In which cancelled jobs must have left the queue when the study ends.
    """

    poll: float = 1.0
    query: float = 5.0
    query_idle: float = 30.0
    restart: float = 3.0
    lost: float = 60.0
    start: float = 300.0
    retry: float = 5.0
    retry_refused: float = 30.0
    settle: float = 30.0
    submit: float = 60.0
    notice: float = 6.0
    cancel_again: float = 10.0
    cancel: float = 15.0


class JobRefused(RuntimeError):
    """The batch system has not accepted a job."""


class Job:
    """A job whose workers connect to the scheduler of a cluster; one thread owns it.

    Parameters
    ----------
    cluster : JobQueueCluster
        Makes the script; it has no jobs of its own.
    number : int
        Part of the names of the workers, unique in the study.
    timeout : float
        Seconds that the batch system may take to accept or cancel the job.
    """

    def __init__(
        self, cluster: JobQueueCluster, number: int, timeout: float = JobTiming.submit
    ) -> None:
        self.number = number
        self.name = f"{cluster.name}-{number}"
        self._cluster, self._timeout = cluster, timeout
        spec, scheduler = cluster.new_spec, cluster.scheduler
        address = getattr(scheduler, "contact_address", None) or scheduler.address
        self._job: Submission = spec["cls"](address, name=self.name, **spec["options"])
        self._too_late = False
        #: When it last had workers (monotonic); None if it never had.
        self.last_seen: float | None = None
        #: When the queue first reported it as running (monotonic).
        self.running_since: float | None = None
        #: When its walltime ends (`time.time`); None if unknown.
        self.ends_at: float | None = None
        #: Whether its workers begin no further simulation.
        self.draining = False
        #: How often it was cancelled, and when (monotonic).
        self.cancels, self.cancelled_at = 0, 0.0

    @property
    def id(self) -> str:
        """The batch system's name of it."""
        return str(self._job.job_id)

    def workers(self) -> list[WorkerState]:
        """Return what the scheduler knows of its workers."""
        return [
            worker
            for worker in list(self._cluster.scheduler.workers.values())
            if self.name in (str(worker.name), str(worker.name).rpartition("-")[0])
        ]

    def submit(self) -> None:
        """Submit it.

        Raises
        ------
        JobRefused
            With the output of the batch system. A job that is accepted only after the
            timeout is cancelled then.
        """
        future = asyncio.run_coroutine_threadsafe(
            self._submit(), self._cluster.loop.asyncio_loop
        )
        try:
            future.result(self._timeout)
        except concurrent.futures.TimeoutError as error:
            self._too_late = True
            raise JobRefused(f"no answer within {self._timeout:g} s") from error
        except (RuntimeError, ValueError, OSError) as error:
            raise JobRefused(output_of(error)) from error
        except BaseException:
            # Ctrl-C: a job that is being submitted is cancelled.
            self._too_late = True
            with contextlib.suppress(Exception):
                future.result(self._timeout)
                self.cancel()
            raise

    async def _submit(self) -> None:
        # Ctrl-C and SIGTERM reach all processes of a run. A submit command that they
        # end may have submitted the job, without printing its id.
        self._job._call = partial(self._job._call, start_new_session=True)
        await self._job.start()
        if self._too_late:
            # Nobody waits for this any more.
            try:
                await self._job.close()
            except Exception as error:
                logger.warning("%s: %r", self.cancel_command, error)

    def cancel(self) -> None:
        """Cancel it; whether it has ended, only the queue knows."""
        try:
            self._cluster.sync(self._job.close, callback_timeout=self._timeout)
        except (OSError, TimeoutError) as error:
            logger.warning("%s: %r", self.cancel_command, error)
        self.cancels, self.cancelled_at = self.cancels + 1, time.monotonic()

    @property
    def cancel_command(self) -> str:
        """The command that cancels it."""
        return f"{self._job.cancel_command} {self.id}"

    def log(self) -> str:
        """Return the last lines of its log, and its path; "" if there is no log."""
        # Names of batch systems: name-17.err, slurm-17.out, script.e17, 17.host.ER
        number = re.compile(rf"(?<!\d){re.escape(self.id)}(?!\d)")
        kinds = re.compile(rf"\.(err|out|ER|OU|[eo]{re.escape(self.id)})$")
        folders = {Path(self._job.log_directory or "."), Path()}
        paths = [path for folder in folders for path in folder.glob(f"*{self.id}*")]
        for path in sorted(paths):
            if number.search(path.name) and kinds.search(path.name):
                with contextlib.suppress(OSError):
                    if lines := last_lines(path, _LINES):
                        return f"Its log {path} ends with:\n" + "\n".join(lines)
        return ""


def output_of(error: Exception) -> str:
    """Return what a submit command has printed, or the error itself."""
    text = str(error)
    printed = re.search(r"stdout:\n(.*)\nstderr:\n(.*)", text, re.DOTALL)
    if printed is None:
        return f"{type(error).__name__}: {text}"
    command = cast(re.Match[str], re.search(r"Command:\n(\S+)", text))[1]
    parts = "\n".join(part.strip() for part in printed.groups() if part.strip())
    return parts or f"{command} has failed without a message"
