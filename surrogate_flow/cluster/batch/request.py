"""How many jobs a recipe asks for, among the arguments of its cluster."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Self

from distributed.deploy.cluster import Cluster

from surrogate_flow.cluster.batch.controller import Bounds
from surrogate_flow.cluster.batch.jobqueue import JobQueueCluster
from surrogate_flow.fields.names import nearest

__all__ = ["Request", "class_of", "known_words"]

_WORDS = ("n_workers", "minimum_jobs", "maximum_jobs")


@dataclass(frozen=True)
class Request:
    """A fixed number of workers, or a number of jobs that follows the reservoir.

    Attributes
    ----------
    n_workers : int, optional
        Fixed, as dask-jobqueue's own argument has it. It counts if both are given.
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
        queue = class_of(factory)
        if queue is None or not issubclass(queue, JobQueueCluster):
            return None
        arguments = getattr(factory, "keywords", {})
        _check(arguments, queue)
        return cls(**{word: arguments.get(word) for word in _WORDS})

    @staticmethod
    def without(factory: Callable[..., Cluster]) -> Callable[..., Cluster]:
        """Return what builds the same cluster without jobs."""
        if not isinstance(factory, partial):
            return factory
        kept = {k: v for k, v in factory.keywords.items() if k not in _WORDS}
        if "walltime" in kept:
            kept["walltime"] = _as_text(kept["walltime"])
        return partial(factory.func, *factory.args, **kept)

    def bounds(self, processes: int) -> Bounds:
        """Return the number of jobs, each of so many worker processes.

        Raises
        ------
        ValueError
            If none is asked for, or bounds that make no sense.
        """
        if self.n_workers:
            # Of a command line, say, whose recipe has bounds.
            jobs = math.ceil(self.n_workers / processes)
            return Bounds(jobs, jobs)
        least, most = self.minimum_jobs, self.maximum_jobs
        if least is None and most is None:
            raise ValueError(
                "How many jobs? Expected n_workers, or minimum_jobs and maximum_jobs, "
                "among the arguments under data.cluster; got none of them."
            )
        least = 1 if least is None else least
        return Bounds(least, least if most is None else most)


def class_of(factory: Callable[..., Cluster] | None) -> type | None:
    """Return the class that a recipe's factory builds, if it names one."""
    words = (getattr(factory, "func", factory), *getattr(factory, "args", ()))
    return next((word for word in words if inspect.isclass(word)), None)


def known_words(queue: type[JobQueueCluster]) -> set[str]:
    """Return the names of what a cluster takes, for itself, for its jobs, or for us."""
    job = queue.job_cls
    owners = [*queue.__mro__[:-1], *(job.__mro__[:-1] if job else ())]
    known = {*_WORDS}
    for owner in owners:
        given = inspect.signature(owner).parameters.values()
        known |= {p.name for p in given if p.kind is not p.VAR_KEYWORD}
    return known


def _check(arguments: Iterable[str], queue: type[JobQueueCluster]) -> None:
    """Refuse what neither the cluster nor its jobs take."""
    known = known_words(queue)
    for name in arguments:
        if name not in known:
            hint = nearest(name, sorted(known))
            raise ValueError(f"{queue.__name__} takes no argument {name!r}. {hint}")


def _as_text(walltime: object) -> object:
    """Return what YAML has made a number of, quotes or not, as text: 12:00:00."""
    if not isinstance(walltime, (int, float)):
        return walltime
    minutes, seconds = divmod(int(walltime), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
