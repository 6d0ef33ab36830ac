"""How many jobs a recipe asks for, among the arguments of its cluster."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Self

from dask_jobqueue import JobQueueCluster
from distributed.deploy.cluster import Cluster

from surrogate_flow.jobs.size import Bounds
from surrogate_flow.nearest import nearest

__all__ = ["Request"]

_WORDS = ("n_workers", "minimum_jobs", "maximum_jobs")


@dataclass(frozen=True)
class Request:
    """A fixed number of workers, or a number of jobs that follows the reservoir.

    Attributes
    ----------
    n_workers : int, optional
        Fixed, as dask-jobqueue's own argument has it.
    minimum_jobs, maximum_jobs : int, optional
        Within which the number of jobs goes up and down; from 1, if only the maximum
        is given.
    """

    n_workers: int | None = None
    minimum_jobs: int | None = None
    maximum_jobs: int | None = None

    @classmethod
    def of(cls, factory: Callable[..., Cluster] | None) -> Self | None:
        """Read the arguments of a batch system's cluster; None for any other.

        Raises
        ------
        ValueError
            If it takes no such argument, with the nearest that it takes.
        """
        if not isinstance(factory, partial):
            wanted = inspect.isclass(factory) and issubclass(factory, JobQueueCluster)
            return cls() if wanted else None
        words = (factory.func, *factory.args)
        classes = [word for word in words if inspect.isclass(word)]
        queues = [word for word in classes if issubclass(word, JobQueueCluster)]
        if not queues:
            return None
        _check(factory.keywords, queues[0])
        _check_walltime(factory.keywords.get("walltime"))
        asked = {word: factory.keywords.get(word) for word in _WORDS}
        return cls(**asked)

    @staticmethod
    def without(factory: Callable[..., Cluster]) -> Callable[..., Cluster]:
        """Return what builds the same cluster without jobs."""
        if not isinstance(factory, partial):
            return factory
        kept = {k: v for k, v in factory.keywords.items() if k not in _WORDS}
        return partial(factory.func, *factory.args, **kept)

    def bounds(self, processes: int) -> Bounds:
        """Return the number of jobs, each of so many worker processes.

        Raises
        ------
        ValueError
            If none is asked for, or both a fixed number and bounds.
        """
        least, most = self.minimum_jobs, self.maximum_jobs
        adaptive = least is not None or most is not None
        if adaptive and self.n_workers:
            raise ValueError(
                f"Expected n_workers or minimum_jobs and maximum_jobs, got both: "
                f"{self}. The first is for a fixed size, the others for one that "
                "follows the training."
            )
        if adaptive:
            least = least or 1
            return Bounds(least, most or least)
        if not self.n_workers:
            raise ValueError(
                "How many jobs? Expected n_workers, or minimum_jobs and maximum_jobs, "
                "among the arguments under data.cluster; got none of them."
            )
        jobs = math.ceil(self.n_workers / processes)
        return Bounds(jobs, jobs)


def _check(arguments: Iterable[str], queue: type[JobQueueCluster]) -> None:
    """Refuse what neither the cluster nor its jobs take."""
    job = queue.job_cls
    owners = [*queue.__mro__[:-1], *(job.__mro__[:-1] if job else ())]
    known = {*_WORDS}
    for owner in owners:
        given = inspect.signature(owner).parameters.values()
        known |= {p.name for p in given if p.kind is not p.VAR_KEYWORD}
    for name in arguments:
        if name not in known:
            hint = nearest(name, sorted(known))
            raise ValueError(f"{queue.__name__} takes no argument {name!r}. {hint}")


def _check_walltime(walltime: object) -> None:
    """Refuse what YAML has made a number of: 12:00:00 is 43200 to it."""
    if isinstance(walltime, (int, float)):
        raise ValueError(
            f"walltime: expected text such as '12:00:00', got the number {walltime}. "
            "YAML reads 12:00:00 as one: put it between quotes."
        )
