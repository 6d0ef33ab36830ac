"""What a worker beside the trainer loads first: it runs at a lower priority."""

from __future__ import annotations

import multiprocessing
import os

__all__ = ["NICE", "dask_setup"]

#: Added to a worker's: where both want a core, the trainer has nine tenths of it.
NICE = 10


def dask_setup(worker: object) -> None:
    """Lower the priority of a worker's process, and of all that it starts."""
    # A cluster without processes has its workers in the trainer's.
    if multiprocessing.parent_process() is not None:
        os.nice(NICE)
