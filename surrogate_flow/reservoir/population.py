"""The samples that a store holds, parted into unseen and seen."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Int

__all__ = ["Members", "Population"]


class Members(Protocol):
    """The samples that a store holds, in the order that its policy needs."""

    def __len__(self) -> int: ...

    @property
    def unseen(self) -> int:
        """Number of samples not drawn yet."""

    @property
    def samples(self) -> Int[np.ndarray, " sample"]:
        """All samples, in any order."""

    def add(self, samples: Int[np.ndarray, " sample"]) -> None:
        """Add samples that are not in it."""

    def fill(self, samples: Int[np.ndarray, " sample"], unseen: int) -> None:
        """Hold just these, in this order; the first `unseen` were never drawn."""


class Population:
    """A dense array of sample numbers, parted in two::

        order = [ unseen ... | seen ... | not used ]
                 0           unseen     count

    and the inverse of it, ``order[position[sample]] == sample``. Adding, marking and
    removing move one other sample for each sample named, so all cost O(1) a sample, and
    run as a few numpy calls for a whole block. Any part can be drawn from uniformly, by
    position.

    Parameters
    ----------
    capacity : int
        Sample numbers are ``0 <= sample < capacity``.

    Notes
    -----
    Not thread-safe by itself: a store calls it under its lock.

    Examples
    --------
    >>> population = Population(10)
    >>> population.add(np.array([7, 8, 9]))
    >>> population.mark_seen(np.array([8, 8]))
    >>> population.unseen, len(population)
    (2, 3)
    >>> population.samples.tolist()
    [7, 9, 8]
    >>> population.remove(np.array([0])).tolist(), population.samples.tolist()
    ([7], [9, 8])
    """

    def __init__(self, capacity: int) -> None:
        self._order = np.zeros(capacity, dtype=np.intp)
        self._position = np.zeros(capacity, dtype=np.intp)
        self._unseen = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def unseen(self) -> int:
        """Number of samples not drawn yet; they come first in `samples`."""
        return self._unseen

    @property
    def samples(self) -> Int[np.ndarray, " sample"]:
        """A view of all samples: the unseen, then the seen."""
        return self._order[: self._count]

    def add(self, samples: Int[np.ndarray, " sample"]) -> None:
        """Add samples that are not in it, as unseen."""
        first, end, count = self._unseen, self._count, len(samples)
        moved = min(count, end - first)
        self._place(end + count - moved, self._order[first : first + moved].copy())
        self._place(first, samples)
        self._unseen += count
        self._count += count

    def fill(self, samples: Int[np.ndarray, " sample"], unseen: int) -> None:
        """Hold just these, in this order; the first `unseen` were never drawn."""
        self._place(0, samples)
        self._count, self._unseen = len(samples), unseen

    def mark_seen(self, samples: Int[np.ndarray, " sample"]) -> None:
        """Mark samples as seen; they may repeat, and may be seen already."""
        places = self._position[samples]
        places = places[places < self._unseen]
        if len(places):
            # As np.unique, which costs several times as much for so few.
            places.sort()
            first = np.empty(len(places), dtype=bool)
            first[0] = True
            np.not_equal(places[1:], places[:-1], out=first[1:])
            places = places[first]
            self._move_last(places, self._unseen)
            self._unseen -= len(places)

    def remove(self, places: Int[np.ndarray, " sample"]) -> Int[np.ndarray, " sample"]:
        """Remove and return the samples at distinct places of `samples`."""
        removed: Int[np.ndarray, " sample"] = self._order[places]
        places = np.sort(places)
        unseen = int(places.searchsorted(self._unseen))
        if unseen:
            # They go to the end of the unseen first, which leaves no hole there.
            self._move_last(places[:unseen], self._unseen)
            places[:unseen] = np.arange(self._unseen - unseen, self._unseen)
            self._unseen -= unseen
        self._move_last(places, self._count)
        self._count -= len(places)
        return removed

    def _place(self, start: int, samples: Int[np.ndarray, " sample"]) -> None:
        end = start + len(samples)
        self._order[start:end] = samples
        self._position[samples] = np.arange(start, end, dtype=np.intp)

    def _move_last(self, places: Int[np.ndarray, " sample"], end: int) -> None:
        # The chosen change places with those of the last that are not chosen.
        start = end - len(places)
        inside = int(places.searchsorted(start))
        chosen = self._order[places]
        if inside:
            stays = np.ones(len(places), dtype=bool)
            stays[places[inside:] - start] = False
            fillers = self._order[start:end][stays]
            holes = places[:inside]
            self._order[holes] = fillers
            self._position[fillers] = holes
        self._place(start, chosen)
