"""Which slots of the memory hold steps, counted by reference."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import final

import numpy as np

from surrogate_flow.reservoir.memory import Memory, Slots

__all__ = ["Slab"]

# Of the dtype of the counts, or numpy takes a path three times as slow.
_ONE = np.int32(1)


@final
class Slab:
    """Free and used slots of a memory of steps.

    A slot is released with its last reference, so a step that several samples share is
    kept once. It is free again when the copies that were under way by then are done::

        free  <=>  references == 0  and  released before the oldest reader began
                   and  not pinned

    Where slots are `shared`, one can have more than one reference.

    Attributes
    ----------
    dropped : callable, optional
        Called with the slots whose last reference was dropped.
    free : int
        Number of slots that can be allocated now.
    pending : int
        Number of slots that become free when the copies under way are done.
    """

    def __init__(self, memory: Memory, *, shared: bool) -> None:
        self.memory = memory
        self._shared = shared
        self.capacity = capacity = memory.capacity
        self._references = np.zeros(capacity, dtype=np.int32)
        self._stack = np.arange(capacity, dtype=np.intp)[::-1].copy()
        self.free, self.pending = capacity, 0
        self._now = 0
        self._readers: list[int] = []
        self._released: deque[tuple[int, Slots]] = deque()
        self._pinned = np.zeros(capacity, dtype=bool)
        self._awaited = np.zeros(capacity, dtype=bool)
        self._pins = 0
        self.dropped: Callable[[Slots], None] | None = None

    def alloc(self, count: int) -> Slots:
        """Take so many of the free slots, each with one reference."""
        slots = self._stack[self.free - count : self.free][::-1].copy()
        self.free -= count
        self._references[slots] = 1
        return slots

    def retain(self, slots: Slots) -> None:
        """Add a reference for every time that a slot is named."""
        np.add.at(self._references, slots, _ONE)

    def release(self, slots: Slots) -> None:
        """Drop a reference for every time that a slot is named."""
        if self._shared:
            np.subtract.at(self._references, slots, _ONE)
            slots = np.unique(slots[self._references[slots] == 0])
        else:
            self._references[slots] = 0
        if self.dropped is not None:
            self.dropped(slots)
        if not self._readers:
            self._free_up(slots)
        elif len(slots):
            self._released.append((self._now, slots))
            self.pending += len(slots)

    def begin_read(self) -> int:
        """Keep all steps as they are for a copy; return what `end_read` needs."""
        self._now += 1
        self._readers.append(self._now)
        return self._now

    def end_read(self, reader: int) -> bool:
        """Undo `begin_read`; return whether slots became free by it."""
        self._readers.remove(reader)
        oldest = min(self._readers, default=self._now + 1)
        before = self.free
        while self._released and self._released[0][0] < oldest:
            slots = self._released.popleft()[1]
            self.pending -= len(slots)
            self._free_up(slots)
        return self.free > before

    def pin(self, slots: Slots) -> None:
        """Keep steps as they are, released or not, until `unpin`."""
        self._pinned[slots] = True
        self._pins = int(np.count_nonzero(self._pinned))

    def pinned(self, count: int) -> Slots:
        """Return up to `count` pinned slots: first those that simulations wait for."""
        awaited = np.flatnonzero(self._awaited)[:count]
        if len(awaited) == count:
            return awaited
        others = np.flatnonzero(self._pinned & ~self._awaited)[: count - len(awaited)]
        return np.concatenate([awaited, others])

    def unpin(self, slots: Slots) -> None:
        """Undo `pin`; slots that were released meanwhile are free now."""
        self._pinned[slots] = False
        self._pins -= len(slots)
        free = slots[self._awaited[slots]]
        self._awaited[free] = False
        self.pending -= len(free)
        self._free_up(free)

    def _free_up(self, slots: Slots) -> None:
        if self._pins:
            held = self._pinned[slots]
            self._awaited[slots[held]] = True
            self.pending += int(np.count_nonzero(held))
            slots = slots[~held]
        self._stack[self.free : self.free + len(slots)] = slots
        self.free += len(slots)
