"""Checks that the arguments of most solvers have to pass."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["require_counts", "require_positive"]


def require_counts(solver: str, counts: Mapping[str, float]) -> None:
    """Refuse numbers, by name, that count nothing.

    Raises
    ------
    ValueError
        If one is not a whole number >= 1.
    """
    for name, count in counts.items():
        if count < 1 or count != int(count):
            raise ValueError(
                f"{solver}: expected {name} to be a whole number >= 1, got {count}."
            )


def require_positive(solver: str, quantities: Mapping[str, tuple[float, str]]) -> None:
    """Refuse quantities, by name, with their units, that are not finite and positive.

    Raises
    ------
    ValueError
        Naming the first.
    """
    for name, (value, units) in quantities.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"{solver}: expected {name} to be finite and > 0, got {value}. Give "
                f"it in {units}."
            )
