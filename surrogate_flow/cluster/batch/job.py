"""One job of workers: submitted, at work, leaving, cancelled."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import re
from functools import partial
from pathlib import Path
from typing import cast

from surrogate_flow.cluster.batch.jobqueue import JobQueueCluster, Submission

__all__ = ["ANSWER", "Job", "Refused"]

logger = logging.getLogger(__name__)

ANSWER = 60.0  # seconds that a batch system may be too busy to take a word
_LINES = 5  # of a log, that an error shows
_BYTES = 1 << 16  # of its end, in which they are


class Refused(RuntimeError):
    """The batch system has not taken a job."""


class Job:
    """A job whose workers connect to the scheduler of a cluster.

    Parameters
    ----------
    cluster : JobQueueCluster
        Knows what a job of its own looks like; it has none itself.
    number : int
        Makes the names of its workers, which no other job's may have.

    Notes
    -----
    Not locked: one thread owns it.
    """

    def __init__(self, cluster: JobQueueCluster, number: int) -> None:
        self.number = number
        self.name = f"{cluster.name}-{number}"
        spec = cluster.new_spec
        scheduler = cluster.scheduler
        address = getattr(scheduler, "contact_address", None) or scheduler.address
        self._cluster = cluster
        self._job: Submission = spec["cls"](address, name=self.name, **spec["options"])
        self._late = False
        #: When workers of it were last there; None if none has come yet.
        self.seen: float | None = None
        #: When the queue first said that it runs.
        self.runs: float | None = None
        #: `time.time` at which the batch system will end it; None if nobody knows, or
        #: knows it yet.
        self.until: float | None = None
        #: Its workers begin no further simulation.
        self.leaving = False

    @property
    def id(self) -> str:
        """The batch system's name of it."""
        return str(self._job.job_id)

    def owns(self, worker: str) -> bool:
        """Whether a worker of this name is one of its processes."""
        return worker == self.name or worker.rpartition("-")[0] == self.name

    def submit(self) -> None:
        """Hand it to the batch system.

        Raises
        ------
        Refused
            With the words of the batch system. If it has none for a minute, and takes
            the job after all, the job is cancelled then.
        """
        future = asyncio.run_coroutine_threadsafe(
            self._submit(), self._cluster.loop.asyncio_loop
        )
        try:
            future.result(ANSWER)
        except concurrent.futures.TimeoutError as error:
            self._late = True
            raise Refused(f"no answer within {ANSWER:g} s") from error
        except (RuntimeError, ValueError, OSError) as error:
            raise Refused(_words(error)) from error
        except BaseException:
            # Ctrl-C: what is being handed over is taken back.
            self._late = True
            with contextlib.suppress(Exception):
                future.result(ANSWER)
                self.cancel()
            raise

    async def _submit(self) -> None:
        # Ctrl-C and SIGTERM come to all processes of a run. A command that ends by them
        # may have handed the job over, and would not say which it is.
        self._job._call = partial(self._job._call, start_new_session=True)
        await self._job.start()
        if self._late:
            await self._job.close()

    def cancel(self) -> None:
        """Have the batch system end it; one that has ended is no error.

        Whether it did is for the queue to tell.
        """
        try:
            self._cluster.sync(self._job.close, callback_timeout=ANSWER)
        except (OSError, TimeoutError) as error:
            logger.warning("%s: %r", self.cancel_command, error)

    @property
    def cancel_command(self) -> str:
        """What a person would type to end it."""
        return f"{self._job.cancel_command} {self.id}"

    def log(self) -> str:
        """Return the last lines that it wrote, and where; "" if there is no log."""
        # As batch systems name them: name-17.err, slurm-17.out, script.e17, 17.host.ER
        number = re.compile(rf"(?<!\d){re.escape(self.id)}(?!\d)")
        kinds = re.compile(rf"\.(err|out|ER|OU|[eo]{re.escape(self.id)})$")
        places = [
            place
            for folder in {Path(self._job.log_directory or "."), Path()}
            for place in folder.glob(f"*{self.id}*")
            if number.search(place.name) and kinds.search(place.name)
        ]
        for place in sorted(places):
            with contextlib.suppress(OSError):
                if lines := _tail(place):
                    return f"Its log {place} ends with:\n" + "\n".join(lines)
        return ""


def _tail(place: Path) -> list[str]:
    with place.open("rb") as file:
        file.seek(max(0, place.stat().st_size - _BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-_LINES:]


def _words(error: Exception) -> str:
    """Return what a submit command has printed, or the error itself."""
    text = str(error)
    printed = re.search(r"stdout:\n(.*)\nstderr:\n(.*)", text, re.DOTALL)
    if printed is None:
        return f"{type(error).__name__}: {text}"
    command = cast(re.Match[str], re.search(r"Command:\n(\S+)", text))[1]
    said = "\n".join(part.strip() for part in printed.groups() if part.strip())
    return said or f"{command} has failed, and said nothing"
