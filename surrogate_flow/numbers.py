"""Sets of simulation numbers that stay small however many there are."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator

__all__ = ["NumberSet"]


class NumberSet:
    """A set of whole numbers as ranges ``[start, end)``, in order.

    Simulations end nearly in the order of their numbers, so a few ranges hold them
    all, where a set would grow with each.

    Parameters
    ----------
    ranges : iterable of (int, int)
        Ascending, with gaps between them; empty by default.

    Examples
    --------
    >>> done = NumberSet()
    >>> for number in (0, 1, 3, 2, 7):
    ...     done.add(number)
    >>> done.ranges, len(done), 2 in done, 5 in done
    ([(0, 4), (7, 8)], 5, True, False)
    >>> done.discard(1)
    >>> list(done)
    [0, 2, 3, 7]
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            if start >= end or (self._ends and start <= self._ends[-1]):
                raise ValueError(
                    f"NumberSet: expected ascending ranges with gaps between them, got "
                    f"[{start}, {end}) behind {self.ranges[-1:]}."
                )
            self._starts.append(start)
            self._ends.append(end)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The ranges, for the argument of the same name."""
        return list(zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def __contains__(self, number: int) -> bool:
        place = bisect.bisect_right(self._starts, number) - 1
        return place >= 0 and number < self._ends[place]

    def __iter__(self) -> Iterator[int]:
        for start, end in self.ranges:
            yield from range(start, end)

    def add(self, number: int) -> None:
        """Add a number, which may be there already."""
        if number in self:
            return
        place = bisect.bisect_right(self._starts, number)
        before = place > 0 and self._ends[place - 1] == number
        after = place < len(self._starts) and self._starts[place] == number + 1
        if before and after:
            self._ends[place - 1] = self._ends.pop(place)
            del self._starts[place]
        elif before:
            self._ends[place - 1] += 1
        elif after:
            self._starts[place] = number
        else:
            self._starts.insert(place, number)
            self._ends.insert(place, number + 1)

    def discard(self, number: int) -> None:
        """Remove a number, if it is there."""
        if number not in self:
            return
        place = bisect.bisect_right(self._starts, number) - 1
        start, end = self._starts.pop(place), self._ends.pop(place)
        for a, b in ((number + 1, end), (start, number)):
            if a < b:
                self._starts.insert(place, a)
                self._ends.insert(place, b)
