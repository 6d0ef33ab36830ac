"""Where the trials of a sweep run: processes here, or jobs of a batch system."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

from dask.system import CPU_COUNT

from surrogate_flow.cli.parser import Parser
from surrogate_flow.cli.recipes import find_recipe, read_recipe
from surrogate_flow.cli.sweep.attempt import ATTEMPT, Attempt, Handle
from surrogate_flow.cli.sweep.folder import SweepError, SweepFolder
from surrogate_flow.cluster.batch import BatchSystem
from surrogate_flow.cluster.batch.batch_queue import (
    JobState,
    JobStatus,
    hosts_of,
    queue_of,
)
from surrogate_flow.cluster.batch.job import output_of
from surrogate_flow.fields.quantities import counted
from surrogate_flow.report.folder.run_folder import RunFolder

__all__ = ["Here", "Jobs", "Place", "Refused", "place_of"]

logger = logging.getLogger(__name__)

_QUERY = 5.0  # seconds between two looks into the queue
_BEGINS = 120.0  # seconds in which a trial of another host has begun its run
_REMIND = 600.0  # seconds between two warnings of a queue that does not answer
_SUBMIT = 60.0  # seconds that the queue may take to accept a job
_HOST = socket.gethostname()


class Refused(SweepError):
    """The batch system has not accepted a job."""


class Place(ABC):
    """Starts trials, sees whether they run, and ends them."""

    #: Trials at a time, where the recipe does not say.
    at_once: int
    #: Of what that is the number.
    limit: str
    #: Whether trials go on without the process that has started them.
    outlives = False
    #: What is started, with the words of a trial behind.
    program: Sequence[str] = (sys.executable, "-m", "surrogate_flow")

    def fits(self, words: Sequence[str]) -> int:
        """Return how many trials with such words may run at a time."""
        return self.at_once

    @abstractmethod
    def start(self, attempt: Attempt, words: Sequence[str], log: Path) -> Handle:
        """Start ``surrogate-flow <words>``; its output is appended to `log`."""

    @abstractmethod
    def runs(self, attempt: Attempt) -> bool:
        """Whether it trains, or may still begin to."""

    @abstractmethod
    def end(self, attempt: Attempt) -> None:
        """Ask it to end in order, with a checkpoint; may be called again."""

    def require_reachable(self, scheduler: str) -> None:
        """Refuse an ensemble that trials do not reach, before one is started."""
        return

    def kill(self, attempt: Attempt) -> None:
        """End it at once, with all that it has started, as far as that can be done."""
        self.end(attempt)

    def status(self, attempt: Attempt) -> int | None:
        """Return the exit status of one that has ended, if it is known."""
        return None


class Here(Place):
    """Processes of this machine, each with a GPU of its own where there are any.

    Parameters
    ----------
    alone : bool
        Whether one trial runs at a time, which then has all GPUs.
    """

    def __init__(self, *, alone: bool = False) -> None:
        self._gpus = [] if alone else _gpus()
        self.at_once = len(self._gpus) or max(1, CPU_COUNT // 2)
        cores, gpus = counted(CPU_COUNT, "core"), counted(len(self._gpus), "GPU")
        self.limit = gpus if self._gpus else cores
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._taken: dict[Path, str] = {}
        self._shared = False
        self._awaited: set[Path] = set()

    def fits(self, words: Sequence[str]) -> int:
        """Return how many trials with such words may run at a time."""
        return max(1, self.at_once // _ranks(words))

    def start(self, attempt: Attempt, words: Sequence[str], log: Path) -> Handle:
        """Start a process, in a session of its own: Ctrl-C reaches it from here."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        environment[ATTEMPT] = str(attempt.path.absolute())
        log.parent.mkdir(parents=True, exist_ok=True)
        if self._gpus:
            gpus = ",".join(self._least_used(_ranks(words)))
            self._taken[attempt.path] = environment["CUDA_VISIBLE_DEVICES"] = gpus
        with log.open("ab") as file:
            child = subprocess.Popen(
                [*self.program, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._children[attempt.path] = child
        return {"pid": child.pid}

    def _least_used(self, count: int) -> list[str]:
        """Return GPUs for a trial: free ones, as long as there are any."""
        taken = Counter(gpu for of in self._taken.values() for gpu in of.split(","))
        chosen = sorted(self._gpus, key=lambda gpu: taken[gpu])[:count]
        if any(taken[gpu] for gpu in chosen) and not self._shared:
            self._shared = True
            logger.warning(
                "Trials share GPUs: %d are here. Lower at_once for one each.",
                len(self._gpus),
            )
        return chosen

    def runs(self, attempt: Attempt) -> bool:
        """Whether its process lives; one that has not begun is known to its parent."""
        child = self._children.get(attempt.path)
        lives = child is not None and child.poll() is None
        if lives or attempt.trains or self._lives_elsewhere(attempt):
            self._taken.setdefault(attempt.path, attempt.handle.get("gpu", ""))
            return True
        self._taken.pop(attempt.path, None)
        return False

    def _lives_elsewhere(self, attempt: Attempt) -> bool:
        """Whether its files grow on another host, whose locks may not be seen here."""
        host = attempt.handle.get("host", _HOST)
        if host == _HOST:
            return False
        begun = attempt.path.stat().st_mtime
        runs = [path for path in attempt.path.parent.glob("*/*") if path.is_dir()]
        runs = [path for path in sorted(runs) if path.stat().st_mtime >= begun]
        lives = time.time() - begun < _BEGINS
        if runs:
            lives = RunFolder(runs[-1]).state == "running"
        if lives and attempt.path not in self._awaited:
            self._awaited.add(attempt.path)
            logger.warning(
                "Trial %s runs on %s, by its files: it starts here once they have not "
                "changed for a while. To go on at once, type sweep resume on %s.",
                *(attempt.path.parent.name, host, host),
            )
        return lives

    def end(self, attempt: Attempt) -> None:
        """Send SIGTERM."""
        self._send(attempt, os.kill, signal.SIGTERM)

    def kill(self, attempt: Attempt) -> None:
        """Send SIGKILL to all of its session."""
        self._send(attempt, os.killpg, signal.SIGKILL)

    def _send(
        self, attempt: Attempt, send: Callable[[int, int], None], number: int
    ) -> None:
        handle = attempt.handle
        if self.runs(attempt) and handle.get("host", _HOST) == _HOST:
            with contextlib.suppress(ProcessLookupError):
                send(handle["pid"], number)

    def status(self, attempt: Attempt) -> int | None:
        """Return the exit status of a process that was started here."""
        child = self._children.get(attempt.path)
        mine = child is not None and attempt.handle.get("pid", child.pid) == child.pid
        return child.poll() if child is not None and mine else None


class Jobs(Place):
    """A job of a batch system for each trial; dask-jobqueue writes its script.

    Parameters
    ----------
    system : BatchSystem
        With cores, memory and walltime of a job.
    folder : Path
        Where the logs of jobs go.
    key : str
        Of the sweep's recipe, which has the batch system.

    Raises
    ------
    SweepError
        If it is a batch system whose queue cannot be asked.
    """

    at_once, limit = 8, "jobs"
    outlives = True

    def __init__(self, system: BatchSystem, folder: Path, key: str = "jobs") -> None:
        self._system, self._folder, self._key = system, folder.absolute(), key
        query = queue_of(system.cluster_class)
        if query is None:
            raise SweepError(
                key,
                "Slurm or PBS, of which a sweep can ask whether a job is in the queue",
                system.cluster_class.__name__,
                f"Leave {key} out: the sweep runs on this machine, and data.cluster in "
                "its options has the simulations run as such jobs.",
            )
        self._query = query
        self._answered = self._warned = time.monotonic()
        self._known: dict[str, bool] = {}
        self._asked: dict[str, None] = {}
        self._queried = 0.0

    @classmethod
    def of_recipe(cls, folder: SweepFolder, key: str) -> Self:
        """Return jobs of the batch system that a sweep's recipe has under a key."""
        given = getattr(folder.recipe, key)
        if isinstance(given, str):
            given = read_recipe(find_recipe("workflows/clusters", given), of_class=True)
        parser = Parser(prog="surrogate-flow sweep")
        parser.add_argument(f"--{key}", type=BatchSystem)
        parsed = parser.instantiate(parser.parse_object({key: given}))
        return cls(parsed[key], folder.path / "jobs", key)

    def start(self, attempt: Attempt, words: Sequence[str], log: Path) -> Handle:
        """Submit a job."""
        name = f"trial-{attempt.path.parent.name}"
        begins = f"export {shlex.quote(f'{ATTEMPT}={attempt.path.absolute()}')}; "
        # Only the sweep runs it again, which knows its last checkpoint.
        job = self.submit(name, words, log, begins, once=True)
        self._known[job] = True
        return {"job": job}

    def submit(
        self,
        name: str,
        words: Sequence[str],
        log: Path,
        before: str = "",
        *,
        once: bool = False,
    ) -> str:
        """Submit ``surrogate-flow <words>`` after a line of shell; return the job's id.

        Raises
        ------
        Refused
            If the queue does, with its words, or does not answer.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        command = shlex.join([*self.program, *words])
        # The shell's place is taken, so that signals of the queue reach the training.
        line = (
            f"cd {shlex.quote(os.getcwd())}; {before}"
            f"exec {command} >> {shlex.quote(str(log.absolute()))} 2>&1"
        )
        job = self._system.job(name, line, self._folder, once=once)
        try:
            asyncio.run(asyncio.wait_for(job.start(), _SUBMIT))
        except (RuntimeError, ValueError, OSError) as error:
            late = isinstance(error, TimeoutError)
            said = f"no answer within {_SUBMIT:g} s" if late else output_of(error)
            raise Refused(
                f"The batch system refuses {name}: {said}",
                remedy=f"Change the arguments under {self._key} of the sweep's recipe.",
            ) from error
        return str(job.job_id)

    def script(self) -> str:
        """Return the script of a job, without a command."""
        return str(self._system.job("", "", self._folder).job_script())

    def status_of(self, job: str) -> JobStatus | None:
        """Return what the queue says of a job, if it can be asked."""
        return (self._query([job]) or {}).get(job)

    def require_reachable(self, scheduler: str) -> None:
        """Refuse an ensemble of this host alone where jobs run on other hosts.

        Raises
        ------
        SweepError
        """
        if "//127." not in scheduler:
            return
        others = hosts_of(self._system.cluster_class) - {_HOST.partition(".")[0]}
        if others:
            raise SweepError(
                f"jobs: trials run on {min(others)} and other hosts, and the ensemble "
                f"at {scheduler} is on {_HOST} alone.",
                remedy="Have the simulations run as jobs, too, such as options: "
                "{data.cluster: slurm}.",
            )

    def runs(self, attempt: Attempt) -> bool:
        """Whether the queue has it, waiting or running; also if it does not answer."""
        if attempt.trains:
            return True
        job = attempt.handle.get("job")
        if job is None:
            return False
        self._asked[job] = None
        if time.monotonic() - self._queried > _QUERY or job not in self._known:
            answer = self._query([*self._asked])
            self._queried = now = time.monotonic()
            if answer is not None:
                self._answered = self._warned = now
            elif self._warned == self._answered or now - self._warned > _REMIND:
                self._warned = now
                logger.warning(
                    "The queue has not answered for %.0f s: jobs of trials are taken "
                    "to be in it. Ctrl-C ends the wait; sweep resume goes on.",
                    now - self._answered,
                )
            for known, status in (answer or {}).items():
                self._known[known] = status.state is not JobState.GONE
        runs = self._known.setdefault(job, True)
        if not runs:
            self._asked.pop(job, None)
        return runs

    def end(self, attempt: Attempt) -> None:
        """Cancel the job; the batch system sends SIGTERM first."""
        if (job := attempt.handle.get("job")) is not None:
            self.cancel(job)
        elif attempt.trains and attempt.handle.get("host") == _HOST:
            # Of a sweep whose trials were no jobs before.
            with contextlib.suppress(ProcessLookupError):
                os.kill(attempt.handle["pid"], signal.SIGTERM)

    def cancel(self, job: str) -> None:
        """Cancel a job."""
        command = [*self._system.cancel_command.split(), job]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            logger.warning("%s: %s", shlex.join(command), done.stderr.strip())


def place_of(folder: SweepFolder) -> Place:
    """Return where the trials of a sweep run, by its recipe."""
    if folder.recipe.jobs is None:
        return Here(alone=folder.recipe.at_once == 1)
    return Jobs.of_recipe(folder, "jobs")


def _ranks(words: Sequence[str]) -> int:
    """Return how many GPUs a trial asks for: one, unless it says a number."""
    given = dict(pairwise(words)).get("--trainer.devices", "1")
    if "," in given or "[" in given:
        return len(given.split(","))
    return max(1, int(given)) if given.isdigit() else 1


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip()]
    import torch  # A second, which who looks at a sweep does not wait for.

    return [str(n) for n in range(torch.cuda.device_count())]
