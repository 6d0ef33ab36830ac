"""Wall time of a command, noted in its folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["FILE", "noted", "read"]

FILE = "seconds.txt"


def read(folder: Path) -> float | None:
    """Return the seconds of a folder, or None if none are noted."""
    try:
        return float((folder / FILE).read_text())
    except (FileNotFoundError, ValueError):
        # A full disk leaves an empty file.
        return None


@contextmanager
def noted(
    folder: Path, before: float | None = 0.0, *, add: bool = True
) -> Iterator[None]:
    """Time what is done within, and note it, also if it fails or is interrupted.

    Parameters
    ----------
    folder : Path
        Made, if it is not there.
    before : float, optional
        Seconds that were spent on it already; None if that is not known, and then
        nothing is noted.
    add : bool
        Whether to add the time to `before`, rather than note that again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    # If this process is killed, there is no number rather than one too small.
    path.unlink(missing_ok=True)
    begun = time.monotonic()
    try:
        yield
    finally:
        if before is not None:
            spent = time.monotonic() - begun if add else 0.0
            path.write_text(f"{before + spent:.3f}\n")
