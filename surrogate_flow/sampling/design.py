"""Which simulations a study runs, in which order, and with which parameters."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import msgspec
import numpy as np
from jaxtyping import Float

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.parameter import Parameter, rounded
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.sampling.constraint import Accepted, Constraint
from surrogate_flow.sampling.sampler import Observations, Sampler
from surrogate_flow.sampling.sequences import Uniform

__all__ = ["SEEDS", "Design", "shared_points"]

logger = logging.getLogger(__name__)

# Held-out sets are the same for all samplers, so that studies can be compared; no user
# would choose these seeds.
SEEDS = {"validation": 1_234_567_891, "test": 1_234_567_892}

_AHEAD = 1024  # points that a sampler is asked for at once, at most


def shared_points(
    sampler: Sampler,
    fixed: Sampler | Literal["same"] | None,
    *,
    held_out: int | None,
    usual: int,
    simulations: int | None,
) -> tuple[Sampler | None, int, int | None]:
    """Return the sampler of the held-out simulations, their number, and how many train.

    Parameters
    ----------
    sampler : Sampler
        Of the simulations to train on.
    fixed : Sampler or "same", optional
        Of the held-out ones: ``"same"`` is `sampler`, whose first points they have, and
        None too where it has an end. Of any other, None is uniform points.
    held_out : int, optional
        By default `usual`, but a fifth of the points at most.
    usual : int
    simulations : int, optional
        To train on; no more than there are.

    Raises
    ------
    ArgumentError
        If there are too few points, or held-out ones would adapt to losses.

    Examples
    --------
    >>> shared_points(Uniform(), None, held_out=None, usual=10, simulations=9)
    (None, 10, 9)
    """
    if fixed == "same" or (fixed is None and sampler.count is not None):
        fixed = sampler
    if fixed is not None and fixed.adapts:
        raise ArgumentError(
            f"data.held_out_sampler: {type(fixed).__name__} adapts to losses, and "
            "held-out simulations must stay the same. Name another, such as Sobol."
        )
    known = None if fixed is None else fixed.count
    if held_out is None:
        held_out = usual
        if known is not None:
            held_out = min(usual, max(1, known // 5 if fixed is sampler else known))
    if known is not None and held_out > known:
        raise ArgumentError("data.held_out", f"at most the {known} points", held_out)
    if sampler.count is not None:
        left = sampler.count - (held_out if fixed is sampler else 0)
        if not left:
            raise ArgumentError(
                f"data.sampler: expected more points than the {held_out} of held-out "
                f"simulations, got {sampler.count}. Lower --data.held_out."
            )
        if simulations is None or simulations > left:
            logger.info("The sampler has %d points to train on.", left)
            simulations = left
    return fixed, held_out, simulations


class Design:
    """number -> parameters: the held-out points first, then those of the sampler.

    Iterating yields the remaining simulations. Thread-safe: one thread may call `next`
    while another reports losses.

    Parameters
    ----------
    bounds : sequence of Parameter
        The box of the parameters.
    sampler : Sampler
        Draws the simulations for training.
    held_out : int
        How many are, numbered from 0.
    fixed : Sampler, optional
        Draws these; uniform points with a seed of their own by default. Where it is
        `sampler` itself they are its first points.
    simulations : int, optional
        For training, numbered from `held_out`; endless by default.
    part : {"validation", "test"}
        Use of the held-out ones, each with its own seed.
    rank, world : int
        Number of this process, and of all: each gets every `world`-th simulation.
    given : bool
        Whether input fields tell simulations apart, so that there need be no parameter.
    constraint : callable, optional
        Is given the parameters as a solver is, and returns whether they may run. Points
        that it refuses are left out of a sampler's sequence, so that the others move
        up; held-out ones, too.

    Raises
    ------
    ArgumentError
        If there is no parameter, or several ranks share a sampler that adapts, or the
        constraint refuses nearly all; where points are drawn, too.

    Examples
    --------
    >>> box = [Parameter("rate", 0.0, 1.0)]
    >>> design = Design(box, Uniform(seed=1), held_out=1, simulations=2)
    >>> [(s.number, s.part, round(s.parameters["rate"], 3)) for s in design]
    [(0, 'validation', 0.973), (1, 'training', 0.512), (2, 'training', 0.95)]
    """

    def __init__(
        self,
        bounds: Sequence[Parameter],
        sampler: Sampler,
        *,
        held_out: int,
        fixed: Sampler | None = None,
        simulations: int | None = None,
        part: str = "validation",
        rank: int = 0,
        world: int = 1,
        given: bool = False,
        constraint: Constraint | None = None,
    ) -> None:
        name = type(sampler).__name__
        if not bounds and not given:
            raise ArgumentError(
                f"{name}: expected parameters to draw, got none. Declare in the "
                "solver's spec what varies between simulations: parameters, or inputs."
            )
        if world > 1 and sampler.adapts:
            raise ArgumentError(
                f"{name} adapts to losses: expected one device, got {world}. Set "
                "--trainer.devices 1, or use a sampler that does not adapt, such as "
                "--data.sampler Sobol."
            )
        try:
            msgspec.msgpack.encode(sampler.state_dict() if sampler.adapts else None)
        except Exception as error:
            raise ArgumentError(
                f"{name}.state_dict()",
                "numbers, text, lists and dictionaries of them, for checkpoints",
                f"something else ({error})",
                "Return array.tolist() in place of an array.",
            ) from error
        self.held_out = held_out
        self._bounds = tuple(p.drawn for each in bounds for p in each.components())
        self._sampler = sampler
        self._part = part
        self._end = None if simulations is None else held_out + simulations
        self._rank, self._world = rank, world
        self._given = given
        self._lock = threading.Lock()
        self._ended: list[Container[int] | IntSet] = []
        self._next = 0
        self._fixed = fixed or Uniform(SEEDS[part])
        self._accepted = {
            id(each): Accepted(partial(self._raw, each), self._bounds, constraint)
            for each in (sampler, self._fixed)
            if constraint is not None
        }
        if constraint is not None:
            for each in (sampler, self._fixed):
                if each.count is not None:
                    raise ArgumentError(
                        "data.constraint",
                        "a sampler without an end",
                        f"{type(each).__name__}, which has {each.count} points",
                        "Take out of these what may not run.",
                    )
        self._kept_apart: set[tuple[float, ...]] | None = None
        # Of the first simulation for training, in the sampler's sequence.
        self._begin = held_out if fixed is sampler else 0
        # Points of the sampler, and the number of the simulation of the first.
        self._pending, self._pending_first = np.empty((0, len(self._bounds))), held_out
        # Of a sampler that adapts: a point is never drawn again.
        self._drawn: dict[int, list[float]] = {}
        self._untold: deque[Observations] = deque()

    @property
    def first(self) -> dict[str, Any]:
        """Parameters of the first simulation for training."""
        with self._lock:
            return self._named(self._point(self.held_out))

    @property
    def planned(self) -> int | None:
        """Number of simulations of this rank, from the first on; None if endless."""
        end = self._end
        return None if end is None else len(range(self._rank, end, self._world))

    def share_accepted(self) -> float:
        """Return which share of the sampler's first points the constraint accepts."""
        with self._lock:
            accepted = self._accepted.get(id(self._sampler))
            if accepted is None:
                return 1.0
            points = self._raw(self._sampler, 0, _AHEAD)
            return sum(map(accepted.allows, points)) / len(points)

    def next(self) -> Simulation | None:
        """Return the next simulation of this rank; None after the last."""
        with self._lock:
            while self._end is None or self._next < self._end:
                number = self._next
                self._next += 1
                if self.mine(number) and not any(
                    number in ended for ended in self._ended
                ):
                    return self._at(number)
        return None

    def at(self, number: int) -> Simulation:
        """Return the simulation of a number."""
        with self._lock:
            return self._at(number)

    def mine(self, number: int) -> bool:
        """Whether a number is of this rank."""
        return number % self._world == self._rank

    def _at(self, number: int) -> Simulation:
        point = self._point(number)
        if self._sampler.adapts and number >= self.held_out:
            self._drawn[number] = point.tolist()
        part = "training" if number >= self.held_out else self._part
        # Input fields differ, whatever the parameters are.
        if part == "training" and self._bounds and not self._given:
            self._warn_of_repetition(number, point)
        return Simulation(number, part, self._named(point))

    def __iter__(self) -> Iterator[Simulation]:
        return iter(self.next, None)

    def skip(self, ended: Container[int] | IntSet) -> None:
        """Leave out simulations that ended in an earlier process."""
        with self._lock:
            self._ended.append(ended)

    def tell(self, seen: Observations) -> None:
        """Pass losses to the sampler, which may change the points not yet drawn.

        The training does not wait for a sampler that is being asked: it is told after.
        """
        if self._sampler.adapts:
            self._untold.append(seen)
            if self._lock.acquire(blocking=False):
                try:
                    self._tell()
                finally:
                    self._lock.release()

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the points of a sampler that adapts, as plain values."""
        with self._lock:
            self._tell()
            state: dict[str, Any] = {
                "sampler": self._sampler.state_dict(),
                "numbers": list(self._drawn),
                "points": list(self._drawn.values()),
            }
            if accepted := self._accepted.get(id(self._sampler)):
                state["refused"] = accepted.refused
            return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`: simulations that had not ended keep their points."""
        with self._lock:
            self._sampler.load_state_dict(state["sampler"])
            self._drawn = dict(zip(state["numbers"], state["points"], strict=True))
            self._pending = self._pending[:0]
            if accepted := self._accepted.get(id(self._sampler)):
                accepted.refused = state.get("refused", 0)

    def _tell(self) -> None:
        while self._untold:
            self._sampler.tell(self._untold.popleft())
            self._pending = self._pending[:0]

    def _point(self, number: int) -> Float[np.ndarray, " parameter"]:
        if number < self.held_out:
            point: Float[np.ndarray, " parameter"] = self._ask(self._fixed, number, 1)[
                0
            ]
            return point
        if number in self._drawn:
            return np.array(self._drawn[number])
        self._tell()
        if not 0 <= number - self._pending_first < len(self._pending):
            # One that adapts will be told more before the next point is needed.
            ahead = 1 if self._sampler.adapts else _AHEAD
            left = ahead if self._end is None else max(1, self._end - number)
            first = number - self.held_out + self._begin
            count = min(ahead, left)
            points = self._ask(self._sampler, first, count)
            self._pending_first, self._pending = number, points
        point = self._pending[number - self._pending_first]
        return point

    def _ask(
        self, sampler: Sampler, first: int, count: int
    ) -> Float[np.ndarray, "point parameter"]:
        if not self._bounds:
            return np.empty((count, 0))
        if accepted := self._accepted.get(id(sampler)):
            if sampler.adapts:
                return accepted.next(first, count)
            return accepted.ask(first, count)
        return self._raw(sampler, first, count)

    def _raw(
        self, sampler: Sampler, first: int, count: int
    ) -> Float[np.ndarray, "point parameter"]:
        """Return points of a sampler's own sequence, checked."""
        points = np.asarray(sampler.ask(first, count, self._bounds))
        asked = f"{type(sampler).__name__}.ask({first}, {count}, bounds)"
        shape = (count, len(self._bounds))
        if points.shape != shape or points.dtype.kind not in "fiu":
            raise ArgumentError(
                asked,
                f"an array of numbers of shape {shape}",
                f"the shape {points.shape} and dtype {points.dtype}",
            )
        points = points.astype(np.float64)
        for p, column in zip(self._bounds, points.T, strict=True):
            # As far as rounding may have carried them.
            near = 1e-9 * (p.high - p.low)
            wrong = ~((p.low - near <= column) & (column <= p.high + near))
            if wrong.any():
                raise ArgumentError(
                    f"{asked}: {p.name}",
                    f"values from {p.low:g} to {p.high:g}",
                    f"{column[wrong][0]:g}",
                    f"Scale points to bounds[{self._bounds.index(p)}].low and .high.",
                )
            column.clip(p.low, p.high, out=column)
        return rounded(points, self._bounds)

    def _warn_of_repetition(
        self, number: int, point: Float[np.ndarray, " parameter"]
    ) -> None:
        """Say once that a simulation to train on is one of the held-out ones again."""
        if self._kept_apart is None:
            fixed = self._ask(self._fixed, 0, self.held_out)
            self._kept_apart = set(map(tuple, np.asarray(fixed).tolist()))
        if tuple(point.tolist()) in self._kept_apart:
            logger.warning(
                "Simulation %d has the parameters of a held-out one: errors will be "
                "too small. Lower --data.simulations, or hold out other points.",
                number,
            )
            self._kept_apart = set()

    def _named(self, point: Float[np.ndarray, " parameter"]) -> dict[str, Any]:
        pairs = zip(self._bounds, point.tolist(), strict=True)
        return {p.name: p.value(value) for p, value in pairs}
