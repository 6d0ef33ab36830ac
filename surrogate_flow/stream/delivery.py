"""The handing over of trajectories to a sink that may be full."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from surrogate_flow.stream.sink import Sink
from surrogate_flow.stream.trajectory import Trajectory

__all__ = ["Delivery"]


class Delivery:
    """Remembers who waits for room, and serves them in turn.

    Parameters
    ----------
    sink : Sink
        Its wake-up must lead to a call of `retry`.
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
        sink: Sink,
        shape: tuple[int, ...],
        taken: Callable[[bytes, int], None],
    ) -> None:
        self._sink = sink
        self._shape = shape
        self._taken = taken
        self._waiting: dict[int, Trajectory] = {}

    def deliver(self, trajectory: Trajectory) -> bool:
        """Offer what is pending and return whether all of it was taken."""
        for identity, length in trajectory.deliver(self._sink, self._shape):
            self._taken(identity, length)
        if trajectory.pending:
            self._waiting[trajectory.number] = trajectory
            return False
        self._waiting.pop(trajectory.number, None)
        return True

    def retry(self) -> Iterator[Trajectory]:
        """Offer again and yield the trajectories that wait no longer."""
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
