"""Which chunks of a data set are not there, or have lost their end."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surrogate_flow.dataset.errors import ArchiveError

__all__ = ["is_sound", "is_whole", "lost_chunks", "names_of"]

_MAGIC = b"\x28\xb5\x2f\xfd"
_RLE = 1  # the kind of a block that is one byte, repeated


def names_of(
    variable: str, simulation: int, chunks: Sequence[int], dims: int
) -> list[str]:
    """Return the files of some chunks of a simulation, within the data set."""
    space = ".0" * dims
    return [f"{variable}/c.{simulation}.{k}{space}" for k in chunks]


def lost_chunks(
    path: Path,
    variables: Collection[str],
    simulations: Collection[int],
    chunks: int,
    dims: int,
) -> dict[int, list[str]]:
    """Return the files that are missing or cut off, of each simulation that has such.

    No field is read: a look at the lengths of the parts of each chunk is enough. Other
    damage is found by its checksum, when the chunk is read.

    Parameters
    ----------
    path : Path
        Of the data set.
    variables : collection of str
    simulations : collection of int
        That should be whole.
    chunks : int
        Of each variable and simulation.
    dims : int
        Of the space.

    Raises
    ------
    ArchiveError
        If a chunk cannot be opened.
    """
    lost: dict[int, list[str]] = {}
    for variable in variables:
        for n in simulations:
            for name in names_of(variable, n, range(chunks), dims):
                try:
                    whole = is_whole(path / name)
                except OSError as error:
                    raise ArchiveError(
                        f"{path}: {name}, of simulation {n}, cannot be opened "
                        f"({error}). Make it readable, or copy the data set again."
                    ) from error
                if not whole:
                    lost.setdefault(n, []).append(name)
    return lost


def is_whole(chunk: Path) -> bool:
    """Whether a file is there and as long as its Zstandard frame (RFC 8878) says.

    Raises
    ------
    OSError
        If it is there and cannot be read.
    """
    try:
        file = os.open(chunk, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return _frame_length(file) == os.fstat(file).st_size
    finally:
        os.close(file)


def is_sound(array: Any, simulation: int, steps: slice) -> bool:
    """Whether some steps can be read, and none is missing."""
    try:
        return bool(np.isfinite(array[simulation, steps]).all())
    except (OSError, ValueError, RuntimeError):
        return False


def _frame_length(file: int) -> int:
    """Return the bytes of a frame, or -1 where it has no beginning or no end."""
    head = os.pread(file, 5, 0)
    if len(head) < 5 or head[:4] != _MAGIC:
        return -1
    flags = head[4]
    single, checksum = flags >> 5 & 1, flags >> 2 & 1
    content = (single, 2, 4, 8)[flags >> 6]
    at = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3] + content
    last = False
    while not last:
        block = os.pread(file, 3, at)
        if len(block) < 3:
            return -1
        word = int.from_bytes(block, "little")
        last = bool(word & 1)
        at += 3 + (1 if word >> 1 & 3 == _RLE else word >> 3)
    return at + 4 * checksum
