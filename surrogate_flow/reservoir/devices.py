"""Work on a device beside the training step, in the same words on GPU and CPU."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Side", "current_device", "side_of"]


def current_device() -> torch.device:
    """Return the current device of this thread, the CPU if there is no other."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return torch.device("cpu")
    return torch.device(kind.type, torch.accelerator.current_device_index())


@functools.cache
def side_of(device: torch.device) -> Side:
    """Return the one `Side` of a device in this process."""
    return Side(device)


class Side:
    """A stream of a device: what is submitted in `work` runs beside the training.

    What one thread submits runs after what another one did before. On the CPU all is
    done at once, and the same calls return at once.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        module: Any = torch.get_device_module(device)
        # Without streams of their own (MPS, say) copies keep the order of the calls.
        self._module: Any = module if hasattr(module, "Stream") else torch.cpu
        self._stream = self._module.Stream(device)

    def work(self) -> AbstractContextManager[Any]:
        """Return a context in which this thread submits to the stream."""
        context: AbstractContextManager[Any] = self._module.stream(self._stream)
        return context

    def send(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the device; returns before the copy has ended."""
        if tensor.device == self.device:
            return tensor
        with self.work():
            # Only from pinned memory a GPU copies while it computes.
            pinned = tensor.pin_memory() if tensor.device.type == "cpu" else tensor
            return pinned.to(self.device, non_blocking=True)

    def hand_over(self, *tensors: Tensor) -> None:
        """Let what this thread submits from now on wait for the stream.

        Parameters
        ----------
        tensors : Tensor
            That the stream made: their memory is not used again before this thread's
            own stream is done with them.
        """
        current = self._module.current_stream()
        current.wait_stream(self._stream)
        for tensor in tensors:
            if tensor.device.type == "cuda":
                tensor.record_stream(current)
