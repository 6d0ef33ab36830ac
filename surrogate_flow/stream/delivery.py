"""The handing over of trajectories to sinks that may be full."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from surrogate_flow.stream.sink import Sink
from surrogate_flow.stream.trajectory import Trajectory

__all__ = ["Delivery"]


class Delivery:
    """Remembers who waits for room, and serves them in turn.

    Parameters
    ----------
    sink_for : callable
        Number of a simulation -> where its steps go, or None if it has not begun.
    wake : callable
        Given to each sink once; it must lead to a call of `retry`.
    shape : tuple of int
        Of one step.
    taken : callable
        Told connection and length of each message that has entered the sink.

    Notes
    -----
    Not locked: the inlet's thread owns it.
    """

    def __init__(
        self,
        sink_for: Callable[[int], Sink | None],
        wake: Callable[[], None],
        shape: tuple[int, ...],
        taken: Callable[[bytes, int], None],
    ) -> None:
        self._sink_for = sink_for
        self._wake = wake
        self._shape = shape
        self._taken = taken
        self._sinks: dict[int, Sink] = {}
        self._waiting: dict[int, Trajectory] = {}

    def open_sink(self, number: int) -> Sink | None:
        """Return the sink of a simulation, which will wake us when it has room."""
        sink = self._sink_for(number)
        if sink is not None and id(sink) not in self._sinks:
            self._sinks[id(sink)] = sink
            sink.on_room(self._wake)
        return sink

    def deliver(self, trajectory: Trajectory) -> bool:
        """Offer what is pending and return whether all of it was taken."""
        for identity, length in trajectory.deliver(self._shape):
            self._taken(identity, length)
        if trajectory.pending:
            self._waiting[trajectory.number] = trajectory
            return False
        self._waiting.pop(trajectory.number, None)
        return True

    def retry(self) -> Iterator[Trajectory]:
        """Offer again to all sinks and yield the trajectories that wait no longer."""
        for number, trajectory in list(self._waiting.items()):
            before = trajectory.pending[0]
            if self.deliver(trajectory):
                yield trajectory
            elif trajectory.pending[0] is not before:
                # Whoever was served goes to the end of the queue.
                self._waiting[number] = self._waiting.pop(number)

    def drop(self, trajectory: Trajectory) -> None:
        """Forget what is pending."""
        self._waiting.pop(trajectory.number, None)
        while trajectory.pending:
            parcel = trajectory.pending.popleft()
            self._taken(parcel.identity, parcel.length)
