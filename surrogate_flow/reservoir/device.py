"""A reservoir in the memory of a GPU, and copies beside the training step."""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from surrogate_flow.fields.errors import UserError
from surrogate_flow.reservoir.memory import Memory, Slots, Steps

__all__ = ["CopyStream", "DeviceMemory", "copy_stream", "current_device"]


def current_device() -> torch.device:
    """Return the current device of this thread, the CPU if there is no other."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return torch.device("cpu")
    return torch.device(kind.type, torch.accelerator.current_device_index())


@functools.cache
def copy_stream(device: torch.device) -> CopyStream:
    """Return the one `CopyStream` of a device in this process."""
    return CopyStream(device)


@final
class CopyStream:
    """A CUDA stream for copies: what is submitted in `use` runs beside the training.

    What one thread submits runs after what another one did before. On the CPU the same
    calls do all at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        module: Any = torch.get_device_module(device)
        # Without streams of their own (MPS, say) copies keep the order of the calls.
        self._module: Any = module if hasattr(module, "Stream") else torch.cpu
        self._stream = self._module.Stream(device)

    def use(self) -> AbstractContextManager[Any]:
        """Return a context in which this thread submits to the stream."""
        context: AbstractContextManager[Any] = self._module.stream(self._stream)
        return context

    def send(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the device; returns before the copy has ended."""
        if tensor.device == self.device:
            return tensor
        with self.use():
            # Only from pinned memory a GPU copies while it computes.
            pinned = tensor.pin_memory() if tensor.device.type == "cpu" else tensor
            return pinned.to(self.device, non_blocking=True)

    def synchronize(self, *tensors: Tensor) -> None:
        """Let what this thread submits from now on wait for the stream.

        The memory of `tensors`, made in the stream, is not used again before this
        thread's own stream is done with them.
        """
        current = self._module.current_stream()
        current.wait_stream(self._stream)
        for tensor in tensors:
            if tensor.device.type == "cuda":
                tensor.record_stream(current)


@final
class DeviceMemory(Memory):
    """Steps on the device on which the network trains; contract as `Memory`.

    A step crosses to the device once, however often it is drawn, and a batch does not
    cross at all. Copies run in a stream of their own, beside the training step.

    Parameters
    ----------
    capacity, step_shape, largest
        As `Memory`; capacity must fit into the device's memory beside the network, or
        it is a UserError.
    device : str, optional
        Such as ``cuda:1``; the current device of this process by default, and the CPU
        where there is no other.
    """

    def __init__(
        self,
        capacity: int,
        step_shape: tuple[int, ...],
        largest: int,
        device: str | None = None,
    ) -> None:
        super().__init__(capacity, step_shape, largest)
        # With its index, as tensors have it.
        self.device = torch.empty(0, device=device or current_device()).device
        self._stream = copy_stream(self.device)
        shape = (capacity, math.prod(step_shape))
        try:
            self._steps: Float[Tensor, "slot value"] = torch.empty(
                shape, dtype=torch.float32, device=self.device
            )
        except RuntimeError as error:
            raise UserError(
                f"A reservoir of {capacity} steps takes {self.nbytes / 1e9:.3g} GB, "
                f"which {self.device} does not have: {error}",
                remedy="Lower --data.reservoir.capacity, or leave the reservoir on "
                "the host (--data.reservoir.memory HostMemory).",
            ) from error

    def write(self, slots: Slots, steps: Steps) -> None:
        flat = steps.reshape(len(slots), self._steps.shape[1])
        with self._stream.use():
            # A copy of memory that may be read-only, done when it returns.
            source = torch.tensor(flat, device=self.device)
            self._steps.index_copy_(0, self._index(slots), source)

    def gather(self, slots: Slots, out: Steps) -> None:
        with self._stream.use():
            taken = self._steps.index_select(0, self._index(slots))
            torch.from_numpy(out).view(taken.shape).copy_(taken)

    def batch(
        self, slots: Slots, count: int
    ) -> Float[Tensor, "batch span channel *space"]:
        with self._stream.use():
            taken = self._steps.index_select(0, self._index(slots))
        # Slots may be written again as soon as this returns, in the same stream.
        return taken.view(count, len(slots) // count, *self.step_shape)

    def host(
        self, fields: Float[Tensor, ...] | Float[np.ndarray, ...]
    ) -> Float[np.ndarray, ...]:
        if isinstance(fields, np.ndarray):
            return fields
        with self._stream.use():
            return fields.cpu().numpy()

    def _index(self, slots: Slots) -> Int[Tensor, " slot"]:
        return torch.from_numpy(slots.astype(np.int64)).to(self.device)
