"""Preallocated memory for steps, in slots that are counted by reference."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Slab"]

# Of the dtype of the counts, or numpy takes a path three times as slow.
_ONE = np.int32(1)


class Slab:
    """An array of steps, ``(capacity, channel, *space)``, with free and used rows.

    A slot is released with its last reference, so a step that several windows share is
    kept once. It is free again when the copies that were under way by then are done::

        free  <=>  references == 0  and  released before the oldest reader began
                   and  not pinned

    Parameters
    ----------
    capacity : int
        Number of slots.
    step_shape : tuple of int
        ``(channel, *space)``.
    shared : bool
        Whether a slot can have more than one reference.

    Notes
    -----
    `write` and `gather` need no lock, for the rows they touch are reserved or pinned;
    numpy releases the GIL meanwhile. Everything else changes the books and needs the
    owner's lock. Pages of memory are taken from the system when they are first written.
    """

    def __init__(
        self, capacity: int, step_shape: tuple[int, ...], *, shared: bool
    ) -> None:
        self._shared = shared
        self.capacity = capacity
        self.step_shape = step_shape
        self._rows = np.empty((capacity, math.prod(step_shape)), dtype=np.float32)
        self._references = np.zeros(capacity, dtype=np.int32)
        self._stack = np.arange(capacity, dtype=np.intp)[::-1].copy()
        self._free = capacity
        self._now = 0
        self._readers: list[int] = []
        self._limbo: deque[tuple[int, Int[np.ndarray, " slot"]]] = deque()
        self._pending = 0
        self._pinned = np.zeros(capacity, dtype=bool)
        self._owed = np.zeros(capacity, dtype=bool)
        self._pins = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the steps take when every slot is used."""
        return self._rows.nbytes

    @property
    def free(self) -> int:
        """Number of slots that can be allocated now."""
        return self._free

    @property
    def pending(self) -> int:
        """Number of slots that become free when the copies under way are done."""
        return self._pending

    def alloc(self, count: int) -> Int[np.ndarray, " slot"]:
        """Take `count` free slots, each with one reference."""
        if count > self._free:
            raise ValueError(f"Slab: expected at most {self._free} slots, got {count}.")
        slots = self._stack[self._free - count : self._free][::-1].copy()
        self._free -= count
        self._references[slots] = 1
        return slots

    def retain(self, slots: Int[np.ndarray, " slot"]) -> None:
        """Add a reference for every time that a slot is named."""
        np.add.at(self._references, slots, _ONE)

    def release(self, slots: Int[np.ndarray, " slot"]) -> None:
        """Drop a reference for every time that a slot is named."""
        if self._shared:
            np.subtract.at(self._references, slots, _ONE)
            slots = np.unique(slots[self._references[slots] == 0])
        else:
            self._references[slots] = 0
        if not self._readers:
            self._give_back(slots)
        elif len(slots):
            self._limbo.append((self._now, slots))
            self._pending += len(slots)

    def begin_read(self) -> int:
        """Keep all rows as they are for a copy; return what `end_read` needs."""
        self._now += 1
        self._readers.append(self._now)
        return self._now

    def end_read(self, reader: int) -> bool:
        """Undo `begin_read`; return whether slots became free by it."""
        self._readers.remove(reader)
        oldest = min(self._readers, default=self._now + 1)
        before = self._free
        while self._limbo and self._limbo[0][0] < oldest:
            released = self._limbo.popleft()[1]
            self._pending -= len(released)
            self._give_back(released)
        return self._free > before

    def pin(self, slots: Int[np.ndarray, " slot"]) -> None:
        """Keep rows as they are, released or not, until `unpin`."""
        self._pinned[slots] = True
        self._pins = int(np.count_nonzero(self._pinned))

    def pinned(self, count: int) -> Int[np.ndarray, " slot"]:
        """Return up to `count` pinned rows: first those that somebody waits for."""
        owed = np.flatnonzero(self._owed)[:count]
        if len(owed) == count:
            return owed
        others = np.flatnonzero(self._pinned & ~self._owed)[: count - len(owed)]
        return np.concatenate([owed, others])

    def unpin(self, slots: Int[np.ndarray, " slot"]) -> None:
        """Undo `pin`; rows that were released meanwhile are free now."""
        self._pinned[slots] = False
        self._pins -= len(slots)
        free = slots[self._owed[slots]]
        self._owed[free] = False
        self._pending -= len(free)
        self._give_back(free)

    def referenced(self, slots: Int[np.ndarray, " slot"]) -> Int[np.ndarray, " slot"]:
        """Return those of the slots that somebody still refers to."""
        held: Int[np.ndarray, " slot"] = slots[self._references[slots] > 0]
        return held

    def write(
        self,
        slots: Int[np.ndarray, " time"],
        steps: Float[np.ndarray, "time channel *space"],
    ) -> None:
        """Copy steps into reserved slots."""
        self._rows[slots] = steps.reshape(len(slots), self._rows.shape[1])

    def gather(
        self,
        slots: Int[np.ndarray, " row"],
        out: Float[np.ndarray, "row channel *space"],
    ) -> None:
        """Copy rows that are being read into `out`, which is C-contiguous."""
        # With mode="raise" numpy fills a second buffer first, to keep `out` whole on an
        # error.
        flat = out.reshape(len(slots), self._rows.shape[1])
        np.take(self._rows, slots, axis=0, out=flat, mode="clip")

    def _give_back(self, slots: Int[np.ndarray, " slot"]) -> None:
        if self._pins:
            held = self._pinned[slots]
            self._owed[slots[held]] = True
            self._pending += int(np.count_nonzero(held))
            slots = slots[~held]
        self._stack[self._free : self._free + len(slots)] = slots
        self._free += len(slots)
