"""Where the steps of a reservoir lie."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from surrogate_flow.reservoir import allocate as room
from surrogate_flow.reservoir.lending import Lender

__all__ = ["HostMemory", "Memory"]


class Memory(ABC):
    """Rows of steps, ``(capacity, channel, *space)``, in single precision.

    Thread-safe for rows that are reserved or being read, as `Slab` sees to.

    Parameters
    ----------
    capacity : int
        Number of rows.
    step_shape : tuple of int
        ``(channel, *space)``.
    largest : int
        Number of rows of the largest batch.
    """

    def __init__(
        self, capacity: int, step_shape: tuple[int, ...], largest: int
    ) -> None:
        self.capacity = capacity
        self.step_shape = step_shape
        self.largest = largest

    @property
    def nbytes(self) -> int:
        """Bytes that the steps take when every row is used."""
        return 4 * self.capacity * math.prod(self.step_shape)

    @abstractmethod
    def write(
        self,
        rows: Int[np.ndarray, " time"],
        steps: Float[np.ndarray, "time channel *space"],
    ) -> None:
        """Copy steps in; `steps` may change afterwards."""

    @abstractmethod
    def gather(
        self,
        rows: Int[np.ndarray, " row"],
        out: Float[np.ndarray, "row channel *space"],
    ) -> None:
        """Copy rows out into `out`, which is C-contiguous."""

    @abstractmethod
    def batch(self, rows: Int[np.ndarray, " row"], count: int) -> Any:
        """Return `count` samples of equally many rows, copied out, for a network."""

    @abstractmethod
    def host(self, fields: Any) -> Float[np.ndarray, ...]:
        """Return what `batch` gave as an array on the host."""


class HostMemory(Memory):
    """Rows in the memory of the process; parameters and contract as `Memory`.

    Notes
    -----
    Numpy releases the GIL while it copies. Pages are taken from the system when they
    are first written.

    Raises
    ------
    ValueError
        If the machine has less memory.
    """

    def __init__(
        self, capacity: int, step_shape: tuple[int, ...], largest: int
    ) -> None:
        super().__init__(capacity, step_shape, largest)
        size = math.prod(step_shape)
        self._rows = room.empty(
            (capacity, size),
            "Steps of the reservoir",
            "Lower capacity (--data.reservoir.capacity), or use a coarser grid.",
        )
        self._lender = Lender(largest * size)

    def write(
        self,
        rows: Int[np.ndarray, " time"],
        steps: Float[np.ndarray, "time channel *space"],
    ) -> None:
        self._rows[rows] = steps.reshape(len(rows), self._rows.shape[1])

    def gather(
        self,
        rows: Int[np.ndarray, " row"],
        out: Float[np.ndarray, "row channel *space"],
    ) -> None:
        # With mode="raise" numpy fills a second buffer first, to keep `out` whole on an
        # error.
        flat = out.reshape(len(rows), self._rows.shape[1])
        np.take(self._rows, rows, axis=0, out=flat, mode="clip")

    def batch(
        self, rows: Int[np.ndarray, " row"], count: int
    ) -> Float[np.ndarray, "batch span channel *space"]:
        fields = self._lender.lend((count, len(rows) // count, *self.step_shape))
        self.gather(rows, fields)
        return fields

    def host(self, fields: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
        return fields
