"""The books on the steps held: to which simulation, window and sample they belong."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.reservoir.block import Block, Trajectory
from surrogate_flow.reservoir.plan import Plan
from surrogate_flow.reservoir.slab import Slab

__all__ = ["Trajectories"]


class Trajectories:
    """Books that turn steps into samples; a sample is named by its first step's slot.

    Parameters
    ----------
    plan : Plan
        Which steps are kept, and how windows lie.
    slab : Slab
        Where the steps are.
    parameters : int
        Length of a parameter vector.

    Notes
    -----
    Not thread-safe by itself: a store calls it under its lock.
    """

    def __init__(self, plan: Plan, slab: Slab, parameters: int) -> None:
        self.plan = plan
        self.slab = slab
        self.live: dict[int, Trajectory] = {}
        self._simulation = np.zeros(slab.capacity, dtype=np.int64)
        self._step = np.zeros(slab.capacity, dtype=np.int64)
        self._parameters = np.zeros((slab.capacity, parameters), dtype=np.float32)
        # A window is a chain of slots; a table of them would cost span numbers a
        # sample.
        self._next = np.zeros(slab.capacity if plan.span > 1 else 0, dtype=np.int32)
        self._unfinished = 0
        #: Simulations of which every step has come.
        self.finished = IntSet()

    def expected(self, simulation: int) -> int:
        """Return the number of the next step of a simulation."""
        if simulation in self.finished:
            return self.plan.steps
        trajectory = self.live.get(simulation)
        return 0 if trajectory is None else trajectory.expected

    @property
    def unfinished(self) -> int:
        """Number of simulations that may hold steps for windows to come."""
        return self._unfinished

    @property
    def crowded(self) -> bool:
        """Whether one more unfinished simulation could fill the slab for ever.

        Each holds up to ``span - 1`` steps for its next window. One slot has to be left
        over, or none is ever completed: ``unfinished * (span - 1) < capacity``.
        """
        return (self._unfinished + 1) * (self.plan.span - 1) >= self.slab.capacity

    def find(self, simulation: int, first: int, steps: int) -> Trajectory | None:
        """Return the trajectory that the steps continue, ``None`` if they begin one.

        Raises
        ------
        ValueError
            If the steps are not the next ones, or go beyond the end of a simulation.
        """
        trajectory = self.live.get(simulation)
        expected = 0 if trajectory is None else trajectory.expected
        if first != expected:
            raise ValueError(
                f"Simulation {simulation}: expected step {expected} next, got step "
                f"{first}. Steps of a simulation arrive in order and once; the usual "
                "cause is a retry that did not ask where to go on, or steps that "
                "come after `forget`. Offer again from the expected step."
            )
        if first + steps > self.plan.steps:
            raise ValueError(
                f"Simulation {simulation}: expected {self.plan.steps} steps in all, "
                f"got steps {first} to {first + steps - 1}. The solver yields more "
                "times than its spec names: correct `spec.times`."
            )
        return trajectory

    def reserve(
        self,
        simulation: int,
        trajectory: Trajectory | None,
        steps: int,
        parameters: Float[np.ndarray, " parameter"],
    ) -> Block:
        """Give slots to the next steps; there are enough of them free."""
        plan = self.plan
        if trajectory is None:
            trajectory = self.live[simulation] = Trajectory()
            self._unfinished += 1
        first, end = trajectory.expected, trajectory.expected + steps
        count = plan.kept(end) - plan.kept(first)
        numbers = np.arange(first, end)
        kept: slice | Int[np.ndarray, " kept"] = slice(None)
        if count < steps:
            last = (plan.samples - 1) * plan.stride + plan.span
            kept = np.flatnonzero(
                (numbers % plan.stride < plan.span) & (numbers < last)
            )
        slots = self.slab.alloc(count)
        self._simulation[slots] = simulation
        self._step[slots] = numbers[kept]
        self._parameters[slots] = parameters
        trajectory.expected = end
        trajectory.busy = True
        # Fewer than 0 where a resumed simulation begins with its next window.
        windows = max(0, plan.windows(end) - trajectory.windows)
        return Block(simulation, trajectory, first, steps, kept, slots, windows)

    def publish(self, block: Block) -> Int[np.ndarray, " sample"]:
        """Make the windows that the copied block completes; return them as samples."""
        trajectory, plan = block.trajectory, self.plan
        trajectory.busy = False
        trajectory.windows += block.windows
        if plan.span == 1:
            # The reference that the trajectory held goes over to the sample.
            samples = block.slots
        else:
            slots = np.concatenate([trajectory.tail, block.slots])
            self._next[slots[:-1]] = slots[1:]
            starts = np.arange(block.windows) * plan.hop
            samples = slots[starts]
            self.slab.retain(slots[starts[:, None] + np.arange(plan.span)].ravel())
            passed = block.windows * plan.hop
            self.slab.release(slots[:passed])
            trajectory.tail = slots[passed:]
        if trajectory.expected == plan.steps:
            self.finished.add(block.simulation)
        if block.windows and trajectory.windows == plan.samples:
            self._finish(trajectory)
        if trajectory.forgotten:
            self.forget(block.simulation)
        return samples

    def undo(self, block: Block) -> None:
        """Take back a block that could not be copied."""
        block.trajectory.busy = False
        block.trajectory.expected = block.first
        self.slab.release(block.slots)
        if block.first == 0 or block.trajectory.forgotten:
            self.forget(block.simulation)

    def forget(self, simulation: int) -> None:
        """Release what only the unfinished windows of a simulation hold."""
        trajectory = self.live.get(simulation)
        if trajectory is None:
            return
        if trajectory.busy:
            trajectory.forgotten = True
            return
        del self.live[simulation]
        if trajectory.windows < self.plan.samples:
            self._finish(trajectory)

    def release(self, samples: Int[np.ndarray, " sample"]) -> None:
        """Give up the steps of samples that leave."""
        self.slab.release(self.slots(samples))

    def slots(self, samples: Int[np.ndarray, " sample"]) -> Int[np.ndarray, " slot"]:
        """Return the slots of the samples' steps, sample by sample."""
        if self.plan.span == 1:
            return samples
        chain = np.empty((len(samples), self.plan.span), dtype=np.intp)
        chain[:, 0] = samples
        for i in range(1, self.plan.span):
            chain[:, i] = self._next[chain[:, i - 1]]
        return chain.ravel()

    def labels(
        self, samples: Int[np.ndarray, " sample"]
    ) -> tuple[
        Int[np.ndarray, " sample"],
        Int[np.ndarray, " sample"],
        Float[np.ndarray, "sample parameter"],
    ]:
        """Return the simulation, first step and parameters of samples, copied."""
        return (
            self._simulation[samples],
            self._step[samples],
            self._parameters[samples],
        )

    def following(self, slots: Int[np.ndarray, " slot"]) -> Int[np.ndarray, " slot"]:
        """Return the slot behind each, in the windows that go on; empty if none do."""
        return self._next[slots] if self.plan.span > 1 else self._next

    def restore(
        self,
        slots: Int[np.ndarray, " row"],
        labels: tuple[
            Int[np.ndarray, " row"],
            Int[np.ndarray, " row"],
            Float[np.ndarray, "row parameter"],
        ],
        following: Int[np.ndarray, " row"],
    ) -> None:
        """Note what is in slots that were filled, as `labels` and `following` said."""
        self._simulation[slots], self._step[slots], self._parameters[slots] = labels
        if self.plan.span > 1:
            self._next[slots] = following

    def resume(
        self,
        simulation: int,
        expected: int,
        windows: int,
        tail: Int[np.ndarray, " slot"],
    ) -> None:
        """Go on with a simulation at its step `expected`."""
        self.live[simulation] = Trajectory(expected, windows, tail)
        if windows < self.plan.samples:
            self._unfinished += 1
            self.slab.retain(tail)

    def _finish(self, trajectory: Trajectory) -> None:
        self.slab.release(trajectory.tail)
        trajectory.tail = trajectory.tail[:0]
        self._unfinished -= 1
