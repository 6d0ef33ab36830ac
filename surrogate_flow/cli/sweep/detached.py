"""A sweep that outlives its terminal: run by a process of this machine, or by a job."""

from __future__ import annotations

import math
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
from optuna.trial import TrialState

from surrogate_flow.cli.sweep.folder import CONTROLLER, SweepError, SweepFolder
from surrogate_flow.cli.sweep.places import Jobs, place_of
from surrogate_flow.cluster.batch.batch_queue import JobState, JobStatus
from surrogate_flow.cluster.batch.walltime import walltime_of
from surrogate_flow.files import last_line, write_text
from surrogate_flow.report.console import print_lines, the_console

__all__ = ["SweepJob", "detach", "ends_at", "require_no_job", "runner", "stop"]

_BEGIN = 120.0  # seconds to wait for a process that is detached to begin
_MARGIN, _SHARE = 300.0, 0.2  # seconds before its walltime that a job ends; at most


class SweepJob:
    """The job that runs a sweep: ``controller.json`` in its folder has its id.

    Before its walltime is over it ends in order, and submits the next one, until all
    trials have ended: few sites of PBS let a user have a job run again.

    Parameters
    ----------
    folder : SweepFolder
        With a `controller` in its recipe.
    """

    def __init__(self, folder: SweepFolder) -> None:
        self._folder, self._file = folder, folder.path / CONTROLLER
        self._jobs = Jobs.of_recipe(folder, "controller")

    @property
    def id(self) -> str:
        """Of the job that was submitted last, or ""."""
        try:
            return str(msgspec.json.decode(self._file.read_bytes())["job"])
        except FileNotFoundError:
            return ""

    def submit(self) -> str:
        """Submit it; return its id.

        Raises
        ------
        SweepError
            If the queue refuses it, with its words.
        """
        path = self._folder.path.absolute()
        # 0: without a limit.
        limit = int(walltime_of(self._jobs.script()) or 0)
        words = ["sweep", "resume", str(path), "--walltime", str(limit)]
        job = self._jobs.submit(f"sweep-{path.name}", words, _log(self._folder))
        write_text(self._file, msgspec.json.encode({"job": job}).decode())
        return job

    def status(self) -> JobStatus | None:
        """Return what the queue says of it; None where it is gone."""
        known = self._jobs.status_of(self.id) if self.id else None
        return None if known is None or known.state is JobState.GONE else known

    def cancel(self) -> None:
        """Have it leave the queue."""
        self._jobs.cancel(self.id)


def ends_at(walltime: float) -> float:
    """Return when a job of so many seconds, 0 for no limit, must begin to end."""
    # The job's shell has become this process.
    began: float = psutil.Process().create_time()
    return began + (walltime - min(_MARGIN, _SHARE * walltime) or math.inf)


def require_no_job(folder: SweepFolder) -> None:
    """Refuse to run a sweep that a job runs, or is to run.

    Raises
    ------
    SweepError
    """
    job = _job(folder)
    if job and (known := job.status()):
        raise SweepError(
            f"{folder.path} is run by job {job.id} ({known.text}). Type "
            f"surrogate-flow sweep status {folder.path}, or sweep stop."
        )


def detach(folder: SweepFolder) -> None:
    """Have a job run the sweep, or a process that outlives this terminal."""
    name, job = shlex.quote(str(folder.path)), _job(folder)
    who = f"is job {job.submit()}" if job else _start(folder)
    print_lines(
        the_console(),
        f"The sweep {who} [{_log(folder)}].",
        f"Look at it: surrogate-flow sweep status {name}",
        f"Watch it:   surrogate-flow watch {name}",
        f"End it:     surrogate-flow sweep stop {name}",
    )


def runner(folder: SweepFolder) -> str:
    """Return who runs a sweep, or is to: the process, and its job with its state."""
    job = _job(folder)
    known = job.status() if job else None
    shown = f"job {job.id} ({known.text})" if job and known else ""
    return ", ".join(filter(None, [folder.holder, shown])) or "nobody"


def stop(folder: SweepFolder) -> None:
    """Have whoever runs a sweep end it, or its trials; cancel a job that waits."""
    holder, job = folder.holder, _job(folder)
    known = job.status() if job else None
    said = []
    if holder:
        folder.ask_to_stop()
        said.append(f"{holder} ends the sweep: trials save and end first.")
    if job and known and (known.state is JobState.WAITING or not holder):
        job.cancel()
        said.append(f"Job {job.id} is cancelled ({known.text}).")
    if not holder:
        said += _end_trials(folder)
    print_lines(the_console(), *(said or [f"Nobody runs {folder.path}."]))


def _end_trials(folder: SweepFolder) -> list[str]:
    """End trials that have outlived who ran the sweep; return what is said of each."""
    going = [t for t in folder.trials() if t.state == TrialState.RUNNING]
    if not going:
        return []
    place, said = place_of(folder), []
    for trial in going:
        attempt = folder.attempt_of(trial)
        if place.runs(attempt):
            place.end(attempt)
            host = attempt.handle.get("host", "")
            elsewhere = not place.outlives and host not in ("", socket.gethostname())
            ends = (
                f"type sweep stop on {host}" if elsewhere else "ends, and saves first"
            )
            said.append(f"Trial {trial.number}, which nobody watches: {ends}.")
    return said


def _job(folder: SweepFolder) -> SweepJob | None:
    return None if folder.recipe.controller is None else SweepJob(folder)


def _log(folder: SweepFolder) -> Path:
    return folder.path.absolute() / "sweep.log"


def _start(folder: SweepFolder) -> str:
    """Start a process; say what it does once it runs the sweep, or after a while."""
    log = _log(folder)
    with log.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "surrogate_flow", "sweep", "resume", folder.path],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + _BEGIN
    while folder.study.user_attrs.get("process") != child.pid:
        if child.poll():
            raise SweepError(f"The sweep did not begin: {last_line(log)} [{log}]")
        if child.poll() == 0:
            return "has nothing left to do"
        if time.monotonic() > deadline:
            return f"is about to begin as process {child.pid}"
        time.sleep(0.5)
    return f"runs as process {child.pid}"
