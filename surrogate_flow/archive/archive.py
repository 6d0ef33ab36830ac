"""A data set on disk, as who plans, resumes or reads it sees it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from jaxtyping import Float32, Float64, Int

from surrogate_flow.archive import layout
from surrogate_flow.archive.errors import ArchiveError
from surrogate_flow.archive.provenance import FORMAT, Provenance
from surrogate_flow.archive.writer import ABSENT, FAILED, STATE, WHOLE, Writer
from surrogate_flow.fields import FieldSpec
from surrogate_flow.hold import LOCK, Hold
from surrogate_flow.simulation import Simulation

__all__ = ["Archive"]

logger = logging.getLogger(__name__)

_SPENT = "solver_seconds"


class Archive:
    """u[simulation, time, *space] of each variable, in Zarr format 3.

    Rows are the numbers of the simulations, the held-out ones first. ``state`` says
    which are whole: that is written last, so a simulation that was cut off is none.

    Parameters
    ----------
    path : Path
        Of a data set that exists.

    Attributes
    ----------
    spec : FieldSpec
    simulations, held_out : int
        Number of all, and of those that are kept apart from training.
    parameters : array of shape (simulation, parameter)
    attributes : dict
        Provenance; what is nested is JSON text.

    Raises
    ------
    ArchiveError
        If there is none, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._group: Any = _opened(path)
        self.attributes: dict[str, Any] = dict(self._group.attrs)
        got = self.attributes.get("format")
        if got != FORMAT:
            raise ArchiveError(
                f"{path}: expected a data set of format {FORMAT}, got "
                f"{got or 'no such entry'}. It was written by another program, or by "
                "another version of this one."
            )
        try:
            self.spec = FieldSpec.from_plain(json.loads(self.attributes["spec"]))
            self.held_out = int(json.loads(self.attributes["held_out"]))
            columns = [self._group[p.name][:] for p in self.spec.parameters]
            self._arrays = [self._group[v.name] for v in self.spec.variables]
            self._state = self._group[STATE]
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise ArchiveError(
                f"{path} is damaged ({type(error).__name__}: {error}): a part that all "
                "data sets have is missing. Copy it again, or generate it anew."
            ) from error
        self.simulations = int(self._state.shape[0])
        self.parameters: Float64[np.ndarray, "simulation parameter"] = np.array(
            columns, dtype=np.float64
        ).T
        self.chunk_steps = int(self._arrays[0].chunks[1])

    @classmethod
    def prepare(
        cls, path: Path, provenance: Provenance, simulations: Sequence[Simulation]
    ) -> Self:
        """Create a data set, or go on with one of the same simulations.

        Parameters
        ----------
        path : Path
        provenance : Provenance
        simulations : sequence of Simulation
            All that shall be in it, those that are there included.

        Raises
        ------
        ArchiveError
            If it is of other simulations, or cannot be written.
        """
        parameters = [simulation.parameters for simulation in simulations]
        vectors = np.array([provenance.spec.vector(p) for p in parameters])
        if not path.exists():
            try:
                _create(path, provenance, parameters)
            except OSError as error:
                raise ArchiveError(
                    f"{path} cannot be written ({error}). Make room there, or name "
                    "another place."
                ) from error
        archive = cls(path)
        provenance.require_same(archive.attributes, str(path))
        common = min(len(vectors), archive.simulations)
        differing = np.any(archive.parameters[:common] != vectors[:common], axis=1)
        if differing.any():
            row = int(np.flatnonzero(differing)[0])
            raise ArchiveError(
                f"{path} has other parameters for simulation {row}: expected "
                f"{vectors[row].tolist()}, got {archive.parameters[row].tolist()}. "
                "Nothing was changed in it. The sampler draws otherwise than the one "
                "that it was generated with: give another path."
            )
        if not os.access(path, os.W_OK):
            raise ArchiveError(f"{path} is not writable for you: give another path.")
        archive._tidy()
        if len(vectors) > archive.simulations or not archive._even:
            layout.add_rows(archive._group, archive.spec, parameters, archive.held_out)
            layout.consolidate(path)
            archive = cls(path)
        return archive

    @property
    def _even(self) -> bool:
        """Whether no growth was cut off half way."""
        names = [p.name for p in self.spec.parameters]
        sizes = {self._group[n].shape[0] for n in (*names, layout.ROW)}
        return sizes | {a.shape[0] for a in self._arrays} == {self.simulations}

    def _tidy(self) -> None:
        """Remove halves of chunks that killed processes have left."""
        hold = Hold.of(self.path)
        try:
            if hold.mine:
                for part in self.path.glob("*/*.partial"):
                    part.unlink(missing_ok=True)
        finally:
            hold.release()
            (self.path / LOCK).unlink(missing_ok=True)

    @property
    def writer(self) -> Writer:
        """What workers write with."""
        return Writer(str(self.path.resolve()), self.chunk_steps)

    def states(self) -> Int[np.ndarray, " simulation"]:
        """Return of each simulation whether it is absent, whole or failed."""
        try:
            states: Int[np.ndarray, " simulation"] = self._state[:]
        except (OSError, ValueError, RuntimeError) as error:
            raise ArchiveError(
                f"{self.path} is damaged: its array {STATE!r} cannot be read "
                f"({type(error).__name__}: {error}). Copy the data set again."
            ) from error
        return states

    def whole(self) -> list[int]:
        """Return the numbers of the simulations that are there."""
        return [int(n) for n in np.flatnonzero(self.states() == WHOLE)]

    def fail(self, simulation: int) -> None:
        """Mark a simulation that failed for good, unless it is whole."""
        if self._state[simulation] != WHOLE:
            self._state[simulation] = FAILED

    @property
    def solver_seconds(self) -> float:
        """Of all simulations that ``generate`` has run, together."""
        return float(self.attributes.get(_SPENT, 0.0))

    def spend(self, seconds: float) -> None:
        """Note that simulations have taken so much longer."""
        self.attributes[_SPENT] = self.solver_seconds + seconds
        try:
            self._group.attrs[_SPENT] = self.attributes[_SPENT]
            layout.consolidate(self.path)
        except OSError as error:
            logger.error("%s: %s was not noted (%s).", self.path, _SPENT, error)

    def require_chunks(self, simulations: Collection[int]) -> None:
        """Check that all chunks of some simulations are there.

        Raises
        ------
        ArchiveError
            Naming the first that is missing, and how many are.
        """
        if missing := self._missing_chunks(simulations):
            names = [name for of_one in missing.values() for name in of_one]
            raise ArchiveError(
                f"{self.path} is cut off: {len(names)} chunks are missing, {names[0]} "
                "first. A copy was interrupted, or files were deleted. Copy it again, "
                "or type the command that generated it, which adds what is missing."
            )

    def forget_cut_off(self) -> list[int]:
        """Mark simulations that have lost chunks as absent; return their numbers."""
        for number in (missing := list(self._missing_chunks(self.whole()))):
            self._state[number] = ABSENT
        return missing

    def _missing_chunks(self, simulations: Collection[int]) -> dict[int, list[str]]:
        # Zarr takes a chunk that is not there for one full of NaN.
        chunks = -(-self.spec.steps // self.chunk_steps)
        space = ".0" * len(self.spec.dims)
        missing: dict[int, list[str]] = {}
        for variable in self.spec.variables:
            there = set(os.listdir(self.path / variable.name))
            for n in simulations:
                for k in range(chunks):
                    if (name := f"c.{n}.{k}{space}") not in there:
                        missing.setdefault(n, []).append(f"{variable.name}/{name}")
        return missing

    def read(
        self,
        simulation: int,
        first: int,
        out: Float32[np.ndarray, "time channel *space"],
    ) -> None:
        """Read steps of a simulation that is whole, as many as fit.

        Raises
        ------
        ArchiveError
            If a chunk is damaged or missing.
        """
        stop = first + len(out)
        where = f"{self.path}: steps {first} to {stop - 1} of simulation {simulation}"
        try:
            for channel, array in enumerate(self._arrays):
                out[:, channel] = array[simulation, first:stop]
        except (OSError, ValueError, RuntimeError) as error:
            raise ArchiveError(
                f"{where} cannot be read ({type(error).__name__}: {error}). The file "
                "is damaged or cut off: copy it again, or delete "
                f"{STATE}/c.{simulation} and generate again."
            ) from error
        if not np.isfinite(out.sum(dtype=np.float64)):
            raise ArchiveError(
                f"{where} are not all there, or hold NaN, which no simulation yields. "
                f"Copy the data set again, or delete {STATE}/c.{simulation} and "
                "generate again."
            )

    def size(self) -> int:
        """Return the bytes on disk."""
        folders = [self.path, *(p for p in self.path.iterdir() if p.is_dir())]
        return sum(
            entry.stat().st_size
            for folder in folders
            for entry in os.scandir(folder)
            if entry.is_file()
        )


def _opened(path: Path) -> Any:
    if not (path / "zarr.json").is_file():
        what = "there is nothing" if not path.exists() else "it has no zarr.json"
        raise ArchiveError(
            f"{path} is no data set of surrogate_flow: {what}. Give the path that "
            "'surrogate-flow generate --output' wrote, or another one to write to."
        )
    try:
        return zarr.open_group(path, mode="r+", use_consolidated=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArchiveError(
            f"{path} cannot be read as a Zarr group ({type(error).__name__}: {error}). "
            "It is cut off, not readable for you, or something else."
        ) from error


def _create(path: Path, provenance: Provenance, parameters: Sequence[Any]) -> None:
    """Write a data set without simulations beside its place, then put it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        part = beside / path.name
        spec = provenance.spec
        layout.write_layout(
            part, spec, provenance.attributes(), layout.chunk_steps(spec)
        )
        group = zarr.open_group(part, mode="r+")
        layout.add_rows(group, spec, parameters, provenance.held_out)
        layout.consolidate(part)
        os.rename(part, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
