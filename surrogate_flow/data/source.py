"""Where the steps of an online run come from: a study, on all of its ranks."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from dask.system import CPU_COUNT
from distributed import Client

from surrogate_flow.cluster.batch import Load
from surrogate_flow.cluster.open import ClusterSource
from surrogate_flow.data.ranks import RankError, Ranks, RankState
from surrogate_flow.data.router import Router
from surrogate_flow.ensemble.ensemble import EnsembleStats
from surrogate_flow.ensemble.events import Listener
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.ledger import Ledger
from surrogate_flow.ensemble.packed import Packed
from surrogate_flow.ensemble.study import OpenCluster, Study, StudySettings
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.sampling import Design
from surrogate_flow.solvers.solver import Solver
from surrogate_flow.stream import StreamStats

__all__ = ["Local", "Source"]

logger = logging.getLogger(__name__)

_INTERVAL = 1.0  # seconds between two looks at who waits for whom


class Source(Protocol):
    """What feeds the sink of an online run."""

    #: Which simulations run, are complete or have failed.
    ledger: Ledger
    #: Of the cluster.
    client: Client

    def start(self) -> None:
        """Have the simulations begin; may be called again."""

    def check(self, waited: float | None = None) -> None:
        """Raise what stopped it, if anything did; as `Study.check`.

        The trainer has waited for batches for `waited` seconds; None before the first.
        """

    def stats(self) -> EnsembleStats:
        """Count simulations by state."""
        ...

    def stream(self) -> StreamStats:
        """Return what has been received."""
        ...

    def waiting(self) -> str:
        """Return what holds up the workers, or ""."""
        ...

    def close(self) -> None:
        """Stop what runs; may be called again."""


class Local:
    """A study of this process's own, on a cluster that all ranks share.

    The first rank opens the cluster and closes it, when the studies of all have ended.

    Parameters
    ----------
    solver, design, faults, listeners
        As `Study`.
    router : Router
        The study's sink, and another listener.
    cluster : ClusterConfig or callable, optional
        Opens the cluster; on this machine by default.
    settings : StudySettings
    ranks : Ranks
    """

    def __init__(
        self,
        solver: Solver,
        design: Design,
        router: Router,
        *,
        cluster: ClusterSource,
        faults: Faults,
        settings: StudySettings,
        listeners: Sequence[Listener],
        ranks: Ranks,
    ) -> None:
        if ranks.rank:
            settings = replace(settings, failures=f"failures_{ranks.rank}.csv")
        settings = replace(settings, share=ranks.world)
        with ranks.fail_together():
            packed = Packed(solver)
        with contextlib.ExitStack() as resources:
            opened = resources.enter_context(_shared(cluster, faults, settings, ranks))
            if opened.address.local:
                resources.enter_context(_half_of_the_cores(ranks))
            with ranks.fail_together():
                self.study = Study(
                    packed,
                    design,
                    router,
                    cluster=opened,
                    faults=faults,
                    settings=settings,
                    listeners=[*listeners, router],
                )
                resources.callback(self.study.close)
            ranks.gather_states(RankState.READY)
            self._resources = resources.pop_all()
        self._router = router
        self._load, self._looked = Load(), 0.0
        self.ledger, self.start = self.study.ledger, self.study.start
        self.stats, self.waiting = self.study.stats, self.study.waiting
        self.stream, self.client = self.study.inlet.stats, self.study.client

    def check(self, waited: float | None = None) -> None:
        """Raise what stopped the study, if anything did."""
        if time.monotonic() - self._looked > _INTERVAL:
            self._looked = time.monotonic()
            self._load = self._router.load(waited)
        self.study.check(self._load, held_up=self._router.held_up)

    def close(self) -> None:
        """Stop what runs, and the cluster behind all ranks; may be called again."""
        self._resources.close()


@contextlib.contextmanager
def _shared(
    cluster: ClusterSource, faults: Faults, settings: StudySettings, ranks: Ranks
) -> Iterator[OpenCluster]:
    """Open the cluster on the first rank, and yield it on all."""
    with contextlib.ExitStack() as resources:
        mine = None
        with ranks.fail_together():
            if ranks.rank == 0:
                mine = resources.enter_context(
                    OpenCluster.open(cluster, settings, faults)
                )
                address = mine.address.scheduler_address
                if not ranks.on_one_machine:
                    mine.address.local = False
                    if "//127." in address:
                        raise ArgumentError(
                            "Ranks on several machines",
                            "a cluster that all of them reach",
                            f"one at {address}, which is this machine only",
                            "Name another one with --data.cluster, such as "
                            "workflows/clusters/slurm.yaml.",
                        )
                if ranks.world > 1:
                    keys = mine.address.in_files(settings.folder)
                    mine = replace(mine, address=resources.enter_context(keys))
        resources.callback(_leave, ranks)
        ranks.gather_states(RankState.READY)
        shared = ranks.gather(mine and mine.address)[0]
        yield mine or OpenCluster(shared)


@contextlib.contextmanager
def _half_of_the_cores(ranks: Ranks) -> Iterator[None]:
    """Give torch half of the cores, beside simulations on this machine.

    The workers have the others, and what the training leaves of these. Threads of small
    operations would wait for each other where each shares its core.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, CPU_COUNT // 2 // ranks.world))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _leave(ranks: Ranks) -> None:
    try:
        ranks.gather_states(RankState.ENDED)
    except RankError as error:
        # This one has ended all the same.
        logger.warning("%s", error)
