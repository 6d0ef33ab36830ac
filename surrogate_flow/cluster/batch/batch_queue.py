"""The states of jobs, as the commands of a batch system report them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from surrogate_flow.cluster.batch.jobqueue import (
    JobQueueCluster,
    PBSCluster,
    SLURMCluster,
)

__all__ = ["JobState", "JobStatus", "Statuses", "qstat", "queue_of", "squeue"]

_TIMEOUT = 20.0  # seconds that a command may take

# States of Slurm; in all others a job waits.
_RUNNING = {"RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"}
_GONE = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}


class JobState(Enum):
    """What has become of a job; one that is ending may still write its files."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDING = "ending"
    GONE = "gone"

    @property
    def over(self) -> bool:
        """Whether its workers are gone, or about to be."""
        return self in (JobState.ENDING, JobState.GONE)


@dataclass(frozen=True)
class JobStatus:
    """The state of a job, and the text of the batch system."""

    state: JobState
    text: str


Statuses = dict[str, JobStatus]
"""The status of each job that was asked for, by its id."""

_UNLISTED = JobStatus(JobState.GONE, "not in the queue")


def queue_of(
    cluster_class: type[JobQueueCluster],
) -> Callable[[Collection[str]], Statuses | None] | None:
    """Return what lists the jobs of a cluster; None if its command is not known."""
    if issubclass(cluster_class, SLURMCluster):
        return squeue
    return qstat if issubclass(cluster_class, PBSCluster) else None


def hosts_of(cluster_class: type[JobQueueCluster]) -> set[str]:
    """Return the hosts of a batch system, without domains; none if it does not say."""
    text, names = None, r"^(\S+)"
    if issubclass(cluster_class, SLURMCluster):
        text = _run(["sinfo", "--noheader", "--Node", "--format=%n"])
    elif issubclass(cluster_class, PBSCluster):
        text, names = _run(["pbsnodes", "-a"]), r"^\s+Mom = (\S+)"
    found = re.findall(names, text or "", re.MULTILINE)
    return {host.partition(".")[0] for host in found}


def squeue(jobs: Collection[str]) -> Statuses | None:
    """Return what ``squeue`` of Slurm reports of jobs; None if it fails."""
    # By user: with the id of a forgotten job, squeue fails for all.
    mine = f"--user={os.getuid()}"
    text = _run(["squeue", "--noheader", "--format=%i|%T|%r", mine])
    if text is None:
        return None
    known = {}
    for line in text.splitlines():
        job, word, reason = [*line.strip().split("|", 2), "", ""][:3]
        shown = word if reason in ("", "None") else f"{word} ({reason})"
        known[job] = JobStatus(_state(word, _RUNNING, {"COMPLETING"}, _GONE), shown)
    return {job: known.get(job, _UNLISTED) for job in jobs}


def qstat(jobs: Collection[str]) -> Statuses | None:
    """Return what ``qstat -f`` of PBS reports of jobs; None if it fails."""
    # Exit statuses: all are listed, one is unknown, one has finished.
    text = _run(["qstat", "-f", *sorted(jobs)], accepted=(0, 153, 35))
    if text is None:
        return None
    known = {}
    for part in re.split(r"^Job Id:\s*", text, flags=re.MULTILINE)[1:]:
        letter, comment = _value(part, "job_state"), _value(part, "comment")
        shown = f"state {letter}" + (f": {comment}" if comment else "")
        status = JobStatus(_state(letter, {"R"}, {"E"}, {"C", "F", "X"}), shown)
        known[_number(part.split(None, 1)[0])] = status
    return {job: known.get(_number(job), _UNLISTED) for job in jobs}


def _state(word: str, *words: Collection[str]) -> JobState:
    states = (JobState.RUNNING, JobState.ENDING, JobState.GONE)
    known = zip(states, words, strict=True)
    return next((state for state, of in known if word in of), JobState.WAITING)


def _number(job: str) -> str:
    """Return the id of a job of PBS without the name of the server."""
    return job.partition(".")[0]


def _value(part: str, name: str) -> str:
    # Long values continue after a tab, with which the next name may begin, too.
    value = rf"^\s*{name} = (.*(?:\n\t(?![\w.]+ = ).*)*)"
    found = re.search(value, part, re.MULTILINE)
    return re.sub(r"\n\t", "", found[1]).strip() if found else ""


def _run(command: Sequence[str], *, accepted: Collection[int] = (0,)) -> str | None:
    """Return what a command prints; None unless its exit status is accepted."""
    # A user's own format of squeue would change the output.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode in accepted else None
