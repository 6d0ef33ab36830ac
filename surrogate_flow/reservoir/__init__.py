"""Bounded stores of samples between the simulations and the training."""

from __future__ import annotations

from surrogate_flow.reservoir.batches import Draw, PendingBatches
from surrogate_flow.reservoir.device import DeviceMemory
from surrogate_flow.reservoir.memory import HostMemory, Memory
from surrogate_flow.reservoir.policy import (
    FIFO,
    FIRO,
    Policy,
    Reservoir,
    SamplesPerInsert,
)
from surrogate_flow.reservoir.snapshot import Snapshot
from surrogate_flow.reservoir.stats import Moments, StoreStats
from surrogate_flow.reservoir.store import Store

__all__ = [
    "FIFO",
    "FIRO",
    "DeviceMemory",
    "Draw",
    "HostMemory",
    "Memory",
    "Moments",
    "PendingBatches",
    "Policy",
    "Reservoir",
    "SamplesPerInsert",
    "Snapshot",
    "Store",
    "StoreStats",
]
