"""Named quantities with units, and simulations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from surrogate_flow.fields.errors import ArgumentError

__all__ = [
    "Coordinate",
    "Parameter",
    "Simulation",
    "Variable",
    "attributes",
    "counted",
    "in_units",
    "number",
]


def counted(count: int, noun: str) -> str:
    """Return a number of things in words.

    Examples
    --------
    >>> counted(1, "step"), counted(2, "step")
    ('1 step', '2 steps')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def number(value: float) -> float:
    """Return the value as a plain float, one for both zeros."""
    # Adding zero turns -0.0 into 0.0, which equals it but is written differently.
    return float(value) + 0.0


@dataclass(frozen=True)
class Parameter:
    """A scalar input of the simulation, within ``[low, high]``.

    Raises
    ------
    ArgumentError
        If the bounds are not finite, or not in ascending order.
    """

    name: str
    low: float
    high: float
    units: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", number(self.low))
        object.__setattr__(self, "high", number(self.high))
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ArgumentError(
                f"Parameter {self.name!r}",
                "finite bounds",
                f"[{self.low}, {self.high}]",
            )
        if not self.low < self.high:
            raise ArgumentError(
                f"Parameter {self.name!r}: expected low < high, got "
                f"[{self.low}, {self.high}] {self.units}. Make a fixed value an "
                "argument of the solver."
            )


@dataclass(frozen=True)
class Variable:
    """A field that the simulation computes; one channel of every step."""

    name: str
    units: str = ""
    long_name: str = ""


@dataclass(frozen=True)
class Coordinate:
    """Positions along one dim of the grid (of the cells, or of a mesh's nodes).

    Raises
    ------
    ArgumentError
        If a position is not finite.
    """

    name: str
    dim: str
    values: tuple[float, ...]
    units: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(map(number, self.values)))
        if not all(map(math.isfinite, self.values)):
            raise ArgumentError(
                f"Coordinate {self.name!r}: expected finite positions, got some that "
                "are not."
            )


@dataclass(frozen=True)
class Simulation:
    """A simulation: its number and its parameters.

    Attributes
    ----------
    number : int
        Its identity within the study.
    part : str
        Its use: ``"validation"``, ``"test"`` or ``"training"``.
    parameters : mapping of str to float
    """

    number: int
    part: str
    parameters: Mapping[str, float]


def in_units(value: float, units: str, digits: int = 4) -> str:
    """Write a number with its units; "1" stands for none.

    Examples
    --------
    >>> in_units(3.14159, "rad", 3), in_units(2.0, "1")
    ('3.14 rad', '2')
    """
    return f"{value:.{digits}g}" + (f" {units}" if units not in ("", "1") else "")


def attributes(units: str, long_name: str = "") -> dict[str, str]:
    """Return the attributes of a quantity in xarray and netCDF, without empty ones."""
    return {k: v for k, v in (("units", units), ("long_name", long_name)) if v}
