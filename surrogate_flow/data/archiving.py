"""The data set that a study leaves, beside what it trains."""

from __future__ import annotations

import logging
from pathlib import Path

from surrogate_flow.data.ranks import RankError, Ranks, State
from surrogate_flow.dataset import Archive, ArchiveError, Writer
from surrogate_flow.dataset.provenance import Provenance
from surrogate_flow.ensemble.events import Event, Failed
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.sampling import Design, Sampler
from surrogate_flow.solvers.solver import Solver

__all__ = ["Archiving", "planned"]

logger = logging.getLogger(__name__)


def planned(
    path: Path,
    solver: Solver,
    sampler: Sampler,
    *,
    held_out: int,
    simulations: int | None,
    workflow: str,
) -> tuple[Archive, list[Simulation]]:
    """Create the data set of a study, or open it to go on; return its simulations, too.

    Parameters
    ----------
    path : Path
    solver : Solver
    sampler : Sampler
        Of the training set.
    held_out : int
        Simulations of the validation set, the first ones.
    simulations : int
        To train on.
    workflow : str
        What the data set is of, in words.

    Raises
    ------
    ValueError
        If the study has no end, or its sampler adapts.
    ArchiveError
        If the data set is of another study, or cannot be written.
    """
    if simulations is None:
        raise ValueError(
            "A data set needs an end: expected a number of simulations, got null. Set "
            "it with --data.simulations."
        )
    if sampler.adapts:
        raise ArgumentError(
            f"A data set has the parameters of all simulations from the beginning, and "
            f"{type(sampler).__name__} chooses them during the training. Use another "
            "sampler, such as --data.sampler Sobol, or train without a data set."
        )
    rows = list(
        Design(
            solver.spec.parameters, sampler, held_out=held_out, simulations=simulations
        )
    )
    provenance = Provenance.of(solver, sampler, held_out, workflow)
    return Archive.prepare(path, provenance, rows), rows


class Archiving:
    """A data set that the workers write while they stream; a listener.

    What a run that was cut off, or a disk that was full, has left out of it,
    ``surrogate-flow generate`` adds.

    Parameters
    ----------
    path : Path, optional
        Without one nothing is written.
    solver, sampler, held_out, simulations, workflow
        As `planned`.
    ranks : Ranks
        The first creates it.
    """

    def __init__(
        self,
        path: Path | None,
        solver: Solver,
        sampler: Sampler,
        *,
        held_out: int,
        simulations: int | None,
        workflow: str,
        ranks: Ranks,
    ) -> None:
        self._archive: Archive | None = None
        self._ranks = ranks
        self._before = 0
        self._closed = False
        if path is None:
            return
        with ranks.fail_together():
            if ranks.rank == 0:
                self._archive, _ = planned(
                    path,
                    solver,
                    sampler,
                    held_out=held_out,
                    simulations=simulations,
                    workflow=workflow,
                )
                self._before = len(self._archive.complete())
        ranks.gather_states(State.READY)
        with ranks.fail_together():
            self._archive = self._archive or Archive(path)

    @property
    def writer(self) -> Writer | None:
        """What the workers write with."""
        return None if self._archive is None else self._archive.writer

    def __call__(self, event: Event) -> None:
        """Mark a simulation that has failed permanently."""
        if self._archive is not None and isinstance(event, Failed):
            self._archive.fail(event.simulation.number)

    def close(self, worked: float) -> None:
        """Say how complete it is, once, and let others add to it.

        Parameters
        ----------
        worked : float
            Seconds that the simulations of this rank have taken. Unless all that it
            has were there before, it notes those of all ranks.
        """
        if self._archive is None or self._closed:
            return
        self._closed = True
        try:
            worked = self._ranks.total(worked)
        except RankError as error:
            logger.warning("%s", error)
        if self._ranks.rank == 0:
            self._complete(self._archive, worked)

    def _complete(self, archive: Archive, worked: float) -> None:
        try:
            whole = len(archive.complete())
            if whole > self._before:
                archive.spend(worked)
        except ArchiveError as error:
            logger.error("%s", error)
            return
        finally:
            archive.release()
        missing = archive.simulations - whole
        how = f"surrogate-flow generate --output {archive.path}"
        logger.info(
            "Data set %s: %d of %d simulations.%s",
            archive.path,
            whole,
            archive.simulations,
            f" {how}, with the same --data, adds the others." if missing else "",
        )
