"""Named quantities with units, and simulations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from numbers import Real
from typing import Any, Protocol

import numpy as np

from surrogate_flow.fields.errors import ArgumentError

__all__ = [
    "SURROGATE",
    "Coordinate",
    "Simulation",
    "Variable",
    "attributes",
    "counted",
    "described",
    "in_units",
    "named",
    "number",
    "numbers",
    "packing",
]

#: Behind the name of a variable: what a surrogate predicts of it.
SURROGATE = "_surrogate"

LEVELS = 256  # of single precision that a variation should span


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number of things in words.

    Examples
    --------
    >>> counted(1, "step"), counted(1900, "batch", "batches")
    ('1 step', '1,900 batches')
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def number(value: Any, what: str) -> float:
    """Return the value as a plain float, one for both zeros."""
    return numbers([value], what)[0]


def checked_seed(seed: int, of: object) -> int:
    """Return the seed of an object, or refuse it.

    Raises
    ------
    ArgumentError
        If it is not a whole number >= 0.
    """
    if seed < 0 or seed != int(seed):
        name = type(of).__name__
        raise ArgumentError(f"{name}: seed", "a whole number >= 0", seed)
    return int(seed)


def numbers(values: Any, what: str) -> tuple[float, ...]:
    """Return plain floats, or refuse what are none: dates, text, vectors.

    Raises
    ------
    ArgumentError
        With `what` they are.
    """
    several = isinstance(values, Iterable) and not isinstance(values, str)
    given = list(values) if several else [values]
    try:
        array = np.array(given or [0.0])
    except ValueError:  # vectors of several lengths
        array = np.array(None)
    if array.dtype == object and all(isinstance(v, Real | Decimal) for v in given):
        with suppress(OverflowError):
            array = array.astype(np.float64)
    if array.ndim == 1 and array.dtype.kind in "fiub":
        # Adding zero turns -0.0 into 0.0, which equals it but is written differently.
        return tuple((array.astype(np.float64) + 0.0).tolist()[: len(given)])
    first, remedy = next((v for v in given if not isinstance(v, Real)), given[0]), ""
    kind = type(first).__name__.lower()
    if "date" in kind or "time" in kind:
        remedy = (
            "Give dates as numbers since the first, (dates - dates[0]) / "
            "np.timedelta64(1, 's'), and time_units='s'."
        )
    elif np.ndim(first):
        remedy = "Give each component a name of its own."
    raise ArgumentError(what, "numbers", repr(first), remedy)


def named(name: Any, units: Any, what: str) -> None:
    """Refuse units that are no text, and a name that is none or cannot be in files."""
    words = "text without '/', of more than dots, and without blanks around it"
    valid = isinstance(name, str) and name.isprintable() and "/" not in name
    if not (valid and name.strip(".") and name.strip() == name):
        raise ArgumentError(f"{what}: name", words, repr(name), "Rename it.")
    if not isinstance(units, str):
        raise ArgumentError(f"{what} {name!r}: units", "text", repr(units))


@dataclass(frozen=True)
class Variable:
    """A field u that the simulation computes; one channel of every step.

    It is kept and learnt in single precision as ``(u - offset) / scale``. These matter
    where u varies little around a large value, such as pressure in air, or beyond 1e38.
    Errors are in the units of u, and relative ones relative to ``u - offset``; what is
    predicted is u.

    A `masked` one is NaN where it is not defined, such as over land: at the same points
    in all steps of a simulation. They are left out of losses, moments and errors.

    On a staggered grid it has its own `dims`, one for each of the spec's: ``("y",
    "xf")`` for the x faces of cells along ``("y", "x")``.

    A vector of `size` components, ``velocity``, is as many variables in a FieldSpec:
    ``velocity_x``, ``velocity_y``, ``velocity_z``, or ``_0``, ``_1``, ... of more.

    Raises
    ------
    ArgumentError
        If offset and scale are not finite numbers, or the scale is not positive; if the
        size is no whole number, or 1.
    """

    name: str
    units: str = ""
    long_name: str = ""
    offset: float = 0.0
    scale: float = 1.0
    masked: bool = False
    size: int = 0
    of: str = ""
    dims: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        named(self.name, self.units, "Variable")
        object.__setattr__(self, "dims", tuple(self.dims))
        if not isinstance(self.masked, bool):
            what = f"Variable {self.name!r}: masked"
            raise ArgumentError(what, "True or False", repr(self.masked))
        if self.size and self.dims:
            raise ArgumentError(
                f"Variable {self.name!r}: expected size or dims, got both. Each "
                "component on a grid of its own is a variable of its own."
            )
        if not isinstance(self.size, int) or self.size in (True, 1) or self.size < 0:
            what = f"Variable {self.name!r}: size"
            raise ArgumentError(what, "the length of a vector, >= 2", repr(self.size))
        for name in ("offset", "scale"):
            what = f"Variable {self.name!r}: {name}"
            object.__setattr__(self, name, number(getattr(self, name), what))
        if not (math.isfinite(self.offset) and 0 < self.scale < math.inf):
            raise ArgumentError(
                f"Variable {self.name!r}",
                "a finite offset and a scale > 0",
                f"offset={self.offset}, scale={self.scale}",
            )

    @property
    def plain(self) -> bool:
        """Whether it is kept as it is: without offset and scale."""
        return (self.offset, self.scale) == (0, 1)

    def components(self) -> tuple[Variable, ...]:
        """Return a variable for each component of a vector, or itself.

        Examples
        --------
        >>> [v.name for v in Variable("velocity", size=2).components()]
        ['velocity_x', 'velocity_y']
        """
        if not self.size:
            return (self,)
        letters = "xyz" if self.size <= 3 else map(str, range(self.size))
        return tuple(
            replace(
                self,
                name=f"{self.name}_{letter}",
                long_name=f"{self.long_name}, {letter}" if self.long_name else "",
                size=0,
                of=self.name,
            )
            for _, letter in zip(range(self.size), letters, strict=False)
        )

    def normalised(self, values: np.ndarray) -> np.ndarray:
        """Return ``(values - offset) / scale``, in double precision if it has any."""
        if self.plain:
            return values
        return (values.astype(np.float64, copy=False) - self.offset) / self.scale


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
    long_name: str = ""

    def __post_init__(self) -> None:
        named(self.name, self.units, "Coordinate")
        what = f"Coordinate {self.name!r}"
        object.__setattr__(self, "values", numbers(self.values, what))
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
    parameters : mapping of str to float or str
        A number each, and the word of a choice; vectors by component.
    """

    number: int
    part: str
    parameters: Mapping[str, Any]


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


class Described(Protocol):
    """A parameter, a variable or a coordinate."""

    @property
    def name(self) -> str: ...
    @property
    def units(self) -> str: ...
    @property
    def long_name(self) -> str: ...


def described(quantity: Described) -> dict[str, Any]:
    """Return units and long name; that is the name in words where none is given."""
    long_name = quantity.long_name or quantity.name.replace("_", " ")
    found: dict[str, Any] = attributes(quantity.units, long_name)
    if choices := getattr(quantity, "choices", ()):
        # As the conventions of netCDF for climate and forecast have categories.
        found["flag_values"] = [*map(float, range(len(choices)))]
        found["flag_meanings"] = " ".join(choices)
    return found


def packing(variable: Variable) -> dict[str, float]:
    """Return offset and scale as netCDF names them; xarray applies both."""
    if variable.plain:
        return {}
    return {"add_offset": variable.offset, "scale_factor": variable.scale}
