"""A campaign of simulations that have ended, in files, as a data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from surrogate_flow.dataset.dataset import Archive
from surrogate_flow.dataset.provenance import Provenance
from surrogate_flow.dataset.writer import ArchiveError
from surrogate_flow.fields.encoder import Encoder
from surrogate_flow.fields.inputs import inputs_in, without_inputs
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.solvers.stored.opening import Reading
from surrogate_flow.solvers.stored.run import steps_of
from surrogate_flow.solvers.stored.runs import Follow, StoredRuns

__all__ = ["Campaign"]

logger = logging.getLogger(__name__)


class Campaign:
    """u[simulation, time, *space] from one file a simulation, steps along its time.

    Parameters
    ----------
    files, parameters, variables, initial, skip_damaged, may_end_early, follow
        As of `StoredRuns`.
    time : str
        The dim of the steps; ``time`` by default, or what is marked as the time axis.
    inputs, masked : sequence of str
        Fields without steps, or variables, whose first step is one; fields that are NaN
        where they are not defined; as of `Reading`.
    held_out : sequence of Path or int, optional
        Kept apart from training: these files, or so many runs, drawn with `seed`; by
        default a fifth, 30 at most.
    seed : int
        Of the order of the runs.

    Attributes
    ----------
    stored : StoredRuns
    held_out : int
    rows : list of Simulation
        The held-out ones first.

    Raises
    ------
    UserError
        If nothing can be made of them; it names file and difference.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        parameters: str = "",
        variables: str = "",
        time: str = "",
        inputs: Sequence[str] = (),
        initial: str = "",
        masked: Sequence[str] = (),
        held_out: Sequence[Path] | int | None = None,
        seed: int = 0,
        skip_damaged: bool = False,
        may_end_early: bool = False,
        follow: Follow = lambda items, what: items,
    ) -> None:
        self._follow, self._may_end_early = follow, may_end_early
        self.stored = StoredRuns(
            files,
            reading=Reading(time, inputs=inputs, masked=masked),
            parameters=parameters,
            variables=variables,
            initial=initial,
            skip_damaged=skip_damaged,
            may_end_early=may_end_early,
            follow=follow,
        )
        self.spec, same = self.stored.spec, self.stored.runs
        given = held_out if isinstance(held_out, Sequence) else ()
        kept = {path.resolve() for path in given}
        if others := kept - {path.resolve() for path in files}:
            raise ArchiveError(
                "held_out", "some of the files that are imported", min(others)
            )
        apart = [run.path.resolve() in kept for run in same]
        mixed = np.random.default_rng(seed).permutation(len(same))
        order = sorted(mixed, key=lambda k: not apart[k])
        count = held_out if isinstance(held_out, int) else None
        if count is None:
            count = sum(apart) if kept else min(30, max(1, len(same) // 5))
        if not 1 <= count < len(same):
            raise ArchiveError(
                "held_out", f"1 to {len(same) - 1} of the {len(same)} files", count
            )
        self.held_out = count
        self._order = [same[k] for k in order]
        self.rows = [
            Simulation(
                number,
                "validation" if number < count else "training",
                self.stored.parameters_of(run),
            )
            for number, run in enumerate(self._order)
        ]

    def write(self, path: Path) -> Archive:
        """Write the fields that a data set at `path` does not have yet; return it."""
        names = [*map(str, self._order)]
        solver = {"class_path": "files", "init_args": {"files": names}}
        provenance = Provenance(self.spec, solver, {}, self.held_out, path.stem)
        archive = Archive.prepare(path, provenance, self.rows)
        stored = self.stored
        try:
            archive.drop_incomplete()
            stamps = {p: _stamp(p) for p in {run.path for run in self._order}}
            if changed := archive.read_from([stamps[run.path] for run in self._order]):
                logger.warning(
                    "%s has changed since it was imported%s: written again.",
                    self._order[changed[0]],
                    f", as have {len(changed) - 1} more" * (len(changed) > 1),
                )
            lost: set[str] = set()
            for number, run in enumerate(self._follow(self._order, "write")):
                writing = archive.writer.begin(self.spec, number)
                if writing.complete:
                    continue
                encoder, step = Encoder(self.spec, str(run)), 0
                place, size = (run.path, run.index), archive.chunk_steps
                with stored.noted(run.path):
                    for part in steps_of(place, stored.reading, self.spec, size):
                        if self.spec.inputs and not step:
                            writing.give(inputs_in(self.spec, part, str(run)))
                        steps = encoder.convert(without_inputs(part, self.spec), step)
                        writing.write(steps)
                        step += len(steps)
                    if self._may_end_early:
                        writing.end()
                if not writing.complete:
                    archive.fail(number)
                if encoder.lost and encoder.lost not in lost:
                    lost.add(encoder.lost)
                    logger.warning("%s: %s", run, encoder.lost)
            stored.require_none_left_out()
        finally:
            archive.release()
        return archive


def _stamp(path: Path) -> str:
    """Return what changes with a file, or a folder of Zarr's."""
    stats = [part.stat() for part in (path, *path.rglob("*"))]
    return f"{sum(s.st_size for s in stats)} {max(s.st_mtime_ns for s in stats)}"
