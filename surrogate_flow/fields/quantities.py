"""Named quantities with units, and simulations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.names import nearest

__all__ = [
    "SURROGATE",
    "Coordinate",
    "Parameter",
    "Simulation",
    "Variable",
    "apart",
    "arguments",
    "attributes",
    "counted",
    "described",
    "in_units",
    "named",
    "numbers",
    "packing",
    "rounded",
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
class Parameter:
    """A scalar input of the simulation, within ``[low, high]``; uniform by default.

    If `whole`, its values are the whole numbers there, and samplers give each of them
    the same share. Its long name labels it in files.

    Parameters
    ----------
    log : bool
        Whether its logarithm is uniform.
    mean, std : float, optional
        Of a normal distribution, which is cut off at the bounds.
    choices : tuple of str
        In place of bounds: a category, each as often. A solver is given the word, files
        and networks its index.
    size : int
        Of a vector. A `FieldSpec` has a parameter for each of its components, named
        ``load[0]``, ``load[1]``, ...; a solver is given one array ``load``.
    of : str
        Of a component: the name of its vector.

    Raises
    ------
    ArgumentError
        If the bounds are not finite, or not in ascending order, or the distribution is
        not one of these.

    Examples
    --------
    >>> waves = Parameter("waves", 1, 4, whole=True)
    >>> [waves.at(share) for share in (0.0, 0.24, 0.26, 1.0)]
    [1.0, 1.0, 2.0, 4.0]
    >>> viscosity = Parameter("viscosity", 1e-3, 1e-1, "Pa s", log=True)
    >>> viscosity.at(0.5)
    0.01
    >>> metal = Parameter("metal", choices=("steel", "copper"))
    >>> metal.low, metal.high, metal.value(metal.at(0.7))
    (0.0, 1.0, 'copper')
    """

    name: str
    low: float = math.nan
    high: float = math.nan
    units: str = ""
    whole: bool = False
    long_name: str = ""
    log: bool = False
    mean: float | None = None
    std: float | None = None
    choices: tuple[str, ...] = ()
    size: int = 0
    of: str = ""

    def __post_init__(self) -> None:
        named(self.name, self.units, "Parameter")
        for switch in ("whole", "log"):
            if not isinstance(getattr(self, switch), bool):
                raise self._wrong(switch, "true or false", repr(getattr(self, switch)))
        if self.choices:
            self._choose()
        for bound in ("low", "high", "mean", "std"):
            if (given := getattr(self, bound)) is not None:
                what = f"Parameter {self.name!r}: {bound}"
                object.__setattr__(self, bound, number(given, what))
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise self._wrong("", "finite bounds", f"[{self.low}, {self.high}]")
        if not self.low < self.high:
            raise ArgumentError(
                f"Parameter {self.name!r}: expected low < high, got "
                f"[{self.low}, {self.high}] {self.units}. Make a fixed value an "
                "argument of the solver."
            )
        if not isinstance(self.size, int) or self.size < 0 or (self.size and self.of):
            raise self._wrong("size", "the length of a vector, >= 1", repr(self.size))
        self._check_distribution()
        size = max(abs(self.low), abs(self.high))
        if self.whole:
            # Beyond, single precision leaves some out.
            if size > 2**24 + 0.5 or math.ceil(self.low) >= math.floor(self.high):
                expected = "bounds within ±2^24, with two whole numbers or more"
                raise self._wrong("", expected, f"[{self.low}, {self.high}]")
        elif self.high - self.low < LEVELS / 4 * np.spacing(np.float32(size)):
            raise self._wrong(
                "",
                "bounds between which single precision has many values",
                f"[{self.low}, {self.high}]",
                f"Take the distance from {self.low:g} as the parameter, and add that "
                "in the solver, or use other units.",
            )

    def _wrong(
        self, field: str, expected: str, got: object, remedy: str = ""
    ) -> ArgumentError:
        what = f"Parameter {self.name!r}" + f": {field}" * bool(field)
        return ArgumentError(what, expected, got, remedy)

    def _choose(self) -> None:
        """Number the choices, whose indices are whole parameters."""
        given = self.choices
        words = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not all(isinstance(w, str) and len(w.split()) == 1 for w in words) or (
            len({*words}) < max(2, len(words))
        ):
            expected = "two or more different words without blanks"
            remedy = "A number may be written as text: '10'."
            raise self._wrong("choices", expected, given, remedy)
        last = float(len(words) - 1)
        object.__setattr__(self, "choices", words)
        object.__setattr__(self, "whole", True)
        if math.isnan(self.low) and math.isnan(self.high):
            object.__setattr__(self, "low", 0.0)
            object.__setattr__(self, "high", last)
        if (math.ceil(self.low), math.floor(self.high)) != (0, last):
            got = f"[{self.low}, {self.high}]"
            raise self._wrong("", "no bounds beside choices", got, "Leave them out.")

    def _check_distribution(self) -> None:
        if bool(self.choices) + self.log + (self.mean is not None) > 1 or (
            (self.mean is None) != (self.std is None)
        ):
            expected = "one of log, mean and std, choices"
            got = f"log={self.log}, mean={self.mean}, std={self.std}"
            raise self._wrong("", expected, f"{got}, choices={self.choices}")
        if self.log and self.low < np.finfo(np.float32).tiny:
            remedy = "Without log=True it may be 0 or less."
            raise self._wrong("low", "a bound > 0 with log", self.low, remedy)
        if self.mean is not None and self.std is not None:
            if not self.low <= self.mean <= self.high:
                expected = f"a value from {self.low:g} to {self.high:g}, its bounds"
                raise self._wrong("mean", expected, self.mean)
            if not 0 < self.std < math.inf:
                raise self._wrong("std", "a number > 0", self.std)

    @property
    def uniform(self) -> bool:
        """Whether each part of ``[low, high]`` is drawn as often, if it is as long."""
        return not self.log and self.mean is None

    @property
    def drawn(self) -> Parameter:
        """Itself, or, if `whole`, with the bounds to draw in before values are rounded.

        These lie half a number further out, so that the ends have their full share.
        """
        if not self.whole:
            return self
        low, high = math.ceil(self.low) - 0.5, math.floor(self.high) + 0.5
        return replace(self, low=low, high=high)

    def at(self, share: Any) -> Any:
        """Return the value below which a share lies: the inverse of its distribution.

        Parameters
        ----------
        share : float or array
            From 0 to 1.
        """
        shares = np.asarray(share, dtype=np.float64)
        low, high = self.drawn.low, self.drawn.high
        if self.log:
            values = low * (high / low) ** shares
        elif self.mean is not None and self.std is not None:
            from scipy.stats import truncnorm  # a second that others need not wait

            ends = ((end - self.mean) / self.std for end in (low, high))
            values = self.mean + self.std * truncnorm.ppf(shares, *ends)
        else:
            values = low * (1 - shares) + high * shares
        # Rounding may carry a value just past the upper bound.
        column = np.reshape(values, (-1, 1)).clip(low, high)
        values = rounded(column, [self]).reshape(shares.shape)
        return values if shares.ndim else float(values)

    def value(self, given: float) -> float | str:
        """Return a number as a solver has it: the word of a choice."""
        return self.choices[int(given)] if self.choices else float(given)

    def number(self, given: Any) -> float:
        """Return a value as a number: the index of a choice, by its word or index.

        Raises
        ------
        ArgumentError
            If it is no choice.
        TypeError, ValueError
            If it is no number.
        """
        if not self.choices:
            return float(given)
        if isinstance(given, str) and given in self.choices:
            return float(self.choices.index(given))
        with suppress(TypeError, ValueError):
            if float(given) in range(len(self.choices)):
                return float(given)
        hint = nearest(str(given), self.choices)
        raise ArgumentError(
            f"Parameter {self.name!r}: unknown choice {given!r}. {hint}"
        )

    def components(self) -> tuple[Parameter, ...]:
        """Return the components of a vector, and of a number itself."""
        if not self.size:
            return (self,)
        return tuple(
            replace(self, name=f"{self.name}[{k}]", size=0, of=self.name)
            for k in range(self.size)
        )

    def in_words(self) -> str:
        """Return the bounds and the distribution, such as ``1 to 9 m, log-uniform``."""
        if self.choices:
            return ", ".join(self.choices)
        words = f"{self.low:.6g} to {in_units(self.high, self.units, 6)}"
        if self.std is not None:
            words += f", normal ({self.mean:.6g} ± {self.std:.6g})"
        return words + ", log-uniform" * self.log


@dataclass(frozen=True)
class Variable:
    """A field u that the simulation computes; one channel of every step.

    It is kept and learnt in single precision as ``(u - offset) / scale``. These matter
    where u varies little around a large value, such as pressure in air, or beyond 1e38.
    Errors are in the units of u, and relative ones relative to ``u - offset``; what is
    predicted is u.

    Raises
    ------
    ArgumentError
        If offset and scale are not finite numbers, or the scale is not positive.
    """

    name: str
    units: str = ""
    long_name: str = ""
    offset: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        named(self.name, self.units, "Variable")
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


def arguments(bounds: Sequence[Parameter], point: Iterable[float]) -> dict[str, Any]:
    """Return a point as solvers and constraints have it, by name.

    Choices are words, and the components of a vector an array.

    Examples
    --------
    >>> load = Parameter("load", 0, 9, size=2).components()
    >>> arguments([Parameter("metal", choices=("steel", "copper")), *load], [1, 2, 3])
    {'metal': 'copper', 'load': array([2., 3.])}
    """
    values: dict[str, Any] = {}
    for p, number in zip(bounds, point, strict=True):
        if p.of:
            values.setdefault(p.of, []).append(p.value(number))
        else:
            values[p.name] = p.value(number)
    return {k: np.array(v) if isinstance(v, list) else v for k, v in values.items()}


def apart(bounds: Sequence[Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return named values whose vectors are apart: a value for each component.

    Raises
    ------
    ArgumentError
        If a vector has another length.
    """
    if not any(p.of for p in bounds):
        return {**given}
    parts: dict[str, Any] = {}
    for name, value in given.items():
        size = sum(p.of == name for p in bounds if p.of)
        if size and (np.ndim(value) < 1 or np.shape(value)[-1] != size):
            expected = f"a vector of {size} values"
            raise ArgumentError(f"Parameter {name!r}", expected, repr(value))
        parts |= {
            f"{name}[{k}]": np.asarray(value)[..., k].tolist() for k in range(size)
        }
        if not size:
            parts[name] = value
    return parts


