"""Input fields of the simulations of which a store holds steps: one copy of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float32, Int

from surrogate_flow.reservoir.memory import Memory, Slots
from surrogate_flow.reservoir.slab import Slab

__all__ = ["Fields", "InputFields", "Inputs", "Kept"]

Inputs = Float32[np.ndarray, " input *space"]
Numbers = Int[np.ndarray, " slot"]
#: simulation -> its input fields
Fields = Mapping[int, Inputs]


class Kept(NamedTuple):
    """Rows that stay as they are until `InputFields.end_read`, and whose they are."""

    memory: Memory
    rows: Slots
    numbers: Numbers
    reader: int

    def read(self, nbytes: int) -> Iterator[Float32[np.ndarray, "row input *space"]]:
        """Yield them in order, so many bytes at once."""
        size = max(1, nbytes * self.memory.capacity // self.memory.nbytes)
        for start in range(0, len(self.rows), size):
            part = self.rows[start : start + size]
            out = np.empty((len(part), *self.memory.step_shape), dtype=np.float32)
            self.memory.gather(part, out)
            yield out


@final
class InputFields:
    """Rows of input fields, one a simulation, and which slot of steps is of which row.

    A row is held as long as one of the simulation's steps is: there are never more rows
    than slots, however short what is left of each simulation.

    Parameters
    ----------
    memory : Memory
        With as many rows as `steps` has slots.
    steps : Slab
        Of the steps; it tells when they go.
    """

    def __init__(self, memory: Memory, steps: Slab) -> None:
        self.slab = Slab(memory, shared=True)
        self._row = np.zeros(steps.capacity, dtype=np.intp)
        self._rows: dict[int, int] = {}
        self._numbers = np.zeros(memory.capacity, dtype=np.int64)
        self.slab.dropped = self._forget
        steps.dropped = self._drop

    @property
    def count(self) -> int:
        """Number of simulations whose input fields are held."""
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of them."""
        return self.count * (self.slab.memory.nbytes // self.slab.capacity)

    def room(self, simulation: int) -> bool:
        """Whether the input fields of a simulation are there, or can be."""
        return simulation in self._rows or self.slab.free > 0

    def hold(self, simulation: int, slots: Slots) -> Slots:
        """Note of which simulation slots are; return its row if it is to be filled."""
        new = np.zeros(0, dtype=np.intp)
        if not len(slots):
            return new
        row = self._rows.get(simulation)
        if row is None:
            new = self.slab.alloc(1)
            row = self._rows[simulation] = int(new[0])
            self._numbers[row] = simulation
        self._row[slots] = row
        self.slab.retain(np.full(len(slots) - len(new), row))
        return new

    def rows(self, slots: Slots) -> Slots:
        """Return the row of each slot."""
        rows: Slots = self._row[slots]
        return rows

    def keep(self, slots: Slots) -> Kept:
        """Keep the input fields of the simulations of some slots, until `end_read`."""
        rows, reader = np.unique(self._row[slots]), self.begin_read()
        return Kept(self.slab.memory, rows, self._numbers[rows], reader)

    def restore(self, simulation: Numbers, slots: Slots, fields: Fields) -> None:
        """Hold the fields of the simulation of each slot; `fields` are by number."""
        numbers = np.unique(simulation)
        for number in numbers.tolist():
            row = self.hold(number, slots[simulation == number])
            self.slab.memory.write(row, fields[number][None])

    def begin_read(self) -> int:
        """Keep all rows as they are for a copy; return what `end_read` needs."""
        return self.slab.begin_read()

    def end_read(self, reader: int) -> bool:
        """Undo `begin_read`; return whether there is room by it."""
        return self.slab.end_read(reader)

    def _drop(self, slots: Slots) -> None:
        self.slab.release(self._row[slots])

    def _forget(self, rows: Slots) -> None:
        for number in self._numbers[rows].tolist():
            del self._rows[number]
