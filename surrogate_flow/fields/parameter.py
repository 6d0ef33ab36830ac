"""Parameters of simulations: bounds, distributions, choices and vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.quantities import LEVELS, in_units, named, number

__all__ = ["Parameter", "apart", "arguments", "rounded"]


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
    initial : bool
        Whether it only makes the initial state. Networks that see a history of the
        simulation do not see it then, see `Surrogate`.

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
    initial: bool = False

    def __post_init__(self) -> None:
        named(self.name, self.units, "Parameter")
        for switch in ("whole", "log", "initial"):
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
        for k, word in _by_number(words).items():
            if k in range(len(words)) and words.index(word) != k:
                expected = f"words that are no index of another choice, as {word} is"
                remedy = f"Write order{word}, for example."
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
            if word := _by_number(self.choices).get(float(given)):
                return float(self.choices.index(word))
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


def _by_number(words: Sequence[str]) -> dict[float, str]:
    """Return the words that are numbers, as a table's column of them is read."""
    found = {}
    for word in words:
        with suppress(ValueError):
            found[float(word)] = word
    return found


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
    for p, given in zip(bounds, point, strict=True):
        if p.of:
            values.setdefault(p.of, []).append(p.value(given))
        else:
            values[p.name] = p.value(given)
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
