"""How many threads a simulation may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["environment", "told"]

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def environment(cores: int) -> dict[str, str]:
    """Return the variables that tell OpenMP, MKL and OpenBLAS of their cores.

    Dask's nannies set them to 1 in each worker, but only where nobody has set them.
    """
    return dict.fromkeys(_VARIABLES, str(cores))


@contextmanager
def told(cores: int) -> Iterator[None]:
    """Have nannies that are made meanwhile tell their workers of so many cores.

    What this process was told itself (by a batch system, or by whoever has started it)
    is for its training; without this it would go for each simulation too.
    """
    known = environment(cores)
    before = {name: os.environ.get(name) for name in known}
    os.environ.update(known)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
