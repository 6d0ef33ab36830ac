"""What a process holds at one moment, and whether it grows."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Vitals", "peak", "reset_peak", "slope"]

MB = 1e6


@dataclass(frozen=True)
class Vitals:
    """Resident memory in MB, threads and open files of a process."""

    rss: float
    threads: int
    files: int

    @classmethod
    def of(cls, process: int | str = "self") -> Vitals:
        """Read them; for this process by default."""
        folder = Path(f"/proc/{process}")
        pages = int((folder / "statm").read_text().split()[1])
        return cls(
            pages * resource.getpagesize() / MB,
            int(_status(folder, "Threads")),
            len(os.listdir(folder / "fd")),
        )


def reset_peak() -> None:
    """Have `peak` count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Return the largest resident memory in MB since the start, or the last reset."""
    return int(_status(Path("/proc/self"), "VmHWM").split()[0]) * 1024 / MB


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return b of the line a + b x through the second half of the points."""
    half = len(x) // 2
    if len(x) - half < 2:
        return 0.0
    return float(np.polyfit(x[half:], y[half:], 1)[0])


def _status(folder: Path, name: str) -> str:
    for line in (folder / "status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise KeyError(name)
