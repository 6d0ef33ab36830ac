"""First in, first out: each sample trains once, in the order of arrival."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np
from jaxtyping import Int

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir.memory import HostMemory, Memory
from surrogate_flow.reservoir.store import Store

__all__ = ["FIFO"]


class _Queue:
    """Sample numbers in order of arrival, in a ring."""

    def __init__(self, capacity: int) -> None:
        self._ring = np.zeros(capacity, dtype=np.int32)
        self._head = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def unseen(self) -> int:
        return self._count

    @property
    def samples(self) -> Int[np.ndarray, " sample"]:
        return self._at(0, self._count)

    def add(self, samples: Int[np.ndarray, " sample"]) -> None:
        places = self._head + self._count + np.arange(len(samples))
        self._ring[places % len(self._ring)] = samples
        self._count += len(samples)

    def fill(self, samples: Int[np.ndarray, " sample"], unseen: int) -> None:
        self._head = self._count = 0
        self.add(samples)

    def pop(self, count: int) -> Int[np.ndarray, " sample"]:
        samples = self._at(0, count)
        self._head = (self._head + count) % len(self._ring)
        self._count -= count
        return samples

    def _at(self, start: int, end: int) -> Int[np.ndarray, " sample"]:
        return self._ring[(self._head + np.arange(start, end)) % len(self._ring)]


@final
class FIFO(Store):
    """A queue. With `n` samples held::

        put  waits  <=>  no slot is free
        draw waits  <=>  n < batch_size  (while steps come in)

    Parameters
    ----------
    spec, window, batch_size, capacity, memory
        As `Store`.
    """

    _members: _Queue

    def __init__(
        self,
        spec: FieldSpec,
        window: Window,
        batch_size: int,
        *,
        capacity: int | str,
        memory: Callable[[int, tuple[int, ...], int], Memory] = HostMemory,
    ) -> None:
        super().__init__(spec, window, batch_size, capacity=capacity, memory=memory)
        self._members = _Queue(self.capacity)

    def _needed(self) -> int:
        return self.batch_size

    def _take(self) -> tuple[Int[np.ndarray, " sample"], bool]:
        return self._members.pop(min(self.batch_size, len(self._members))), True
