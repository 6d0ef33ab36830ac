"""The samples that a store holds, in the places among which a policy chooses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import numpy as np
from jaxtyping import Int

__all__ = ["Bag", "Places", "Population", "Queue", "Samples"]

#: Samples, each by its number: the slot of its first step.
Samples = Int[np.ndarray, " sample"]
#: Places of samples in a population, from 0 on.
Places = Int[np.ndarray, " sample"]


class Population(ABC):
    """Sample numbers in places: first those never drawn, then the others."""

    def __init__(self, capacity: int) -> None:
        # Sample numbers by place.
        self._order = np.zeros(capacity, dtype=np.intp)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    @abstractmethod
    def unseen(self) -> int:
        """Number of samples not drawn yet; they are in the first places."""

    @property
    @abstractmethod
    def samples(self) -> Samples:
        """All samples, place by place."""

    @abstractmethod
    def add(self, samples: Samples) -> None:
        """Add samples that are not in it, as unseen."""

    @abstractmethod
    def fill(self, samples: Samples, unseen: int) -> None:
        """Hold just these, in these places; the first `unseen` were never drawn."""

    @abstractmethod
    def draw(self, places: Places) -> Samples:
        """Return the samples in places, which may repeat, and mark them as seen."""

    @abstractmethod
    def remove(self, places: Places) -> Samples:
        """Return the samples in distinct places, and remove them."""


@final
class Queue(Population):
    """Samples in order of arrival, in a ring; they leave from the front, unseen.

    Examples
    --------
    >>> queue = Queue(4)
    >>> queue.add(np.array([3, 1, 2]))
    >>> queue.remove(np.arange(2)).tolist(), queue.samples.tolist()
    ([3, 1], [2])
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._head = 0

    @property
    def unseen(self) -> int:
        return self._count

    @property
    def samples(self) -> Samples:
        return self.draw(np.arange(self._count))

    def add(self, samples: Samples) -> None:
        places = self._head + self._count + np.arange(len(samples))
        self._order[places % len(self._order)] = samples
        self._count += len(samples)

    def fill(self, samples: Samples, unseen: int) -> None:
        self._head = self._count = 0
        self.add(samples)

    def draw(self, places: Places) -> Samples:
        drawn: Samples = self._order[(self._head + places) % len(self._order)]
        return drawn

    def remove(self, places: Places) -> Samples:
        removed = self.draw(places)
        self._head = (self._head + len(places)) % len(self._order)
        self._count -= len(places)
        return removed


@final
class Bag(Population):
    """A dense array of sample numbers, parted in two::

        order = [ unseen ... | seen ... | not used ]
                 0           unseen     count

    Adding, marking and removing move one other sample for each sample named, so all
    cost O(1) a sample, and run as a few numpy calls for a whole block. Any part can be
    drawn from uniformly, by place.

    Examples
    --------
    >>> bag = Bag(10)
    >>> bag.add(np.array([7, 8, 9]))
    >>> bag.draw(np.array([1, 1])).tolist(), bag.unseen, len(bag)
    ([8, 8], 2, 3)
    >>> bag.samples.tolist()
    [7, 9, 8]
    >>> bag.remove(np.array([0])).tolist(), bag.samples.tolist()
    ([7], [9, 8])
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._unseen = 0

    @property
    def unseen(self) -> int:
        return self._unseen

    @property
    def samples(self) -> Samples:
        return self._order[: self._count]

    def add(self, samples: Samples) -> None:
        first, end, count = self._unseen, self._count, len(samples)
        moved = min(count, end - first)
        kept = self._order[first : first + moved].copy()
        self._order[end + count - moved : end + count] = kept
        self._order[first : first + count] = samples
        self._unseen += count
        self._count += count

    def fill(self, samples: Samples, unseen: int) -> None:
        self._order[: len(samples)] = samples
        self._count, self._unseen = len(samples), unseen

    def draw(self, places: Places) -> Samples:
        drawn: Samples = self._order[places]
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
        return drawn

    def remove(self, places: Places) -> Samples:
        removed: Samples = self._order[places]
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

    def _move_last(self, places: Places, end: int) -> None:
        # The chosen change places with those of the last that are not chosen.
        start = end - len(places)
        inside = int(places.searchsorted(start))
        chosen = self._order[places]
        if inside:
            stays = np.ones(len(places), dtype=bool)
            stays[places[inside:] - start] = False
            self._order[places[:inside]] = self._order[start:end][stays]
        self._order[start:end] = chosen
