"""A data set on disk: created, completed, read."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from jaxtyping import Float, Float32, Float64, Int

from surrogate_flow.dataset import layout
from surrogate_flow.dataset.provenance import FORMAT, Provenance
from surrogate_flow.dataset.writer import (
    ABSENT,
    COMPLETE,
    FAILED,
    LENGTH,
    STATE,
    ArchiveError,
    Writer,
)
from surrogate_flow.fields.html import rows_of, table
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.quantities import Simulation, Variable
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.staggered import boxed
from surrogate_flow.files import DirectoryLock

__all__ = ["Archive"]

logger = logging.getLogger(__name__)

_SPENT = "solver_seconds"
_READ_FROM = "read_from"
_EARLY = "ended_early"


# Raised by zarr for a part that is missing or damaged.
_DAMAGED = (KeyError, ValueError, TypeError, OSError, RuntimeError)


class Archive:
    """``u[simulation, time, *space]`` of each variable, in Zarr format 3.

    Rows are the numbers of the simulations, the held-out ones first. The array
    ``state`` says which are complete: it is written last, so a simulation that was
    interrupted counts as absent.

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
        Provenance; nested values are JSON text.

    Raises
    ------
    ArchiveError
        If there is none, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._group: Any = layout.open_group(path)
        self._lock: DirectoryLock | None = None
        self.attributes: dict[str, Any] = dict(self._group.attrs)
        got = self.attributes.get("format")
        if str(self.attributes.get("title")).startswith("Prediction of a surrogate"):
            raise ArchiveError(
                f"{path}: expected a data set, got a prediction. Name one that "
                "generate or import has written."
            )
        if got != FORMAT:
            raise ArchiveError(
                f"{path}: expected a data set of format {FORMAT}, got "
                f"{got or 'no such entry'}. It was written by another program, or by "
                "another version of this one."
            )
        try:
            self.spec = FieldSpec.from_plain(json.loads(self.attributes["spec"]))
            self.held_out = int(json.loads(self.attributes["held_out"]))
            self._arrays = [self._group[v.name] for v in self.spec.variables]
            self._inputs = [self._group[v.name] for v in self.spec.inputs]
            self._state = self._group[STATE]
            self.simulations = int(self._state.shape[0])
            names = [p.name for p in self.spec.parameters]
            columns = layout.columns(path, self._group, names, self.simulations)
            layout.require_coordinates(path, self._group, self.spec)
        except _DAMAGED as error:
            raise ArchiveError(
                f"{path} is damaged ({type(error).__name__}: {error}): a part that all "
                "data sets have is missing, or cut off. Copy it or generate it again."
            ) from error
        vectors = np.array(columns, dtype=np.float64)
        self.parameters: Float64[np.ndarray, "simulation parameter"] = vectors.reshape(
            len(names), self.simulations
        ).T
        self.chunk_steps = int(self._arrays[0].chunks[1])

    @classmethod
    def prepare(
        cls, path: Path, provenance: Provenance, simulations: Sequence[Simulation]
    ) -> Self:
        """Create a data set, or open one of the same simulations to add to it.

        No other process can do so until `release`, or the end of this one.

        Raises
        ------
        ArchiveError
            If it has other simulations, cannot be written, or another process adds to
            it.
        """
        parameters = [simulation.parameters for simulation in simulations]
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            try:
                layout.create_group(path, provenance, parameters)
            except OSError as error:
                # Unless another process has just created it.
                if not (path / "zarr.json").is_file():
                    raise ArchiveError(
                        f"{path} cannot be written ({error}). Make room there, or give "
                        "another path."
                    ) from error
        if not os.access(path, os.W_OK):
            raise ArchiveError(f"{path} is not writable for you: give another path.")
        layout.open_group(path)  # Nothing is written into what is no data set.
        lock = layout.lock_folder(path)
        try:
            archive = cls(path)
            provenance.require_same(archive.attributes, str(path))
            archive._require_parameters(
                np.array([provenance.spec.vector(p) for p in parameters])
            )
            grown = len(parameters) - archive.simulations
            if grown > 0 or (grown == 0 and not archive._even):
                layout.add_rows(
                    archive._group, archive.spec, parameters, archive.held_out
                )
                layout.consolidate(path)
                archive = cls(path)
        except BaseException:
            lock.release(remove=True)
            raise
        archive._lock = lock
        return archive

    def _require_parameters(
        self, vectors: Float64[np.ndarray, "simulation parameter"]
    ) -> None:
        """Refuse simulations of the same numbers and other parameters."""
        common = min(len(vectors), self.simulations)
        differing = np.any(self.parameters[:common] != vectors[:common], axis=1)
        if differing.any():
            row = int(differing.argmax())
            raise ArchiveError(
                f"{self.path} has other parameters for simulation {row}: expected "
                f"{vectors[row].tolist()}, got {self.parameters[row].tolist()}. "
                "Nothing was changed in it. The sampler draws other points than when "
                "the data set was generated: give another path."
            )

    def release(self) -> None:
        """Let other processes add to it; may be called again."""
        if self._lock is not None:
            self._lock.release(remove=True)

    @property
    def _even(self) -> bool:
        """Whether all arrays have as many rows: no growth was interrupted."""
        names = [p.name for p in self.spec.parameters]
        sizes = {self._group[n].shape[0] for n in (*names, layout.ROW)}
        arrays = (*self._arrays, *self._inputs)
        return sizes | {a.shape[0] for a in arrays} == {self.simulations}

    @property
    def writer(self) -> Writer:
        """The writer for workers."""
        return Writer(str(self.path.resolve()), self.chunk_steps)

    def states(self) -> Int[np.ndarray, " simulation"]:
        """Return of each simulation whether it is absent, complete or failed."""
        try:
            states: Int[np.ndarray, " simulation"] = self._state[:]
        except _DAMAGED as error:
            raise self._damaged(STATE, error) from error
        return states

    def steps(self) -> Int[np.ndarray, " simulation"]:
        """Return how many steps each simulation has, once it is complete."""
        whole = np.full(self.simulations, self.spec.steps)
        if not (self.path / LENGTH).is_dir():
            return whole
        try:
            array: Any = zarr.open_array(self.path / LENGTH, mode="r")
            lengths = array[:]
        except _DAMAGED as error:
            raise self._damaged(LENGTH, error) from error
        # A growth of the data set may have been interrupted.
        whole[: len(lengths)] = lengths[: self.simulations]
        return whole

    def _damaged(self, name: str, error: Exception) -> ArchiveError:
        return ArchiveError(
            f"{self.path} is damaged: its array {name!r} cannot be read "
            f"({type(error).__name__}: {error}). Copy the data set again."
        )

    def complete(self) -> list[int]:
        """Return the numbers of the complete simulations."""
        return [int(n) for n in np.flatnonzero(self.states() == COMPLETE)]

    def fail(self, simulation: int) -> None:
        """Mark a simulation that failed permanently, unless it is complete.

        A disk error is logged: an unmarked simulation counts as absent.
        """
        try:
            if self._state[simulation] != COMPLETE:
                self._state[simulation] = FAILED
        except _DAMAGED as error:
            what = f"{self.path}: simulation {simulation}"
            logger.error("%s was not marked as failed (%s).", what, error)

    @property
    def solver_seconds(self) -> float:
        """Seconds of all simulations that were run to fill it."""
        return float(self.attributes.get(_SPENT, 0.0))

    @property
    def early(self) -> dict[str, list[tuple[int, int]]]:
        """Simulations that have ended early, by reason, as far as runs noted it."""
        noted = json.loads(self.attributes.get(_EARLY, "{}"))
        return {kind: [(a, b) for a, b in noted[kind]] for kind in noted}

    def spend(
        self,
        seconds: float,
        early: Mapping[str, Iterable[tuple[int, int]]] | None = None,
    ) -> None:
        """Add to `solver_seconds`, and to `early`."""
        changed: dict[str, Any] = {_SPENT: self.solver_seconds + seconds}
        if early:
            numbers = {
                kind: (IntSet(self.early.get(kind, ())) | IntSet(ranges)).ranges
                for kind, ranges in early.items()
            }
            changed[_EARLY] = json.dumps(self.early | numbers)
        self.attributes |= changed
        try:
            self._group.attrs.update(changed)
            layout.consolidate(self.path)
        except OSError as error:
            logger.error("%s: %s was not noted (%s).", self.path, _SPENT, error)

    def require_chunks(self, simulations: Collection[int]) -> None:
        """Refuse simulations with missing or empty chunks.

        Other damage is found by its checksum when a chunk is read.
        """
        if lost := self._lost_chunks(simulations):
            count = sum(map(len, lost.values()))
            number, names = next(iter(lost.items()))
            raise ArchiveError(
                f"{self.path} is cut off: {count} chunks are missing or empty, "
                f"{names[0]} of simulation {number} first. Copy it again, or type the "
                "command that generated it, which adds what is missing."
            )

    def read_from(self, stamps: Sequence[str]) -> list[int]:
        """Note of what each simulation is read; mark those of another as absent.

        Returns their numbers.
        """
        noted = json.loads(self.attributes.get(_READ_FROM, "[]"))
        pairs = enumerate(zip(noted, stamps, strict=False))
        changed = [n for n, (old, new) in pairs if old != new]
        changed = sorted({*changed} & {*self.complete()})
        for number in changed:
            self._state[number] = ABSENT
        self._group.attrs[_READ_FROM] = self.attributes[_READ_FROM] = json.dumps(stamps)
        layout.consolidate(self.path)
        return changed

    def drop_incomplete(self) -> list[int]:
        """Mark simulations that have lost chunks as absent; return their numbers."""
        for number in (lost := list(self._lost_chunks(self.complete()))):
            self._state[number] = ABSENT
        return lost

    def _lost_chunks(self, simulations: Collection[int]) -> dict[int, list[str]]:
        # Zarr reads a missing chunk as NaN.
        steps = self.steps()
        lost: dict[int, list[str]] = {}
        for n in simulations:
            chunks = range(-(-steps[n] // self.chunk_steps))
            names = [self._input_file(v.name, n) for v in self.spec.inputs]
            for variable in self.spec.variables:
                names += self._chunk_files(variable.name, n, chunks)
            for name in names:
                path = self.path / name
                if not path.is_file() or not path.stat().st_size:
                    lost.setdefault(n, []).append(name)
        return lost

    def _input_file(self, name: str, simulation: int) -> str:
        return f"{name}/c.{simulation}" + ".0" * len(self.spec.dims)

    def _chunk_files(self, variable: str, simulation: int, chunks: range) -> list[str]:
        space = ".0" * len(self.spec.dims)
        return [f"{variable}/c.{simulation}.{k}{space}" for k in chunks]

    def read(
        self,
        simulation: int,
        first: int,
        out: Float32[np.ndarray, "time channel *space"],
    ) -> None:
        """Read steps of a complete simulation into `out`, from `first` on."""
        stop = first + len(out)
        try:
            for channel, (array, variable) in enumerate(
                zip(self._arrays, self.spec.variables, strict=True)
            ):
                steps = array[simulation, first:stop]
                out[:, channel] = boxed(self.spec, variable, steps)
        except _DAMAGED as error:
            raise self._unreadable(simulation, first, stop, str(error)) from error
        if not self._whole(out):
            raise self._unreadable(simulation, first, stop, "values are missing or NaN")

    def _whole(self, steps: Float32[np.ndarray, "time channel *space"]) -> bool:
        """Whether no value is missing; masked ones are NaN, but never a whole field."""
        if np.isfinite(steps.sum(dtype=np.float64)):
            return True
        return all(
            _present(v, self.spec.part(steps, channel))
            for channel, v in enumerate(self.spec.variables)
        )

    def inputs(self, simulation: int) -> Float32[np.ndarray, " input *space"]:
        """Read the input fields of a complete simulation."""
        fields = np.empty(self.spec.input_shape, dtype=np.float32)
        for array, variable, out in zip(
            self._inputs, self.spec.inputs, fields, strict=True
        ):
            try:
                out[...] = array[simulation]
                present = _present(variable, out[None])
                why = "" if present else "values are missing or NaN"
            except _DAMAGED as error:
                why = str(error) or type(error).__name__
            if why:
                name = self._input_file(variable.name, simulation)
                raise ArchiveError(
                    f"{self.path}: {name} is damaged or missing ({why}). Copy the data "
                    "set again, or delete that file and type the command that "
                    "generated it."
                )
        return fields

    def _unreadable(
        self, simulation: int, first: int, stop: int, why: str
    ) -> ArchiveError:
        """Return an error that names the first chunk that is damaged."""
        where = f"{self.path}: steps {first} to {stop - 1} of simulation {simulation}"
        size = self.chunk_steps
        chunks = range(first // size, -(-stop // size))
        for variable, array in zip(self.spec.variables, self._arrays, strict=True):
            names = self._chunk_files(variable.name, simulation, chunks)
            for k, name in zip(chunks, names, strict=True):
                steps = slice(max(first, k * size), min(stop, (k + 1) * size))
                if not _readable(variable, array, simulation, steps):
                    return ArchiveError(
                        f"{where} cannot be read: {name} is damaged or missing ({why})."
                        " Copy the data set again, or delete that file and type the "
                        "command that generated it."
                    )
        return ArchiveError(
            f"{where} could not be read ({why}) and now can be. Type the command again."
        )

    def _repr_html_(self) -> str:
        """Return what it holds, for a notebook."""
        complete = f"{len(self.complete())} of {self.simulations} complete"
        rows = [
            ("path", str(self.path)),
            ("simulations", f"{complete}, {self.held_out} held out"),
            *rows_of(self.spec),
        ]
        return table("Data set", rows)

    def size(self) -> int:
        """Return the bytes on disk."""
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())


def _present(variable: Variable, fields: Float[np.ndarray, " time *space"]) -> bool:
    known = np.isfinite(fields).reshape(len(fields), -1)
    return bool(known.any(axis=1).all() if variable.masked else known.all())


def _readable(variable: Variable, array: Any, simulation: int, steps: slice) -> bool:
    """Whether some steps can be read, and none is missing."""
    try:
        return _present(variable, array[simulation, steps])
    except _DAMAGED:
        return False
