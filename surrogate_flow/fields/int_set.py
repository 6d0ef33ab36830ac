"""Sets of simulation numbers, a bit each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8

__all__ = ["IntSet"]


class IntSet:
    """A set of whole numbers >= 0, a bit for each: a million of them take 125 KB.

    Parameters
    ----------
    ranges : iterable of (int, int)
        Numbers to begin with, as ranges ``[start, end)``: ascending, with gaps between
        them.

    Raises
    ------
    ValueError
        If the ranges are not like that.

    Notes
    -----
    While one thread changes it, any other may read it.

    Examples
    --------
    >>> done = IntSet()
    >>> for number in (0, 1, 3, 2, 7):
    ...     done.add(number)
    >>> done.ranges, len(done), 2 in done, 5 in done
    ([(0, 4), (7, 8)], 5, True, False)
    >>> done.discard(1)
    >>> list(done), list(done - IntSet([(2, 4)])), list(done | IntSet([(1, 3)]))
    ([0, 2, 3, 7], [0, 7], [0, 1, 2, 3, 7])
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        ranges = list(ranges)
        edges = np.array(ranges, dtype=np.int64).ravel()
        if len(edges) and (edges[0] < 0 or (np.diff(edges) <= 0).any()):
            raise ValueError(
                "IntSet: expected ascending ranges with gaps between them, got "
                f"{ranges[:9]}."
            )
        flags = np.zeros(edges.max(initial=0), dtype=bool)
        for start, end in ranges:
            flags[start:end] = True
        self._bits = bytearray(np.packbits(flags, bitorder="little").tobytes())

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The numbers as ranges ``[start, end)``, for the argument of this name."""
        edges = np.flatnonzero(np.diff(self._flags(), prepend=0, append=0))
        return [(start, end) for start, end in edges.reshape(-1, 2).tolist()]

    def __len__(self) -> int:
        return self._whole().bit_count()

    def __contains__(self, number: int) -> bool:
        byte, bit = divmod(number, 8)
        return 0 <= byte < len(self._bits) and bool(self._bits[byte] >> bit & 1)

    def __iter__(self) -> Iterator[int]:
        yield from np.flatnonzero(self._flags()).tolist()

    def __or__(self, other: IntSet) -> IntSet:
        return IntSet._of(self._whole() | other._whole())

    def __sub__(self, other: IntSet) -> IntSet:
        return IntSet._of(self._whole() & ~other._whole())

    def add(self, number: int) -> None:
        """Add a number, which may be there already."""
        byte, bit = divmod(number, 8)
        self._bits.extend(bytes(max(0, byte + 1 - len(self._bits))))
        self._bits[byte] |= 1 << bit

    def discard(self, number: int) -> None:
        """Remove a number, if it is there."""
        if number in self:
            self._bits[number // 8] ^= 1 << number % 8

    @classmethod
    def _of(cls, whole: int) -> IntSet:
        made = cls()
        made._bits = bytearray(whole.to_bytes((whole.bit_length() + 7) // 8, "little"))
        return made

    def _whole(self) -> int:
        return int.from_bytes(self._bits, "little")

    def _flags(self) -> UInt8[np.ndarray, " number"]:
        # A copy: a bytearray that numpy uses cannot grow.
        bits = np.frombuffer(bytes(self._bits), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")
