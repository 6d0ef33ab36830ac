"""One point in the space of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Simulation"]


@dataclass(frozen=True)
class Simulation:
    """One point in the space of parameters, to be solved.

    Attributes
    ----------
    number : int
        Its identity within the study.
    part : str
        What it is for: ``"validation"``, ``"test"`` or ``"training"``.
    parameters : mapping of str to float
    """

    number: int
    part: str
    parameters: Mapping[str, float]