def rounded(
    points: Float[np.ndarray, "point parameter"], bounds: Sequence[Parameter]
) -> Float[np.ndarray, "point parameter"]:
    """Return points whose whole parameters are the nearest whole numbers."""
    whole = [p.whole for p in bounds]
    if not any(whole):
        return points
    points = np.array(points, dtype=np.float64)
    drawn = points[:, whole]
    ends = [p.drawn.high for p in bounds if p.whole]
    # A half belongs to the number above it, but for the last.
    points[:, whole] = np.floor(drawn + 0.5) - (drawn == ends)
    return points


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


def described(quantity: Parameter | Variable | Coordinate) -> dict[str, Any]:
    """Return units and long name; that is the name in words where none is given."""
    long_name = quantity.long_name or quantity.name.replace("_", " ")
    found: dict[str, Any] = attributes(quantity.units, long_name)
    if isinstance(quantity, Parameter) and quantity.choices:
        # As the conventions of netCDF for climate and forecast have categories.
        found["flag_values"] = [*map(float, range(len(quantity.choices)))]
        found["flag_meanings"] = " ".join(quantity.choices)
    return found


def packing(variable: Variable) -> dict[str, float]:
    """Return offset and scale as netCDF names them; xarray applies both."""
    if variable.plain:
        return {}
    return {"add_offset": variable.offset, "scale_factor": variable.scale}
