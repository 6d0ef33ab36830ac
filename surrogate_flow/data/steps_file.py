"""Files of steps beside a checkpoint, too many for the checkpoint itself."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from jaxtyping import Float

__all__ = ["RowsFile", "read_rows"]


class RowsFile:
    """Writes steps, one behind the other, to a ``.npy`` file.

    The file appears under its name when it is whole and on the disk, or not at all.

    Parameters
    ----------
    path : Path
    step_shape : tuple of int
        ``(channel, *space)``.
    """

    def __init__(self, path: Path, step_shape: tuple[int, ...]) -> None:
        self.path = path
        self.step_shape = step_shape
        self.count = 0
        self._part = path.with_name(f"{path.name}.part")
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("wb")
        self._head()
        return self

    def write(self, rows: Float[np.ndarray, "row channel *space"]) -> None:
        """Append steps."""
        assert self._file is not None, "enter the context first"
        self._file.write(np.ascontiguousarray(rows, dtype=np.float32).data)
        self.count += len(rows)

    def _head(self) -> None:
        # numpy leaves room in the header for a larger number of rows.
        assert self._file is not None
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
            "fortran_order": False,
            "shape": (self.count, *self.step_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._file is not None
        try:
            with self._file:
                if error is None:
                    self._file.seek(0)
                    self._head()
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if error is None:
                os.replace(self._part, self.path)
        finally:
            self._part.unlink(missing_ok=True)


def read_rows(
    path: Path, shape: tuple[int, ...]
) -> Float[np.ndarray, "row channel *space"]:
    """Return the steps of a file, which are read when they are used.

    Raises
    ------
    ValueError
        If the file is cut off, or holds anything else than float32 of that shape.
    """
    try:
        # Unlike numpy.load it knows neither archives nor pickles.
        rows: Float[np.ndarray, "row channel *space"] = np.lib.format.open_memmap(
            path, mode="r"
        )
    except OSError:
        raise
    except Exception as error:
        # A header that makes no sense makes the reader fail in half a dozen ways.
        raise ValueError(
            f"{path}: cannot be read as a file of steps ({type(error).__name__}). It "
            "is cut off: the disk was full, or the copy is not complete. Delete it to "
            "go on without: then what it held is simulated again."
        ) from error
    if rows.shape != shape or rows.dtype != np.float32:
        raise ValueError(
            f"{path}: expected float32 steps of the shape {shape}, got {rows.dtype} of "
            f"{rows.shape}. It belongs to another checkpoint; delete it to go on "
            "without."
        )
    return rows
