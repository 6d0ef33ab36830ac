"""Batches that would not fit into memory, refused before anything runs."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import psutil
import pytorch_lightning as L
import torch
from dask.utils import format_bytes

__all__ = ["TellsItsMemory", "require_room"]


@runtime_checkable
class TellsItsMemory(Protocol):
    """A network that knows what a sample takes while it trains; most need little.

    Attributes
    ----------
    training_bytes_per_sample : int
        In single precision, at the peak of a training step.
    """

    training_bytes_per_sample: int


def require_room(trainer: L.Trainer | None, batch_size: int) -> None:
    """Refuse a batch that a training step has no memory for.

    Checked are networks that tell what they need, on the CPU and on CUDA devices. What
    else needs memory, such as the reservoir, is not counted: a batch just below may
    fail all the same.

    Parameters
    ----------
    trainer : Trainer or None
        With a module whose `network` is to be trained.
    batch_size : int

    Raises
    ------
    ValueError
        Naming the memory, and the largest batch that fits into it.
    """
    module = trainer.lightning_module if trainer else None
    network = getattr(module, "network", None)
    if trainer is None or not isinstance(network, TellsItsMemory):
        return
    device = trainer.strategy.root_device
    free = _free(device)
    if free is None:
        return
    if device.type == "cpu":
        # The ranks of a machine share it.
        free //= trainer.num_devices
    # Activations are of half the size then.
    each = network.training_bytes_per_sample // (2 if "16" in trainer.precision else 1)
    if batch_size * each <= free:
        return
    most = free // each
    smaller = f"--data.batch_size {most} at most, " if most else ""
    raise ValueError(
        f"{type(network).__name__}: expected a batch that fits into the "
        f"{format_bytes(free)} of memory that are free on {device} for this process, "
        f"got batch_size={batch_size}, which takes about "
        f"{format_bytes(batch_size * each)} in training, {format_bytes(each)} a sample."
        f" Use {smaller}a coarser grid, or a network of a smaller width."
    )


def _free(device: torch.device) -> int | None:
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    # What torch has kept for tensors to come.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + kept)
