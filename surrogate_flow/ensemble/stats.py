"""Simulations by state."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EnsembleStats"]


@dataclass(frozen=True)
class EnsembleStats:
    """Simulations by state, at one moment."""

    done: int
    running: int
    failed: int
    retried: int
    workers: int
