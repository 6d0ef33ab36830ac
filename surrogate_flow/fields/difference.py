"""Where two plain values differ, in words."""

from __future__ import annotations

from typing import Any

__all__ = ["difference"]


def difference(mine: Any, theirs: Any, place: str = "") -> str:
    """Return the first place where two plain values differ, and both values there.

    Examples
    --------
    >>> difference({"cells": [8, 8]}, {"cells": [8, 9]})
    'cells[1] = 8, got 9'
    """
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in {**mine, **theirs}:
            if mine.get(key) != theirs.get(key):
                return difference(mine.get(key), theirs.get(key), f"{place}.{key}")
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            if a != b:
                return difference(a, b, f"{place}[{i}]")
    name = place.lstrip(".") or "value"
    return f"{name} = {str(mine)[:80]}, got {str(theirs)[:80]}"
