"""Which simulations a study runs, in which order, and with which parameters."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.quantities import Parameter, Simulation
from surrogate_flow.sampling.sampler import Observations, Sampler
from surrogate_flow.sampling.sequences import Uniform

__all__ = ["SEEDS", "Design"]

# Held-out sets are the same for all samplers, so that studies can be compared; no user
# would choose these seeds.
SEEDS = {"validation": 1_234_567_891, "test": 1_234_567_892}

_AHEAD = 1024  # points that a sampler is asked for at once, at most


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
        Simulations 0, ..., held_out - 1 are uniform points with a seed of their own.
    simulations : int, optional
        For training, numbered from `held_out`; endless by default.
    part : {"validation", "test"}
        Use of the held-out ones, each with its own seed.
    rank, world : int
        Number of this process, and of all: each gets every `world`-th simulation.

    Raises
    ------
    ArgumentError
        If there is no parameter, or several ranks share a sampler that adapts.

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
        simulations: int | None = None,
        part: str = "validation",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        name = type(sampler).__name__
        if not bounds:
            raise ArgumentError(
                f"{name}: expected parameters to draw, got none. Declare in the "
                "solver's spec what varies between simulations."
            )
        if world > 1 and sampler.adapts:
            raise ArgumentError(
                f"{name} adapts to losses: expected one device, got {world}. Set "
                "--trainer.devices 1, or use a sampler that does not adapt, such as "
                "--data.sampler Sobol."
            )
        self.held_out = held_out
        self._bounds = tuple(bounds)
        self._sampler = sampler
        self._part = part
        self._end = None if simulations is None else held_out + simulations
        self._rank, self._world = rank, world
        self._lock = threading.Lock()
        self._ended: list[Container[int] | IntSet] = []
        self._next = 0
        self._fixed = Uniform(SEEDS[part])
        # Points of the sampler, and the number of the simulation of the first.
        self._pending, self._pending_first = np.empty((0, len(bounds))), held_out
        # Of a sampler that adapts: a point is never drawn again.
        self._drawn: dict[int, list[float]] = {}
        self._untold: deque[Observations] = deque()

    @property
    def first(self) -> dict[str, float]:
        """Parameters of the first simulation for training."""
        with self._lock:
            return self._named(self._point(self.held_out))

    def next(self) -> Simulation | None:
        """Return the next simulation of this rank; None after the last."""
        with self._lock:
            while self._end is None or self._next < self._end:
                number = self._next
                self._next += 1
                if number % self._world == self._rank and not any(
                    number in ended for ended in self._ended
                ):
                    point = self._point(number)
                    if self._sampler.adapts and number >= self.held_out:
                        self._drawn[number] = point.tolist()
                    part = "training" if number >= self.held_out else self._part
                    return Simulation(number, part, self._named(point))
        return None

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
            return {
                "sampler": self._sampler.state_dict(),
                "numbers": list(self._drawn),
                "points": list(self._drawn.values()),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`: simulations that had not ended keep their points."""
        with self._lock:
            self._sampler.load_state_dict(state["sampler"])
            self._drawn = dict(zip(state["numbers"], state["points"], strict=True))
            self._pending = self._pending[:0]

    def _tell(self) -> None:
        while self._untold:
            self._sampler.tell(self._untold.popleft())
            self._pending = self._pending[:0]

    def _point(self, number: int) -> Float[np.ndarray, " parameter"]:
        if number < self.held_out:
            point: Float[np.ndarray, " parameter"] = self._fixed.ask(
                number, 1, self._bounds
            )[0]
            return point
        if number in self._drawn:
            return np.array(self._drawn[number])
        self._tell()
        if not 0 <= number - self._pending_first < len(self._pending):
            # One that adapts will be told more before the next point is needed.
            ahead = 1 if self._sampler.adapts else _AHEAD
            left = ahead if self._end is None else max(1, self._end - number)
            count, first = min(ahead, left), number - self.held_out
            points = self._sampler.ask(first, count, self._bounds)
            if np.shape(points) != (count, len(self._bounds)):
                raise ArgumentError(
                    f"{type(self._sampler).__name__}.ask({first}, {count}, bounds)",
                    f"an array of shape {(count, len(self._bounds))}",
                    np.shape(points),
                )
            self._pending_first, self._pending = number, points
        point = self._pending[number - self._pending_first]
        return point

    def _named(self, point: Float[np.ndarray, " parameter"]) -> dict[str, float]:
        names = (p.name for p in self._bounds)
        return dict(zip(names, point.tolist(), strict=True))
