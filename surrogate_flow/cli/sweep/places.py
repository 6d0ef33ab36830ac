"""Where the trials of a sweep run: processes here, or jobs of a batch system."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from dask.system import CPU_COUNT

from surrogate_flow.cli.sweep.folder import SweepError
from surrogate_flow.cluster.batch import BatchSystem
from surrogate_flow.cluster.batch.batch_queue import JobState, queue_of
from surrogate_flow.cluster.batch.job import output_of

__all__ = ["Here", "Jobs", "Place"]

logger = logging.getLogger(__name__)

_QUERY = 5.0  # seconds between two looks into the queue
#: What finds a trial again, in another process too: plain values.
Handle = dict[str, Any]


class Place(ABC):
    """Starts trials, sees whether they run, and ends them."""

    #: Trials at a time, where the recipe does not say.
    at_once: int

    @abstractmethod
    def start(self, number: int, words: Sequence[str], log: Path) -> Handle:
        """Start ``surrogate-flow <words>``; its output is appended to `log`."""

    @abstractmethod
    def runs(self, handle: Handle) -> bool:
        """Whether it may still run."""

    @abstractmethod
    def end(self, handle: Handle) -> None:
        """Ask it to end in order, with a checkpoint; may be called again."""

    def status(self, handle: Handle) -> int | None:
        """Return the exit status of one that has ended, if it is known."""
        return None


class Here(Place):
    """Processes of this machine, each with a GPU of its own where there are any."""

    def __init__(self) -> None:
        self._gpus = _gpus()
        self.at_once = len(self._gpus) or max(1, CPU_COUNT // 2)
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._taken: dict[int, str] = {}

    def start(self, number: int, words: Sequence[str], log: Path) -> Handle:
        """Start a process, in a session of its own: Ctrl-C reaches it from here."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        log.parent.mkdir(parents=True, exist_ok=True)
        free = [gpu for gpu in self._gpus if gpu not in self._taken.values()]
        if free:
            environment["CUDA_VISIBLE_DEVICES"] = free[0]
        with log.open("ab") as file:
            child = subprocess.Popen(
                [sys.executable, "-m", "surrogate_flow", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._children[child.pid] = child
        if free:
            self._taken[child.pid] = free[0]
        return {"pid": child.pid, "began": psutil.Process(child.pid).create_time()}

    def runs(self, handle: Handle) -> bool:
        """Whether its process is there."""
        child = self._children.get(handle["pid"])
        if child is not None and child.poll() is not None:
            self._taken.pop(handle["pid"], None)
        process = _process(handle)
        return process is not None and process.status() != psutil.STATUS_ZOMBIE

    def end(self, handle: Handle) -> None:
        """Send SIGTERM."""
        if (process := _process(handle)) is not None:
            process.send_signal(signal.SIGTERM)

    def status(self, handle: Handle) -> int | None:
        """Return the exit status of a process that was started here."""
        child = self._children.get(handle["pid"])
        return child.poll() if child else None


class Jobs(Place):
    """A job of a batch system for each trial; dask-jobqueue writes its script.

    Parameters
    ----------
    system : BatchSystem
        With cores, memory and walltime of a job.
    folder : Path
        Where the logs of jobs go.
    """

    at_once = 8

    def __init__(self, system: BatchSystem, folder: Path) -> None:
        self._system, self._folder = system, folder
        self._query = queue_of(system.cluster_class)
        self._known: dict[str, bool] = {}
        self._asked: dict[str, None] = {}
        self._queried = 0.0

    def start(self, number: int, words: Sequence[str], log: Path) -> Handle:
        """Submit a job.

        Raises
        ------
        SweepError
            If the queue refuses it, with its words.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        command = shlex.join([sys.executable, "-m", "surrogate_flow", *words])
        # The shell's place is taken, so that signals of the queue reach the training.
        line = f"cd {shlex.quote(os.getcwd())}; exec {command} >> {log.absolute()} 2>&1"
        job = self._system.job(f"trial-{number}", line, self._folder.absolute())
        try:
            asyncio.run(job.start())
        except (RuntimeError, ValueError, OSError) as error:
            raise SweepError(
                f"The batch system refuses trial {number}: {output_of(error)}",
                remedy="Change the arguments under jobs of the sweep's recipe.",
            ) from error
        self._known[str(job.job_id)] = True
        return {"job": str(job.job_id)}

    def runs(self, handle: Handle) -> bool:
        """Whether the queue has it, waiting or running; also if it does not answer."""
        job = handle["job"]
        self._asked[job] = None
        if time.monotonic() - self._queried > _QUERY or job not in self._known:
            self._queried = time.monotonic()
            answer = self._query([*self._asked]) if self._query else None
            for known, status in (answer or {}).items():
                self._known[known] = status.state is not JobState.GONE
        runs = self._known.get(job, True)
        if not runs:
            self._asked.pop(job, None)
        return runs

    def end(self, handle: Handle) -> None:
        """Cancel the job; the batch system sends SIGTERM first."""
        command = [*self._system.cancel_command.split(), handle["job"]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            logger.warning("%s: %s", shlex.join(command), done.stderr.strip())


def _process(handle: Handle) -> psutil.Process | None:
    try:
        process = psutil.Process(handle["pid"])
        # Another one may have its number by now.
        same = abs(process.create_time() - handle["began"]) < 1.0
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip()]
    return [str(n) for n in range(torch.cuda.device_count())]
