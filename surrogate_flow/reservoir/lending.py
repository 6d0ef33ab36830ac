"""Memory of batches, recycled once nobody holds the batch any more."""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
from jaxtyping import Float

__all__ = ["Lender"]


class Lender:
    """Arrays over pooled memory that comes back by itself.

    A fresh allocation of some 100 MB costs more in page faults than the copy that fills
    it. Memory is taken back when the last array or tensor that uses it is gone (slices,
    reshaped views and `torch.from_numpy` all count), so a lent array never aliases one
    that anybody still holds.

    Parameters
    ----------
    size : int
        Number of float32 values of the largest array lent.
    idle : int
        Largest number of unused buffers kept; more are given back to the system.

    Notes
    -----
    `lend` may be called from any thread, never blocks and takes no lock: memory can
    come back in the middle of any line of Python, even in a thread that would hold that
    lock.

    Examples
    --------
    >>> lender = Lender(6)
    >>> first = lender.lend((2, 3))
    >>> address = first.ctypes.data
    >>> row = first[1]
    >>> del first
    >>> lender.lend((2, 3)).ctypes.data == address
    False
    >>> del row
    >>> address in (lender.lend((2, 3)).ctypes.data, lender.lend((1, 3)).ctypes.data)
    True
    """

    def __init__(self, size: int, idle: int = 4) -> None:
        self._size = size
        self._idle: deque[Float[np.ndarray, " size"]] = deque(maxlen=idle)

    def lend(self, shape: tuple[int, ...]) -> Float[np.ndarray, "*shape"]:
        """Return a C-contiguous float32 array with arbitrary values."""
        if math.prod(shape) > self._size:
            raise ValueError(
                f"Lender: expected at most {self._size} values, got {shape}."
            )
        try:
            buffer = self._idle.pop()
        except IndexError:
            buffer = np.empty(self._size, dtype=np.float32)
        # Views keep the base of `array` alive, which is no array: through arrays numpy
        # looks to the owner of the memory, and that is always alive, in the pool.
        array = np.frombuffer(buffer.data, np.float32, math.prod(shape))
        weakref.finalize(array.base, self._idle.append, buffer).atexit = False
        return array.reshape(shape)
