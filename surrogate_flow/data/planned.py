"""The data set of a study: where it goes, and which simulations are in it."""

from __future__ import annotations

from pathlib import Path

from surrogate_flow.dataset.dataset import Archive
from surrogate_flow.dataset.provenance import Provenance
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.sampling import Design, Sampler
from surrogate_flow.solvers.solver import Solver

__all__ = ["planned"]


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
