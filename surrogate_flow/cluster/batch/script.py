"""What a study adds to the script of its jobs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import dask

from surrogate_flow.cluster import threads
from surrogate_flow.cluster.batch.jobqueue import JobQueueCluster
from surrogate_flow.cluster.batch.walltime import asked_for, prologue, walltime_of

__all__ = ["at_once", "complete", "processes_of", "resources_of"]


def complete(cluster: JobQueueCluster, cores_per_simulation: int, folder: Path) -> None:
    """Have jobs run as many simulations as they have cores for, each in a process.

    Where `processes` is set to fewer, each has several threads instead. They also note
    when their time will be over, and write their logs into `folder`, unless the site or
    the recipe names another place.

    Parameters
    ----------
    cluster : JobQueueCluster
        Before its first job.
    cores_per_simulation : int
    folder : Path

    Raises
    ------
    ValueError
        If a job has not as many cores as its simulations need.
    """
    options = cluster.new_spec["options"]
    site = options.get("config_name")
    cores = _of_site(options, site, "cores")
    processes = _of_site(options, site, "processes")
    if processes is None:
        processes = max(1, int(cores) // cores_per_simulation)
    if processes * cores_per_simulation > cores:
        raise ValueError(
            f"A job has {cores} cores (cores), fewer than its {processes} simulations "
            f"at once (processes) with {cores_per_simulation} cores each "
            "(data.cores_per_simulation) need. Raise cores, or lower one of them."
        )
    # Before what the user says of them, and after what this process was told.
    told = threads.environment(cores_per_simulation)
    lines = [f"export {name}={value}" for name, value in told.items()]
    walltime = walltime_of(cluster.job_script())
    if walltime is not None:
        # First, so that the time which others take counts.
        lines.insert(0, prologue(walltime))
    lines += _of_site(options, site, "job_script_prologue", "env_extra") or []
    extra = [*(_of_site(options, site, "worker_extra_args", "extra") or [])]
    if "--nthreads" not in extra:
        # The last one counts; dask-jobqueue's is the number of cores of a process.
        each = max(1, int(cores) // (processes * cores_per_simulation))
        extra += ["--nthreads", str(each)]
    options["processes"] = processes
    options["job_script_prologue"] = lines
    options["worker_extra_args"] = extra
    if _of_site(options, site, "log_directory") is None:
        options["log_directory"] = str((folder / "jobs").absolute())


def processes_of(cluster: JobQueueCluster) -> int:
    """Return the number of workers in each job."""
    return int(cluster.new_spec["options"].get("processes") or 1)


def at_once(cluster: JobQueueCluster) -> int:
    """Return the number of simulations that each job runs at once."""
    extra = cluster.new_spec["options"]["worker_extra_args"]
    words = [str(word) for word in extra]
    each = words[len(words) - words[::-1].index("--nthreads")]
    return processes_of(cluster) * int(each)


def resources_of(cluster: JobQueueCluster) -> str:
    """Say what each job asks for, such as "2 cores, 4 GB, walltime 4:00:00"."""
    options = cluster.new_spec["options"]
    site = options.get("config_name")
    cores, memory = (_of_site(options, site, name) for name in ("cores", "memory"))
    script = cluster.job_script()
    walltime, word = walltime_of(script), asked_for(script)
    if walltime is not None:
        limit = f"walltime {timedelta(0, walltime)}"
    elif word.upper() in ("", "UNLIMITED", "INFINITE", "-1"):
        limit = "no walltime"
    else:
        limit = f"walltime {word!r}, which the queue will not take: write hh:mm:ss"
    return f"{cores} core{'s'[: cores > 1]}, {memory}, {limit}"


def _of_site(options: dict[str, Any], site: str | None, *names: str) -> Any:
    """Return an argument, or what the site's configuration has in its place.

    Of several names the first that says something, as dask-jobqueue knows old ones.
    """
    value = None
    for name in names:
        value = options.get(name)
        if value is None:
            value = dask.config.get(f"jobqueue.{site}.{name.replace('_', '-')}", None)
        if value:
            return value
    return value
