"""The states of jobs, as the commands of a batch system report them."""

from __future__ import annotations

import os
import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from surrogate_flow.cluster.batch.jobqueue import (
    JobQueueCluster,
    PBSCluster,
    SLURMCluster,
)

__all__ = ["BatchQueue", "JobStatus", "Qstat", "Squeue", "State", "Unknown", "queue_of"]

# Exit statuses of PBS: all listed, one unknown, one finished. Others are failures.
_QSTAT = (0, 153, 35)

_TIMEOUT = 20.0  # seconds that a command may take


class State(Enum):
    """What has become of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    GONE = "gone"


@dataclass(frozen=True)
class JobStatus:
    """The state of a job, and the text of the batch system."""

    state: State
    text: str


class BatchQueue(ABC):
    """The command of a batch system that lists jobs."""

    def status(self, jobs: Collection[str]) -> Mapping[str, JobStatus] | None:
        """Return the status of each job by its id; None if the command fails.

        Jobs that the batch system does not know are gone.
        """
        known = self._known(jobs)
        if known is None:
            return None
        gone = JobStatus(State.GONE, "not in the queue")
        return {job: known.get(job, gone) for job in jobs}

    @abstractmethod
    def _known(self, jobs: Collection[str]) -> dict[str, JobStatus] | None:
        """Return the status of those jobs that are known."""


class Squeue(BatchQueue):
    """``squeue`` of Slurm: states such as PENDING, with the reason."""

    _RUNNING = re.compile("RUNNING|SUSPENDED|STOPPED|SIGNALING|RESIZING")
    _GONE = re.compile(
        "BOOT_FAIL|CANCELLED|COMPLETED|COMPLETING|DEADLINE|FAILED|NODE_FAIL|"
        "OUT_OF_MEMORY|PREEMPTED|REVOKED|TIMEOUT"
    )

    def _known(self, jobs: Collection[str]) -> dict[str, JobStatus] | None:
        # By user: with the id of a forgotten job, squeue fails for all.
        mine = f"--user={os.getuid()}"
        text = _run(["squeue", "--noheader", "--format=%i|%T|%r", mine])
        if text is None:
            return None
        known = {}
        for line in text.splitlines():
            job, word, reason = [*line.strip().split("|", 2), "", ""][:3]
            shown = word if reason in ("", "None") else f"{word} ({reason})"
            known[job] = JobStatus(self._state(word), shown)
        return known

    def _state(self, word: str) -> State:
        if self._GONE.fullmatch(word):
            return State.GONE
        running = self._RUNNING.fullmatch(word)
        return State.RUNNING if running else State.WAITING


class Qstat(BatchQueue):
    """``qstat -f`` of PBS: a letter for each job, with a comment."""

    def _known(self, jobs: Collection[str]) -> dict[str, JobStatus] | None:
        text = _run(["qstat", "-f", *sorted(jobs)], accepted=_QSTAT)
        if text is None:
            return None
        numbers = {job.partition(".")[0]: job for job in jobs}
        known = {}
        for part in re.split(r"^Job Id:\s*", text, flags=re.MULTILINE)[1:]:
            # The server's name may follow the number.
            job = numbers.get(part.split(None, 1)[0].partition(".")[0])
            if job is not None:
                known[job] = self._status(part)
        return known

    @classmethod
    def _status(cls, part: str) -> JobStatus:
        letter, comment = cls._value(part, "job_state"), cls._value(part, "comment")
        text = f"state {letter}" + (f": {comment}" if comment else "")
        if letter in ("C", "F", "X"):
            return JobStatus(State.GONE, text)
        running = letter in ("R", "E")
        return JobStatus(State.RUNNING if running else State.WAITING, text)

    @staticmethod
    def _value(part: str, name: str) -> str:
        # Long values continue after a tab, with which the next name may begin, too.
        value = rf"^\s*{name} = (.*(?:\n\t(?![\w.]+ = ).*)*)"
        found = re.search(value, part, re.MULTILINE)
        return re.sub(r"\n\t", "", found[1]).strip() if found else ""


class Unknown(BatchQueue):
    """A batch system whose commands are not known here."""

    def _known(self, jobs: Collection[str]) -> dict[str, JobStatus] | None:
        return None


def queue_of(cluster: JobQueueCluster) -> BatchQueue:
    """Return the queue that a cluster submits to."""
    if isinstance(cluster, SLURMCluster):
        return Squeue()
    return Qstat() if isinstance(cluster, PBSCluster) else Unknown()


def _run(command: Sequence[str], *, accepted: Collection[int] = (0,)) -> str | None:
    """Return what a command prints; None unless its exit status is accepted."""
    # A user's own format of squeue would change the output.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode in accepted else None
