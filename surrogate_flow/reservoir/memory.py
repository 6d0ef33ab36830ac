"""Where the steps of a reservoir, and the batches drawn from it, are in memory."""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, final

import numpy as np
import psutil
from dask.utils import format_bytes
from jaxtyping import Float, Float32, Int

from surrogate_flow.fields.errors import UserError

__all__ = [
    "BatchPool",
    "HostMemory",
    "Memory",
    "MemoryFactory",
    "Slots",
    "Steps",
    "allocate",
]

#: Places in the memory, each of which holds one step.
Slots = Int[np.ndarray, " slot"]
#: Fields of some steps.
Steps = Float[np.ndarray, "step channel *space"]


class Memory(ABC):
    """An array of steps, ``(slot, channel, *space)``, in single precision.

    Parameters
    ----------
    capacity : int
        Number of slots, each of which holds one step.
    step_shape : tuple of int
        ``(channel, *space)``.
    largest : int
        Number of steps of the largest batch.

    Notes
    -----
    Any method may be called from any thread, without a lock: `Slab` lets no thread
    write into a slot that another one reads or writes.
    """

    def __init__(
        self, capacity: int, step_shape: tuple[int, ...], largest: int
    ) -> None:
        self.capacity, self.step_shape, self.largest = capacity, step_shape, largest

    @property
    def nbytes(self) -> int:
        """Bytes that the steps take when every slot is used."""
        return 4 * self.capacity * math.prod(self.step_shape)

    @abstractmethod
    def write(self, slots: Slots, steps: Steps) -> None:
        """Copy steps in; `steps` may change afterwards."""

    @abstractmethod
    def gather(self, slots: Slots, out: Steps) -> None:
        """Copy steps out into `out`, which is C-contiguous."""

    @abstractmethod
    def batch(self, slots: Slots, count: int) -> Any:
        """Return `count` samples of equally many steps, copied out, for a network."""

    @abstractmethod
    def host(self, fields: Any) -> Float[np.ndarray, ...]:
        """Return what `batch` gave as an array on the host."""


#: Builds a memory from capacity, step_shape and largest.
MemoryFactory = Callable[[int, tuple[int, ...], int], Memory]


@final
class HostMemory(Memory):
    """Steps in the memory of the process; a UserError if the machine has less."""

    def __init__(
        self,
        capacity: int,
        step_shape: tuple[int, ...],
        largest: int,
        what: str = "Steps of the reservoir",
    ) -> None:
        super().__init__(capacity, step_shape, largest)
        size = math.prod(step_shape)
        self._steps = allocate(
            (capacity, size),
            what,
            "Lower capacity (--data.reservoir.capacity), or use a coarser grid.",
        )
        self._pool = BatchPool(largest * size)

    def write(self, slots: Slots, steps: Steps) -> None:
        self._steps[slots] = steps.reshape(len(slots), self._steps.shape[1])

    def gather(self, slots: Slots, out: Steps) -> None:
        # With mode="raise" numpy fills a second buffer first, so that `out` is left as
        # it was on an error.
        flat = out.reshape(len(slots), self._steps.shape[1])
        np.take(self._steps, slots, axis=0, out=flat, mode="clip")

    def batch(
        self, slots: Slots, count: int
    ) -> Float[np.ndarray, "batch span channel *space"]:
        fields = self._pool.array((count, len(slots) // count, *self.step_shape))
        self.gather(slots, fields)
        return fields

    def host(self, fields: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
        return fields


class BatchPool:
    """Arrays in memory that is used again once the last view of an array is gone.

    A fresh allocation of some 100 MB costs more in page faults than the copy that fills
    it. Slices, reshaped views and `torch.from_numpy` all keep an array's memory, so no
    two arrays that are still in use share it.

    The largest array has `size` float32 values. At most `idle` unused buffers are kept;
    more are given back to the system. Thread-safe without a lock: memory can be
    released in the middle of any line of Python, even in a thread that would hold it.

    Examples
    --------
    >>> pool = BatchPool(6)
    >>> first = pool.array((2, 3))
    >>> address = first.ctypes.data
    >>> row = first[1]
    >>> del first
    >>> pool.array((2, 3)).ctypes.data == address
    False
    >>> del row
    >>> address in (pool.array((2, 3)).ctypes.data, pool.array((1, 3)).ctypes.data)
    True
    """

    def __init__(self, size: int, idle: int = 4) -> None:
        self._size = size
        self._idle: deque[Float[np.ndarray, " size"]] = deque(maxlen=idle)

    def array(self, shape: tuple[int, ...]) -> Float[np.ndarray, "*shape"]:
        """Return a C-contiguous float32 array with arbitrary values."""
        try:
            buffer = self._idle.pop()
        except IndexError:
            buffer = np.empty(self._size, dtype=np.float32)
        # Views keep the base of `array` alive, which is no array: through arrays numpy
        # looks to the owner of the memory, and that is always alive, in the pool.
        array = np.frombuffer(buffer.data, np.float32, math.prod(shape))
        weakref.finalize(array.base, self._idle.append, buffer).atexit = False
        return array.reshape(shape)


def allocate(
    shape: tuple[int, ...], what: str, remedy: str
) -> Float32[np.ndarray, "item ..."]:
    """Return an array that is not filled yet; its pages are taken as they are written.

    If it takes more memory than there is, it is a UserError: the first of `shape` is
    the number of items that a user asked for, `what` they are, and `remedy` says how to
    need fewer.
    """
    size = 4 * math.prod(shape)
    total = psutil.virtual_memory().total
    if size <= total:
        try:
            return np.empty(shape, dtype=np.float32)
        except MemoryError:
            # A limit of the shell or of the batch system.
            pass
    raise UserError(
        what,
        f"what fits into the {format_bytes(total)} of memory of this machine",
        f"{shape[0]}, which take {format_bytes(size)}",
        remedy,
    )
