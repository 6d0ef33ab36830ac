"""One stream to several sinks, such as the trainers of a sweep."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64

from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.stream.sink import Sink

__all__ = ["Fanout", "Late"]

#: What becomes of steps for which a sink has no room while others have.
Late = Literal["wait", "drop", "spool"]


class Fanout(Sink):
    """A sink that hands every step to each of its sinks, exactly once and in order.

    Parameters
    ----------
    late : {"wait", "drop", "spool"}
        Whether the slowest sink holds up the others, or misses the rest of a simulation
        for which it has no room while another sink has: for good, or until it reads
        that elsewhere. Held-out ones always wait.
    held_out : int
        Simulations below this number are held out.

    Notes
    -----
    `add`, `remove`, `streamed` and `dropped` may be called from any thread. A sink that
    is added later gets the simulations that open from then on. Without any sink all
    steps wait.

    Examples
    --------
    >>> from surrogate_flow.stream import Discard
    >>> fanout = Fanout()
    >>> fanout.add("one", Discard())
    >>> fanout.open(0)
    0
    >>> fanout.offer(0, 0, np.zeros((3, 1, 4), np.float32), np.zeros(1))
    3
    """

    def __init__(self, *, late: Late = "wait", held_out: int = 0) -> None:
        self._late, self._held_out = late, held_out
        self._sinks: dict[str, Sink] = {}
        self._shares: dict[str, tuple[int, int]] = {}
        #: simulation -> sink -> its next step.
        self._next: dict[int, dict[str, int]] = {}
        self._streamed: dict[str, IntSet] = {}
        self._dropped: dict[str, IntSet] = {}
        self._wakes: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def add(self, name: str, sink: Sink, share: tuple[int, int] = (0, 1)) -> None:
        """Hand the simulations that open from now on to a sink, too.

        Parameters
        ----------
        name : str
        sink : Sink
        share : (int, int)
            Rank and world: those alone whose number is ``rank`` modulo ``world``.

        Raises
        ------
        ValueError
            If there is one of this name.
        """
        with self._lock:
            if name in self._sinks:
                raise ValueError(f"The sink {name!r} is there already: remove it.")
            self._sinks = self._sinks | {name: sink}
            self._shares[name] = share
            self._streamed[name] = IntSet()
            # What it has missed stays so, if it was there before.
            self._dropped.setdefault(name, IntSet())
        for wake in self._wakes:
            sink.on_room(wake)
            wake()

    def remove(self, name: str) -> None:
        """Hand nothing more to a sink, and wait for it no more."""
        with self._lock:
            self._sinks = {k: sink for k, sink in self._sinks.items() if k != name}
            for steps in self._next.values():
                steps.pop(name, None)
        for wake in self._wakes:
            wake()

    def streamed(self, name: str) -> IntSet:
        """Return the simulations of which a sink gets, or has got, every step."""
        return self._streamed.get(name, IntSet())

    def dropped(self, name: str) -> IntSet:
        """Return those of which a sink has missed steps, since it had no room."""
        return self._dropped.get(name, IntSet())

    def open(self, simulation: int) -> int:
        """Open a simulation in all sinks; return the first step that one wants."""
        with self._lock:
            steps = self._next[simulation] = self._begun(simulation)
        return min(steps.values(), default=0)

    def offer(
        self,
        simulation: int,
        first: int,
        steps: Float32[np.ndarray, "time channel *space"],
        parameters: Float64[np.ndarray, " parameter"],
        inputs: Float32[np.ndarray, " input *space"] | None = None,
    ) -> int:
        """Offer to each sink what it has not; return how many none wants any more."""
        given = () if inputs is None else (inputs,)
        with self._lock:
            following = self._next[simulation]
            if not following and first == 0:
                following |= self._begun(simulation)
            if not following:
                # Nobody can begin in the middle.
                return len(steps) if self._sinks else 0
            for name, step in following.items():
                if (skip := max(0, step - first)) < len(steps):
                    taken = self._sinks[name].offer(
                        simulation, first + skip, steps[skip:], parameters, *given
                    )
                    following[name] = step + taken
            if self._late == "wait" or simulation < self._held_out:
                done = min(following.values()) - first
            elif self._others_have_room(following):
                done = len(steps)
            else:
                done = max(following.values()) - first
            for name in [k for k, step in following.items() if step < first + done]:
                del following[name]
                self._dropped[name].add(simulation)
                self._streamed[name].discard(simulation)
                self._sinks[name].close(simulation, complete=False)
            return max(0, min(done, len(steps)))

    def close(self, simulation: int, complete: bool, early: str = "") -> None:
        """Close it in the sinks that have had all of its steps."""
        with self._lock:
            following = self._next.pop(simulation, None)
            # One that has failed without an opening is closed in all.
            names = self._sinks if following is None else following
            for name in names:
                given = (early,) if early else ()
                self._sinks[name].close(simulation, complete, *given)

    def priority(self, simulation: int) -> int:
        """Return 2 for a held-out simulation, for which all others wait."""
        return 2 if simulation < self._held_out else 0

    def waiting(self) -> str:
        """Return which sink waits for what."""
        if not self._sinks:
            return "nobody has asked for steps yet"
        return "; ".join(f"{name}: {reason}" for name, reason in self.full().items())

    def full(self) -> dict[str, str]:
        """Return the sinks without room, and why they have none."""
        reasons = {name: sink.waiting() for name, sink in self._sinks.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def on_room(self, wake: Callable[[], None]) -> None:
        """Have `wake` called when one of the sinks may have room."""
        self._wakes.append(wake)
        for sink in self._sinks.values():
            sink.on_room(wake)

    def _others_have_room(self, following: dict[str, int]) -> bool:
        """Whether a sink that does not get this simulation waits for the next."""
        others = (sink for k, sink in self._sinks.items() if k not in following)
        return any(not sink.waiting() for sink in others)

    def _begun(self, simulation: int) -> dict[str, int]:
        """Open a simulation in the sinks that get it; return their first steps."""
        steps = {}
        for name, sink in self._sinks.items():
            rank, world = self._shares[name]
            if simulation % world == rank:
                steps[name] = sink.open(simulation)
                self._streamed[name].add(simulation)
        return steps
