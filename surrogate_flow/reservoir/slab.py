"""Which rows of the memory hold steps: slots, counted by reference."""

from __future__ import annotations

from collections import deque

import numpy as np
from jaxtyping import Int

from surrogate_flow.reservoir.memory import Memory

__all__ = ["Slab"]

# Of the dtype of the counts, or numpy takes a path three times as slow.
_ONE = np.int32(1)


class Slab:
    """Free and used rows of a memory of steps.

    A slot is released with its last reference, so a step that several windows share is
    kept once. It is free again when the copies that were under way by then are done::

        free  <=>  references == 0  and  released before the oldest reader began
                   and  not pinned

    Parameters
    ----------
    memory : Memory
        The rows, as many as there are slots.
    shared : bool
        Whether a slot can have more than one reference.

    Notes
    -----
    To copy to or from `memory` needs no lock, for the rows are reserved or pinned.
    Everything else changes the books and needs the owner's lock.
    """

    def __init__(self, memory: Memory, *, shared: bool) -> None:
        self.memory = memory
        self._shared = shared
        self.capacity = capacity = memory.capacity
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

    def _give_back(self, slots: Int[np.ndarray, " slot"]) -> None:
        if self._pins:
            held = self._pinned[slots]
            self._owed[slots[held]] = True
            self._pending += int(np.count_nonzero(held))
            slots = slots[~held]
        self._stack[self._free : self._free + len(slots)] = slots
        self._free += len(slots)
