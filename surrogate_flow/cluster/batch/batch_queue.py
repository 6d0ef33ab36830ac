"""What a batch system says of its jobs, in its own words."""

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

__all__ = ["PBS", "Queue", "Silent", "Slurm", "Standing", "State", "of"]

# PBS: all are listed, one is unknown, one has finished. Any other says nothing of jobs.
_QSTAT = (0, 153, 35)

_ANSWER = 20.0  # seconds that a batch system may be too busy to answer


class State(Enum):
    """What has become of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    GONE = "gone"


@dataclass(frozen=True)
class Standing:
    """The state of a job, and what the batch system says of it."""

    state: State
    words: str


class Queue(ABC):
    """The command line of a batch system, as far as it tells of jobs."""

    def look(self, jobs: Collection[str]) -> Mapping[str, Standing] | None:
        """Return the standing of each job; None if there is no telling.

        Parameters
        ----------
        jobs : collection of str
            Their ids. Those that the batch system does not know are gone.
        """
        told = self._told(jobs)
        if told is None:
            return None
        gone = Standing(State.GONE, "not in the queue")
        return {job: told.get(job, gone) for job in jobs}

    @abstractmethod
    def _told(self, jobs: Collection[str]) -> dict[str, Standing] | None:
        """Return the standing of those jobs that are known."""


class Slurm(Queue):
    """``squeue``: states such as PENDING, and the reasons of those that wait."""

    _RUNNING = frozenset(["RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"])
    _GONE = frozenset(
        [
            "BOOT_FAIL",
            "CANCELLED",
            "COMPLETED",
            "COMPLETING",
            "DEADLINE",
            "FAILED",
            "NODE_FAIL",
            "OUT_OF_MEMORY",
            "PREEMPTED",
            "REVOKED",
            "TIMEOUT",
        ]
    )

    def _told(self, jobs: Collection[str]) -> dict[str, Standing] | None:
        # By user: asked for a job that it has forgotten, squeue tells of none.
        mine = f"--user={os.getuid()}"
        text = _ask(["squeue", "--noheader", "--format=%i|%T|%r", mine])
        if text is None:
            return None
        told = {}
        for line in text.splitlines():
            job, state, reason = [*line.strip().split("|", 2), "", ""][:3]
            words = state if reason in ("", "None") else f"{state} ({reason})"
            told[job] = Standing(self._state(state), words)
        return told

    def _state(self, word: str) -> State:
        if word in self._GONE:
            return State.GONE
        return State.RUNNING if word in self._RUNNING else State.WAITING


class PBS(Queue):
    """``qstat -f``: a letter for each job, and a comment of those that wait."""

    def _told(self, jobs: Collection[str]) -> dict[str, Standing] | None:
        text = _ask(["qstat", "-f", *sorted(jobs)], answers=_QSTAT)
        if text is None:
            return None
        numbers = {job.partition(".")[0]: job for job in jobs}
        told = {}
        for part in re.split(r"^Job Id:\s*", text, flags=re.MULTILINE)[1:]:
            # Ids have the server's name behind them, or not.
            job = numbers.get(part.split(None, 1)[0].partition(".")[0])
            if job is not None:
                told[job] = self._standing(part)
        return told

    @classmethod
    def _standing(cls, part: str) -> Standing:
        letter, comment = cls._value(part, "job_state"), cls._value(part, "comment")
        words = f"state {letter}" + (f": {comment}" if comment else "")
        if letter in ("C", "F", "X"):
            return Standing(State.GONE, words)
        running = letter in ("R", "E")
        return Standing(State.RUNNING if running else State.WAITING, words)

    @staticmethod
    def _value(part: str, name: str) -> str:
        # Long values go on behind a tab, where the next one may begin with it too.
        value = rf"^\s*{name} = (.*(?:\n\t(?![\w.]+ = ).*)*)"
        found = re.search(value, part, re.MULTILINE)
        return re.sub(r"\n\t", "", found[1]).strip() if found else ""


class Silent(Queue):
    """A batch system whose command line is not known here."""

    def _told(self, jobs: Collection[str]) -> dict[str, Standing] | None:
        return None


def of(cluster: JobQueueCluster) -> Queue:
    """Return the queue that a cluster submits to."""
    if isinstance(cluster, SLURMCluster):
        return Slurm()
    return PBS() if isinstance(cluster, PBSCluster) else Silent()


def _ask(command: Sequence[str], *, answers: Collection[int] = (0,)) -> str | None:
    """Return what a command prints; None unless its exit status is an answer."""
    # What a user likes to see is not what is asked here.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode in answers else None
