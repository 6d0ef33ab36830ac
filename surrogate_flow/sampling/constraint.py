"""Constraints between parameters: which points of a sampler may run."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from surrogate_flow.fields.errors import ArgumentError, line_of
from surrogate_flow.fields.parameter import Parameter, arguments

__all__ = ["Accepted", "Constraint"]

#: Whether a simulation of these parameters may run.
Constraint = Callable[[Mapping[str, Any]], bool]

_BLOCK = 1024  # points that are tried together
_REFUSED = 20 * _BLOCK  # in a row, at most


class Accepted:
    """The points of a sequence that a constraint accepts, in their order.

    Parameters
    ----------
    draw : callable
        ``draw(first, count)`` returns points of the sequence.
    bounds : sequence of Parameter
    constraint : callable

    Attributes
    ----------
    refused : int
        Points that `next` has left out.
    """

    def __init__(
        self,
        draw: Callable[[int, int], Float[np.ndarray, "point parameter"]],
        bounds: Sequence[Parameter],
        constraint: Constraint,
    ) -> None:
        self._draw, self._bounds, self._constraint = draw, bounds, constraint
        self._numbers = array("q")  # in the sequence, of those accepted so far
        self._tried = 0
        self.refused = 0

    def allows(self, point: Float[np.ndarray, " parameter"]) -> bool:
        """Ask the constraint."""
        given = arguments(self._bounds, point.tolist())
        name = getattr(self._constraint, "__name__", type(self._constraint).__name__)
        try:
            answer = self._constraint(given)
        except Exception as error:  # of any type: the function is the user's
            raise ArgumentError(
                f"data.constraint: {name} has failed with {given}: "
                f"{type(error).__name__}: {error}{line_of(error)}"
            ) from error
        if not isinstance(answer, bool | np.bool_):
            remedy = "Return what a comparison gives, and all(...) of several."
            what = f"data.constraint: {name}({given})"
            raise ArgumentError(what, "True or False", repr(answer), remedy)
        return bool(answer)

    def ask(self, first: int, count: int) -> Float[np.ndarray, "point parameter"]:
        """Return accepted points of a sequence that does not change."""
        while len(self._numbers) < first + count:
            last = self._numbers[-1] if self._numbers else -1
            for point in self._draw(self._tried, _BLOCK):
                if self.allows(point):
                    self._numbers.append(self._tried)
                self._tried += 1
            self._require_some(self._tried - last - 1)
        numbers = np.array(self._numbers[first : first + count], dtype=np.int64)
        if not count:
            return self._draw(0, 0)
        begin = int(numbers[0])
        return self._draw(begin, int(numbers[-1]) + 1 - begin)[numbers - begin]

    def next(self, first: int, count: int) -> Float[np.ndarray, "point parameter"]:
        """Return the next accepted points of a sequence that may have changed."""
        points: list[Float[np.ndarray, " parameter"]] = []
        row = 0
        while len(points) < count:
            point = self._draw(first + len(points) + self.refused, 1)[0]
            if self.allows(point):
                points.append(point)
                row = 0
            else:
                self.refused, row = self.refused + 1, row + 1
                self._require_some(row)
        return np.array(points).reshape(count, len(self._bounds))

    def _require_some(self, refused: int) -> None:
        if refused >= _REFUSED:
            accepted = len(self._numbers)
            of = f"{accepted:,} of {self._tried:,}" if self._tried else "none"
            raise ArgumentError(
                "data.constraint",
                "a function that accepts some points",
                f"one that has refused {refused:,} in a row, and accepted {of}",
                "Draw in narrower bounds, or in parameters that go without it.",
            )
