"""A reservoir in the memory of a GPU."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from surrogate_flow.reservoir.devices import current_device, side_of
from surrogate_flow.reservoir.memory import Memory

__all__ = ["DeviceMemory"]


class DeviceMemory(Memory):
    """Rows on the device on which the network trains; contract as `Memory`.

    A step crosses to the device once, however often it is drawn, and a batch does not
    cross at all. Copies run in a stream of their own, beside the training step.

    Parameters
    ----------
    capacity, step_shape, largest
        As `Memory`; capacity must fit into the device's memory beside the network.
    device : str, optional
        Such as ``cuda:1``; the current device of this process by default, and the CPU
        where there is no other.

    Raises
    ------
    MemoryError
        If the device has less memory.
    """

    def __init__(
        self,
        capacity: int,
        step_shape: tuple[int, ...],
        largest: int,
        device: str | None = None,
    ) -> None:
        super().__init__(capacity, step_shape, largest)
        # With its index, as tensors name it.
        self.device = torch.empty(0, device=device or current_device()).device
        self._side = side_of(self.device)
        shape = (capacity, math.prod(step_shape))
        try:
            self._rows: Float[Tensor, "capacity value"] = torch.empty(
                shape, dtype=torch.float32, device=self.device
            )
        except RuntimeError as error:
            raise MemoryError(
                f"A reservoir of {capacity} steps takes {self.nbytes / 1e9:.3g} GB, "
                f"which {self.device} does not have: {error} Lower the capacity, or "
                "leave the reservoir on the host (memory: HostMemory)."
            ) from error

    def write(
        self,
        rows: Int[np.ndarray, " time"],
        steps: Float[np.ndarray, "time channel *space"],
    ) -> None:
        flat = steps.reshape(len(rows), self._rows.shape[1])
        with self._side.work():
            # A copy of memory that may be read-only, done when it returns.
            source = torch.tensor(flat, device=self.device)
            self._rows.index_copy_(0, self._index(rows), source)

    def gather(
        self,
        rows: Int[np.ndarray, " row"],
        out: Float[np.ndarray, "row channel *space"],
    ) -> None:
        with self._side.work():
            taken = self._rows.index_select(0, self._index(rows))
            torch.from_numpy(out).view(taken.shape).copy_(taken)

    def batch(
        self, rows: Int[np.ndarray, " row"], count: int
    ) -> Float[Tensor, "batch span channel *space"]:
        with self._side.work():
            taken = self._rows.index_select(0, self._index(rows))
        # Rows may be written again as soon as this returns, in the same stream.
        return taken.view(count, len(rows) // count, *self.step_shape)

    def host(
        self, fields: Float[Tensor, ...] | Float[np.ndarray, ...]
    ) -> Float[np.ndarray, ...]:
        if isinstance(fields, np.ndarray):
            return fields
        with self._side.work():
            return fields.cpu().numpy()

    def _index(self, rows: Int[np.ndarray, " row"]) -> Int[Tensor, " row"]:
        return torch.from_numpy(rows.astype(np.int64)).to(self.device)
