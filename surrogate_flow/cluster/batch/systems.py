"""Slurm, PBS and other batch systems, as recipes name them."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import dask
from dask.utils import parse_bytes

from surrogate_flow.cluster import security
from surrogate_flow.cluster.batch.controller import Bounds
from surrogate_flow.cluster.batch.job import JobTiming
from surrogate_flow.cluster.batch.jobqueue import (
    JobQueueCluster,
    PBSCluster,
    SLURMCluster,
    Submission,
    quoting,
)
from surrogate_flow.cluster.batch.supervisor import Supervisor
from surrogate_flow.cluster.batch.walltime import (
    directive,
    formatted,
    prologue,
    walltime_of,
    with_end,
)
from surrogate_flow.cluster.config import (
    DASHBOARD,
    ClusterConfig,
    as_written,
    start,
    thread_variables,
)
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.names import class_at, nearest

__all__ = [
    "PBS",
    "BatchSystem",
    "JobQueue",
    "JobRequest",
    "Slurm",
    "batch_system",
    "known_arguments",
]

# Has a batch system not run a job again by itself.
_ONCE = {SLURMCluster: "--no-requeue", PBSCluster: "-r n"}


@dataclass(frozen=True)
class JobRequest:
    """What a study requests of a batch system.

    Attributes
    ----------
    bounds : Bounds
        Number of jobs.
    per_job : int
        Simulations that a job runs at once.
    resources : str
        Resources of a job, such as "2 cores, 4 GB, walltime 4:00:00".
    script : str
        Script of a job.
    walltime : float, optional
        Seconds that a job may run.
    """

    bounds: Bounds
    per_job: int
    resources: str
    script: str
    walltime: float | None


class BatchSystem(ClusterConfig):
    """Each job of a batch system runs workers; dask-jobqueue writes its script.

    Arguments that are not given come from Dask's own configuration (`jobqueue.slurm`
    or `jobqueue.pbs`, say in ``~/.config/dask/jobqueue.yaml``), where queue, account
    and interface of a site belong.

    Parameters
    ----------
    cores : int, optional
        Cores of each job; it runs ``cores // cores_per_simulation`` simulations at
        once.
    memory : str, optional
        Memory of each job, such as ``4 GB``.
    walltime : str or float, optional
        How long each job may run: ``2h``, ``04:00:00``, or a number of seconds.
    queue : str, optional
        Queue (partition) of the jobs.
    account : str, optional
        Account (project) that is charged.
    n_workers : int, optional
        Fixed number of workers, which are processes; overrides the next two.
    minimum_jobs : int, optional
        Least number of jobs, 1 by default; their number follows the training.
    maximum_jobs : int, optional
        Greatest number of jobs; that of `minimum_jobs` by default.
    interface : str, optional
        Network on which nodes reach each other, such as ``ib0``.
    options : dict, optional
        Other arguments of dask-jobqueue's class, such as
        ``{job_extra_directives: [--constraint=cpu]}``.
    """

    def __init__(
        self,
        cores: int | None = None,
        memory: str | None = None,
        walltime: str | float | None = None,
        queue: str | None = None,
        account: str | None = None,
        n_workers: int | None = None,
        minimum_jobs: int | None = None,
        maximum_jobs: int | None = None,
        interface: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.n_workers = n_workers
        self.minimum_jobs, self.maximum_jobs = minimum_jobs, maximum_jobs
        named = {
            "cores": cores,
            "memory": memory,
            "walltime": None if walltime is None else formatted(walltime),
            "queue": queue,
            "account": account,
            "interface": interface,
            **(options or {}),
        }
        self._arguments = {k: v for k, v in named.items() if v is not None}
        try:
            parse_bytes(self._arguments.get("memory", 0))
        except (TypeError, ValueError):
            got = repr(self._arguments["memory"])
            raise ArgumentError(
                "data.cluster.memory", "a size such as '8 GB' or '500 MiB'", got
            ) from None
        #: Waiting times of the supervision of jobs.
        self.timing = JobTiming()

    @property
    @abstractmethod
    def cluster_class(self) -> Any:
        """The class of dask-jobqueue."""

    def require_known(self) -> None:
        """Refuse options that dask-jobqueue's class does not take.

        Raises
        ------
        ArgumentError
            With the nearest one that it takes.
        """
        known = known_arguments(self.cluster_class)
        for name in self._arguments:
            if name not in known:
                raise ArgumentError(
                    f"unknown argument {name!r} of {self.cluster_class.__name__}. "
                    f"{nearest(name, sorted(known))}"
                )

    @contextmanager
    def open(self, folder: Path, cores: int) -> Iterator[JobQueueCluster]:
        """Open a scheduler in this process, without jobs."""
        self.require_known()
        options = self._value("scheduler_options") or {}
        with security.keys_for(self._arguments.get("security"), folder) as keys:
            arguments = {
                "job_cls": quoting(self.cluster_class.job_cls),
                **self._arguments,
                "security": keys,
                "scheduler_options": {"dashboard_address": DASHBOARD, **options},
            }
            with start(partial(self.cluster_class, **arguments)) as cluster:
                self._complete(cluster, cores, folder)
                yield cluster

    def job(
        self, name: str, command: str, logs: Path, *, once: bool = False
    ) -> Submission:
        """Return a job that runs a line of shell, to be submitted by `start`.

        With `once` the batch system does not run it again by itself.
        """
        self.require_known()
        class_ = self.cluster_class.job_cls
        arguments = {
            k: v for k, v in self._arguments.items() if k in _parameters(class_)
        }
        extra = self._value("job_extra_directives", "job_extra") or []
        kinds = [d for c, d in _ONCE.items() if issubclass(self.cluster_class, c)]
        arguments |= {
            "job_extra_directives": [*extra, *(kinds if once else ())],
            "log_directory": str(logs),
            "job_name": name,
        }
        job: Submission = quoting(class_)("none", name, **arguments)
        # A worker of Dask, otherwise.
        job._command_template = command
        # Ctrl-C reaches all processes of a command: it may end a submission whose job
        # is in the queue already.
        job._call = partial(job._call, start_new_session=True)
        return job

    @property
    def cancel_command(self) -> str:
        """The command that cancels jobs, to be followed by their names."""
        return str(self.cluster_class.job_cls.cancel_command)

    def request(self, cluster: JobQueueCluster) -> JobRequest:
        """Return what is requested for an opened cluster.

        Raises
        ------
        ArgumentError
            If no number of jobs is given, or bounds contradict each other.
        """
        options, script = cluster.new_spec["options"], cluster.job_script()
        # The last one counts.
        words = " ".join(map(str, options["worker_extra_args"])).split()
        threads = int(words[len(words) - words[::-1].index("--nthreads")])
        return JobRequest(
            self._bounds(options["processes"]),
            options["processes"] * threads,
            self._resources(script),
            script,
            walltime_of(script),
        )

    def supervise(self, cluster: JobQueueCluster, at_least: int = 1) -> Supervisor:
        """Return a supervisor of jobs with at least so many simulations at once."""
        request = self.request(cluster)
        bounds = request.bounds.at_least(math.ceil(at_least / request.per_job))
        return Supervisor(cluster, bounds, per_job=request.per_job, timing=self.timing)

    def _bounds(self, processes: int) -> Bounds:
        if self.n_workers:
            jobs = math.ceil(self.n_workers / processes)
            return Bounds(jobs, jobs)
        least, most = self.minimum_jobs, self.maximum_jobs
        if least is None and most is None:
            expected = "n_workers, or minimum_jobs and maximum_jobs"
            raise ArgumentError("data.cluster", expected, "no number of jobs")
        least = 1 if least is None else least
        return Bounds(least, least if most is None else most)

    def _complete(self, cluster: JobQueueCluster, cores: int, folder: Path) -> None:
        """Let each job run as many simulations as it has cores for, in processes.

        Where fewer `processes` are set, each has several threads. Jobs also export when
        their walltime ends, which their workers report, and write their logs into
        `folder`, unless another place is set.
        """
        job_cores = int(self._value("cores"))
        processes = self._value("processes") or max(1, job_cores // cores)
        if processes * cores > job_cores:
            raise ArgumentError(
                f"A job has {job_cores} cores, too few for {processes} simulations at "
                f"once with {cores} cores each.",
                remedy="Raise data.cluster.cores, or lower data.cores_per_simulation "
                "or processes under data.cluster.options.",
            )
        # Before the user's lines, and after what this process exports.
        exports = thread_variables(cores).items()
        lines = [f"export {name}={value}" for name, value in exports]
        extra = " ".join(map(str, self._value("worker_extra_args", "extra") or []))
        if "--nthreads" not in extra:
            # dask-jobqueue's own is the number of cores of a process.
            extra += f" --nthreads {max(1, job_cores // (processes * cores))}"
        if (walltime := walltime_of(cluster.job_script())) is not None:
            # First, since other lines may take time.
            lines.insert(0, prologue(walltime))
            extra = with_end(extra)
        lines += self._value("job_script_prologue", "env_extra") or []
        logs = self._value("log_directory") or str((folder / "jobs").absolute())
        cluster.new_spec["options"] |= {
            "processes": processes,
            "job_script_prologue": lines,
            "worker_extra_args": extra.split(),
            "log_directory": logs,
        }

    def _resources(self, script: str) -> str:
        walltime, word = walltime_of(script), directive(script)
        written = str(self._value("walltime") or "")
        if walltime is not None:
            limit = f"walltime {timedelta(seconds=walltime)}"
        elif not word and written and written in script:
            # Of a system whose directives are not read here.
            limit = f"walltime {written}"
        elif word.upper() in ("", "UNLIMITED", "INFINITE", "-1"):
            limit = "no walltime"
        else:
            limit = f"walltime {word!r}, which no queue accepts: write hh:mm:ss"
        cores = self._value("cores")
        return f"{cores} core{'s'[: cores > 1]}, {self._value('memory')}, {limit}"

    def _value(self, *names: str) -> Any:
        """Return an argument, or that of the site's configuration.

        Of several names the first with a value counts; the others are old ones.
        """
        default = self.cluster_class.job_cls.default_config_name()
        section = self._arguments.get("config_name", default)
        value = None
        for name in names:
            key = f"jobqueue.{section}.{name.replace('_', '-')}"
            value = self._arguments.get(name, dask.config.get(key, None))
            if value:
                return value
        return value


class Slurm(BatchSystem):
    """Workers run in jobs of Slurm, with the arguments of a `BatchSystem`."""

    cluster_class = SLURMCluster


class PBS(BatchSystem):
    """Workers run in jobs of PBS, with the arguments of a `BatchSystem`."""

    cluster_class = PBSCluster


class JobQueue(BatchSystem):
    """Workers run in jobs of another batch system that dask-jobqueue knows.

    Parameters
    ----------
    cluster_class : str
        Import path of dask-jobqueue's class, such as ``dask_jobqueue.SGECluster``.
    **arguments
        Arguments of a `BatchSystem`.
    """

    cluster_class = JobQueueCluster

    def __init__(self, cluster_class: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        what = "data.cluster.cluster_class"
        self.cluster_class = found = class_at(cluster_class, what)
        if not (inspect.isclass(found) and issubclass(found, JobQueueCluster)):
            raise ArgumentError(what, "a class of dask_jobqueue", found)


def known_arguments(class_: Any) -> set[str]:
    """Return what a cluster of dask-jobqueue takes, for itself or for its jobs."""
    job = getattr(class_, "job_cls", Submission)  # which their base lacks
    return _parameters(class_) | _parameters(job) | _parameters(BatchSystem)


def _parameters(class_: Any) -> set[str]:
    """Return the arguments of a class, and of those that it inherits from."""
    return {
        parameter.name
        for owner in class_.__mro__[:-1]
        for parameter in inspect.signature(owner).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    }


def batch_system(source: object) -> BatchSystem | None:
    """Return the batch system of a recipe; None for other clusters.

    Recipes of version 0.1 name a class of dask-jobqueue itself.
    """
    if isinstance(source, BatchSystem):
        return source
    if not callable(source):
        return None
    written = as_written(source)
    class_, arguments = written.func, {**written.keywords}
    if not (inspect.isclass(class_) and issubclass(class_, JobQueueCluster)):
        return None
    own = inspect.signature(BatchSystem).parameters
    named = {k: arguments.pop(k) for k in [*arguments] if k in own}
    path = f"{class_.__module__}.{class_.__qualname__}"
    return JobQueue(path, **named, options=arguments)
