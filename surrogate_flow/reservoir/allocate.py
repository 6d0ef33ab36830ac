"""Arrays as large as a user asks for, unless the machine could never hold them."""

from __future__ import annotations

import math

import numpy as np
import psutil
from dask.utils import format_bytes
from jaxtyping import Float32

__all__ = ["empty"]


def empty(
    shape: tuple[int, ...], what: str, remedy: str
) -> Float32[np.ndarray, "row ..."]:
    """Return rows that are not filled yet; the system gives their memory as they are.

    Parameters
    ----------
    shape : tuple of int
        Of which the first is what was asked for.
    what, remedy : str
        Of the message: what the rows are, and how to need fewer.

    Raises
    ------
    ValueError
        If they take more memory than the machine has, or than this process may have.
    """
    size = 4 * math.prod(shape)
    total = psutil.virtual_memory().total
    if size <= total:
        try:
            return np.empty(shape, dtype=np.float32)
        except MemoryError:
            # A limit of the shell or of the batch system.
            pass
    raise ValueError(
        f"{what}: expected what fits into the {format_bytes(total)} of memory of this "
        f"machine, got {shape[0]}, which take {format_bytes(size)}. {remedy}"
    )
