"""Writing a simulation on a worker: complete chunks, then its state."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.spec import FieldSpec

__all__ = [
    "ABSENT",
    "COMPLETE",
    "FAILED",
    "LENGTH",
    "STATE",
    "ArchiveError",
    "Writer",
    "Writing",
]

STATE = "state"  # name of the array whose values are
ABSENT, COMPLETE, FAILED = 0, 1, 2
# Numbers of steps: an array that is there once a simulation has ended early.
LENGTH = "ended_after"


class ArchiveError(UserError, RuntimeError):
    """A data set cannot be written, cannot be read, or is not the one expected."""


@dataclass(frozen=True)
class Writer:
    """Writes simulations into a data set, on the workers; it can be pickled.

    Attributes
    ----------
    path : str
        Of the data set, on a file system that all workers share.
    chunk_steps : int
        Steps of a chunk.
    """

    path: str
    chunk_steps: int

    def begin(self, spec: FieldSpec, simulation: int) -> Writing:
        """Begin an attempt at a simulation."""
        return Writing(self, spec, simulation)


class Writing:
    """One attempt at one simulation, which is marked complete after its last step.

    A chunk is written completely or not at all, and belongs to one simulation: another
    attempt writes the same bytes again. A disk error is an `ArchiveError`.

    Attributes
    ----------
    complete : bool
        Whether all steps are written, by an earlier attempt or this one; further ones
        are dropped.
    steps : int
        How many they are, if it is complete.
    """

    def __init__(self, writer: Writer, spec: FieldSpec, simulation: int) -> None:
        # Importing zarr takes a second; workers without a data set need not.
        import zarr

        self._writer, self._spec = writer, spec
        self._simulation = simulation
        self._steps = self.steps = spec.steps
        self._position = self._first = 0
        self._folder = folder = Path(writer.path)
        with self._explained("opened"):
            self._arrays, self._inputs = (
                [zarr.open_array(folder / v.name, mode="r+") for v in variables]
                for variables in (spec.variables, spec.inputs)
            )
            self._state: Any = zarr.open_array(folder / STATE, mode="r+")
            self.complete = bool(self._state[simulation] == COMPLETE)
            if self.complete and (folder / LENGTH).exists():
                lengths: Any = zarr.open_array(folder / LENGTH, mode="r")
                self.steps = int(lengths[simulation])
        size = min(writer.chunk_steps, spec.steps)
        self._chunk = np.empty((size, *spec.step_shape), dtype=np.float32)

    def give(self, inputs: Float32[np.ndarray, " input *space"]) -> None:
        """Write the input fields; they are on the disk on return."""
        if self.complete:
            return
        with self._explained("written"):
            for array, field in zip(self._inputs, inputs, strict=True):
                array[self._simulation] = field

    def write(self, steps: Float32[np.ndarray, "time channel *space"]) -> None:
        """Add the next steps; full chunks are on the disk on return."""
        while len(steps) and not self.complete:
            held = self._position - self._first
            part = steps[: len(self._chunk) - held]
            self._chunk[held : held + len(part)] = part
            self._position += len(part)
            steps = steps[len(part) :]
            last = self._position == self._steps
            if last or self._position - self._first == len(self._chunk):
                self._flush()
            if last:
                self._complete()

    def end(self) -> None:
        """Mark the simulation complete with the steps that were written, if any were.

        All behind them is NaN, whatever an earlier attempt has written.
        """
        if self.complete or not self._position:
            return
        self.steps = self._position
        self._chunk[self._position - self._first :] = np.nan
        self._position = min(self._first + len(self._chunk), self._steps)
        self._flush()
        with self._explained("written"):
            for array in self._arrays:
                array[self._simulation, self._first :] = np.nan
        self._complete()

    def _complete(self) -> None:
        with self._explained("marked"):
            if self.steps < self._steps or (self._folder / LENGTH).exists():
                self._note_length()
            self._state[self._simulation] = COMPLETE
        self.complete = True

    def _note_length(self) -> None:
        """Write the number of steps; the first simulation to do so makes the array."""
        import zarr

        path = self._folder / LENGTH
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".") as folder:
                zarr.create_array(
                    Path(folder) / LENGTH,
                    shape=self._state.shape,
                    chunks=(1,),
                    dtype="int64",
                    fill_value=self._steps,
                    compressors=None,
                    dimension_names=self._state.metadata.dimension_names,
                    chunk_key_encoding={"name": "default", "separator": "."},
                    attributes={"long_name": "number of steps of the simulation"},
                )
                # Onto that of another worker it fails, and this one goes.
                with suppress(OSError):
                    os.rename(Path(folder) / LENGTH, path)
        lengths: Any = zarr.open_array(path, mode="r+")
        lengths[self._simulation] = self.steps

    def _flush(self) -> None:
        first, stop = self._first, self._position
        with self._explained("written"):
            for channel, array in enumerate(self._arrays):
                steps = self._spec.part(self._chunk[: stop - first], channel)
                array[self._simulation, first:stop] = steps
        self._first = stop

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArchiveError(
                f"Simulation {self._simulation} could not be {what} in "
                f"{self._writer.path} on {socket.gethostname()} "
                f"({type(error).__name__}: {error}). Make room on the disk, or give a "
                "path that this machine shares, then type the same command again: "
                "complete simulations stay."
            ) from error
