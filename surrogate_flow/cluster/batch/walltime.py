"""How long jobs may run, and how they end in order before that."""

from __future__ import annotations

import re
import time

from dask.utils import parse_timedelta
from distributed.core import Status
from distributed.scheduler import WorkerState

from surrogate_flow.cluster.batch.job import Job, JobTiming
from surrogate_flow.cluster.batch.jobqueue import JobQueueCluster

__all__ = [
    "UNTIL",
    "Drain",
    "directive",
    "formatted",
    "prologue",
    "walltime_of",
    "with_end",
]

UNTIL = "SURROGATE_FLOW_UNTIL"
"""Environment variable of a job, and resource of its Dask workers.

When its walltime ends, in seconds since 1970; the scheduler gets it from each worker.
"""

_SLURM = re.compile(r"^#SBATCH\s+(?:-t\s*|--time[= ])(\S+)", re.MULTILINE)
_PBS = re.compile(r"^#PBS\s+-l\s+(?:\S+,)?walltime=([^\s,]+)", re.MULTILINE)

_MARGIN = 1.2  # times the longest simulation
_GRACE = 30.0  # seconds, at most, for a job to end in order
_SHARE = 0.05  # grace as a share of the walltime
_STAGGER = 0.1  # share of the walltime over which jobs that began together end
_WAVES = 8  # different moments within
_WORK = 0.1  # share of the walltime in which a job begins simulations in any case
_TIMEOUT = 30.0  # seconds that the scheduler may take to answer
_HEARTBEATS = 2.0  # seconds until the scheduler knows what a worker executes


def formatted(walltime: str | float) -> str:
    """Return a walltime as batch systems read it: hh:mm:ss.

    What is neither a duration nor a number of seconds stays as it is.

    Examples
    --------
    >>> formatted("2h"), formatted("90m"), formatted(43200), formatted("30")
    ('02:00:00', '01:30:00', '12:00:00', '00:00:30')
    >>> formatted("04:00:00"), formatted("1-12:00:00"), formatted("UNLIMITED")
    ('04:00:00', '1-12:00:00', 'UNLIMITED')
    """
    try:
        minutes, seconds = divmod(int(parse_timedelta(walltime, default="s")), 60)
    except (KeyError, ValueError):
        return str(walltime)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"


def directive(script: str) -> str:
    """Return the walltime as a job script has it, or nothing.

    Of several directives the last one counts, as for the batch systems.

    Examples
    --------
    >>> directive("#SBATCH -t 4h")
    '4h'
    """
    found = _SLURM.findall(script) or _PBS.findall(script)
    return str(found[-1]) if found else ""


def walltime_of(script: str) -> float | None:
    """Return the seconds that a job script asks for, or None if it names no limit.

    Examples
    --------
    >>> walltime_of("#SBATCH -t 1-02:00:00"), walltime_of("#SBATCH --time=30")
    (93600.0, 1800.0)
    >>> walltime_of("#PBS -l walltime=00:30:00"), walltime_of("#PBS -l walltime=90")
    (1800.0, 90.0)
    >>> walltime_of("#SBATCH -t UNLIMITED"), walltime_of("#PBS -l walltime=4h")
    (None, None)
    """
    days, dash, rest = directive(script).rpartition("-")
    parts = rest.split(":")
    if len(parts) > 4 or not all(part.isdigit() for part in (*parts, days or "0")):
        return None
    numbers = [float(part) for part in parts]
    if dash:
        # days-hours, days-hours:minutes or days-hours:minutes:seconds
        numbers = [float(days), *numbers, 0.0, 0.0][:4]
    elif _SLURM.search(script) and len(numbers) < 3:
        # minutes or minutes:seconds
        numbers = [*numbers, 0.0][:2]
    scales = (86400, 3600, 60, 1)[-len(numbers) :]
    return sum(scale * number for scale, number in zip(scales, numbers, strict=True))


def prologue(walltime: float) -> str:
    """Return the line of a job script that records when its walltime ends."""
    return f"export {UNTIL}=$(($(date +%s) + {int(walltime)}))"


def with_end(arguments: str) -> str:
    """Return arguments of ``dask worker`` with the end of its walltime as a resource.

    Examples
    --------
    >>> with_end("--resources GPU=1")
    '--resources SURROGATE_FLOW_UNTIL=$SURROGATE_FLOW_UNTIL,GPU=1'
    """
    end = f"{UNTIL}=${UNTIL}"
    text, given = re.subn(r"--resources[ =]", rf"\g<0>{end},", arguments)
    return text if given else f"{text} --resources {end}"


class Drain:
    """A job drains when left < 1.2 times the longest simulation + margin + stagger.

    Its workers begin no further simulation; the job ends when they are idle.
    Without a `walltime` (seconds of each job) no job is ever due.
    """

    def __init__(
        self,
        cluster: JobQueueCluster,
        walltime: float | None,
        notice: float = JobTiming.notice,
    ) -> None:
        self._cluster, self._notice = cluster, notice
        self.walltime = walltime
        # Since when all workers of a job begin nothing, by its number.
        self._retired: dict[int, float] = {}

    def due(self, job: Job, longest: float) -> bool:
        """Whether a job must begin to drain, if simulations take `longest` seconds."""
        if self.walltime is None or job.ends_at is None:
            return False
        stagger = _STAGGER * self.walltime * (job.number % _WAVES) / _WAVES
        grace = self._notice + min(_GRACE, _SHARE * self.walltime)
        need = min(_MARGIN * longest + grace + stagger, (1 - _WORK) * self.walltime)
        return job.ends_at - time.time() < need

    def finished(self, job: Job) -> bool:
        """Retire the workers of a job; return whether all are idle.

        Raises
        ------
        OSError, TimeoutError
            If the scheduler does not answer in time: call it again later.
        """
        workers = job.workers()
        if active := [w for w in workers if w.status is not Status.closing_gracefully]:
            self._retired.pop(job.number, None)
            # Results move to other workers; if there is none yet, at the next call.
            self._retire(active, close_workers=False, remove=False)
            return False
        since = self._retired.setdefault(job.number, time.time()) + _HEARTBEATS
        return all(w.last_seen > since and not w.executing for w in workers)

    def close(self, job: Job) -> None:
        """Close the workers of a job; tasks that wait there move to others."""
        self._retired.pop(job.number, None)
        if workers := job.workers():
            self._retire(workers, close_workers=True, remove=True)

    def _retire(self, workers: list[WorkerState], **how: bool) -> None:
        self._cluster.sync(
            self._cluster.scheduler.retire_workers,
            [worker.address for worker in workers],
            callback_timeout=_TIMEOUT,
            **how,
        )
