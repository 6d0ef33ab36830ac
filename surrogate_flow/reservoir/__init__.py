"""Bounded stores of steps between the simulations and the training."""

from __future__ import annotations

from surrogate_flow.reservoir.counters import StoreStats
from surrogate_flow.reservoir.device_memory import DeviceMemory
from surrogate_flow.reservoir.draw import Draw
from surrogate_flow.reservoir.fifo import FIFO
from surrogate_flow.reservoir.firo import FIRO
from surrogate_flow.reservoir.flight import PendingBatches
from surrogate_flow.reservoir.limiter import SamplesPerInsert
from surrogate_flow.reservoir.lockstep import Lockstep
from surrogate_flow.reservoir.memory import HostMemory, Memory
from surrogate_flow.reservoir.reservoir import Reservoir
from surrogate_flow.reservoir.snapshot import Snapshot
from surrogate_flow.reservoir.store import Store

__all__ = [
    "FIFO",
    "FIRO",
    "DeviceMemory",
    "Draw",
    "HostMemory",
    "Lockstep",
    "Memory",
    "PendingBatches",
    "Reservoir",
    "SamplesPerInsert",
    "Snapshot",
    "Store",
    "StoreStats",
]
