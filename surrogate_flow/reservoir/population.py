"""The samples that a store holds, in the places among which a policy chooses."""

from __future__ import annotations

from typing import final

import numpy as np
from jaxtyping import Int

__all__ = ["Bag", "Places", "Population", "Queue", "Samples"]

#: Samples, each by its number: the slot of its first step.
Samples = Int[np.ndarray, " sample"]
#: Places of samples in a population, from 0 on.
Places = Int[np.ndarray, " sample"]


@final
class Bag:
    """A dense array of sample numbers, parted in two::

        order = [ unseen ... | seen ... | not used ]
                 0           unseen     count

    Adding, marking and removing move one other sample for each sample named, so all
    cost O(1) a sample, and run as a few numpy calls for a block. Any part can be drawn
    from uniformly, by place.

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
        self._order = np.zeros(capacity, dtype=np.intp)
        self._count = 0
        #: Number of samples not drawn yet; they are in the first places.
        self.unseen = 0

    def __len__(self) -> int:
        return self._count

    @property
    def samples(self) -> Samples:
        """All samples, place by place."""
        return self._order[: self._count]

    def add(self, samples: Samples) -> None:
        """Add samples that are not in it, as unseen."""
        first, end, count = self.unseen, self._count, len(samples)
        moved = min(count, end - first)
        kept = self._order[first : first + moved].copy()
        self._order[end + count - moved : end + count] = kept
        self._order[first : first + count] = samples
        self.unseen += count
        self._count += count

    def fill(self, samples: Samples, unseen: int) -> None:
        """Hold just these, in these places; the first `unseen` were never drawn."""
        self._order[: len(samples)] = samples
        self._count, self.unseen = len(samples), unseen

    def draw(self, places: Places) -> Samples:
        """Return the samples in places, which may repeat, and mark them as seen."""
        drawn: Samples = self._order[places]
        places = places[places < self.unseen]
        if len(places):
            # As np.unique, which costs several times as much for so few.
            places.sort()
            first = np.empty(len(places), dtype=bool)
            first[0] = True
            np.not_equal(places[1:], places[:-1], out=first[1:])
            places = places[first]
            self._move_last(places, self.unseen)
            self.unseen -= len(places)
        return drawn

    def remove(self, places: Places) -> Samples:
        """Return the samples in distinct places, and remove them."""
        removed: Samples = self._order[places]
        places = np.sort(places)
        unseen = int(places.searchsorted(self.unseen))
        if unseen:
            # They go to the end of the unseen first, which leaves no hole there.
            self._move_last(places[:unseen], self.unseen)
            places[:unseen] = np.arange(self.unseen - unseen, self.unseen)
            self.unseen -= unseen
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


@final
class Queue:
    """Samples in order of arrival, in a ring; they leave from the front, unseen.

    Methods are those of `Bag`.

    Examples
    --------
    >>> queue = Queue(4)
    >>> queue.add(np.array([3, 1, 2]))
    >>> queue.remove(np.arange(2)).tolist(), queue.samples.tolist()
    ([3, 1], [2])
    """

    def __init__(self, capacity: int) -> None:
        self._ring = np.zeros(capacity, dtype=np.intp)
        self._head = self.unseen = 0

    def __len__(self) -> int:
        return self.unseen

    @property
    def samples(self) -> Samples:
        return self.draw(np.arange(self.unseen))

    def add(self, samples: Samples) -> None:
        places = self._head + self.unseen + np.arange(len(samples))
        self._ring[places % len(self._ring)] = samples
        self.unseen += len(samples)

    def fill(self, samples: Samples, unseen: int) -> None:
        self._head = self.unseen = 0
        self.add(samples)

    def draw(self, places: Places) -> Samples:
        drawn: Samples = self._ring[(self._head + places) % len(self._ring)]
        return drawn

    def remove(self, places: Places) -> Samples:
        removed = self.draw(places)
        self._head = (self._head + len(places)) % len(self._ring)
        self.unseen -= len(places)
        return removed


Population = Bag | Queue
