"""The data set that a study leaves, beside what it trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from surrogate_flow.data.ranks import RankError, Ranks, RankState
from surrogate_flow.dataset import Archive, ArchiveError, Writer
from surrogate_flow.dataset.provenance import Provenance
from surrogate_flow.ensemble.events import Event, Failed
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.sampling import Design, InputSampler, Sampler
from surrogate_flow.sampling.constraint import Constraint
from surrogate_flow.solvers.solver import Solver

__all__ = ["Archiving", "planned", "shared"]

# Of files, where a data set is a folder.
_FILES = {
    *(".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".csv", ".npz", ".npy", ".zip"),
    *(".pt", ".ckpt", ".json", ".yaml", ".yml", ".txt", ".parquet"),
}

logger = logging.getLogger(__name__)


def planned(
    path: Path,
    solver: Solver,
    sampler: Sampler,
    *,
    held_out: int,
    fixed: Sampler | None = None,
    simulations: int | None,
    workflow: str,
    inputs: InputSampler | None = None,
    constraint: Constraint | None = None,
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
    fixed : Sampler, optional
        Of these, as `Design` has it.
    simulations : int
        To train on.
    workflow : str
        A name for the data set.
    inputs : InputSampler, optional
        Of the input fields.
    constraint : callable, optional
        As `Design` has it.

    Raises
    ------
    ArgumentError
        If the study has no end, or its sampler adapts.
    ArchiveError
        If the data set is of another study, or cannot be written.
    """
    if path.suffix in _FILES and not path.is_dir():
        raise ArgumentError(
            f"{path}: a data set is a folder of Zarr, got the suffix of a file. Name "
            f"it {path.with_suffix('.zarr')}, which xarray.open_zarr opens."
        )
    if simulations is None:
        raise ArgumentError(
            "A data set needs an end",
            "a number of simulations",
            "null",
            "Set it with --data.simulations.",
        )
    if sampler.adapts:
        raise ArgumentError(
            f"A data set has the parameters of all simulations from the beginning, and "
            f"{type(sampler).__name__} chooses them during the training. Use another "
            "sampler, such as --data.sampler Sobol, or train without a data set."
        )
    spec = solver.spec
    design = Design(
        spec.parameters,
        sampler,
        held_out=held_out,
        fixed=fixed,
        simulations=simulations,
        given=bool(spec.inputs),
        constraint=constraint,
    )
    rows = list(design)
    provenance = Provenance.of(solver, sampler, held_out, workflow, inputs, constraint)
    return Archive.prepare(path, provenance, rows), rows


def shared(path: Path, ranks: Ranks, create: Callable[[], Archive]) -> Archive:
    """Return a data set that the first rank creates, or opens to go on, for all."""
    archive = None
    with ranks.fail_together():
        if ranks.rank == 0:
            archive = create()
    ranks.gather_states(RankState.READY)
    with ranks.fail_together():
        return archive or Archive(path)


class Archiving:
    """A data set that the workers write while they stream; a listener.

    What a run that was cut off, or a disk that was full, has left out of it,
    ``surrogate-flow generate`` adds.

    Parameters
    ----------
    archive : Archive, optional
        Without one nothing is written.
    ranks : Ranks
    """

    def __init__(self, archive: Archive | None, ranks: Ranks) -> None:
        self._archive, self._ranks = archive, ranks
        self._before = len(archive.complete()) if archive else 0
        self._closed = False

    @property
    def writer(self) -> Writer | None:
        """What the workers write with."""
        return None if self._archive is None else self._archive.writer

    def __call__(self, event: Event) -> None:
        """Mark a simulation that has failed permanently."""
        if self._archive is not None and isinstance(event, Failed):
            self._archive.fail(event.simulation.number)

    def close(
        self, worked: float, early: Mapping[str, Sequence[tuple[int, int]]]
    ) -> None:
        """Say how complete it is, once, and let others add to it.

        `worked` is the number of seconds that the simulations of this rank have taken,
        and `early` which have ended early, as of `Ledger.early`. Unless all were there
        before, the data set notes those of all ranks.
        """
        archive = self._archive
        if archive is None or self._closed:
            return
        self._closed = True
        shares = [dict(early)]
        try:
            worked = self._ranks.total(worked)
            shares = self._ranks.gather_left(shares[0])
        except RankError as error:
            logger.warning("%s", error)
        if self._ranks.rank:
            return
        try:
            complete = len(archive.complete())
            if complete > self._before:
                archive.spend(worked)
                for share in filter(None, shares):
                    archive.spend(0.0, share)
        except ArchiveError as error:
            logger.error("%s", error)
            return
        finally:
            archive.release()
        how = f" surrogate-flow generate --output {archive.path}, with the same --data"
        logger.info(
            "Data set %s: %d of %d simulations.%s",
            archive.path,
            complete,
            archive.simulations,
            f"{how}, adds the others." if complete < archive.simulations else "",
        )
