"""To which simulation, step and sample the steps in the slots belong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import numpy as np
from jaxtyping import Float, Int

from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.reservoir.inputs import InputFields
from surrogate_flow.reservoir.layout import Layout
from surrogate_flow.reservoir.memory import Slots, Steps
from surrogate_flow.reservoir.population import Samples
from surrogate_flow.reservoir.slab import Slab

__all__ = ["Block", "Index", "Trajectory", "check_steps"]

Parameters = Float[np.ndarray, " parameter"]
#: Simulation, first step and parameters of each sample.
Labels = tuple[
    Int[np.ndarray, " sample"],
    Int[np.ndarray, " sample"],
    Float[np.ndarray, "sample parameter"],
]


@dataclass(slots=True)
class Trajectory:
    """A simulation whose steps are arriving."""

    #: Number of the next step.
    next_step: int = 0
    #: Number of complete samples.
    samples: int = 0
    #: Slots of the kept steps that the next samples will cover, at most ``span - 1``.
    tail: Slots = field(default_factory=lambda: np.zeros(0, dtype=np.intp))
    #: A block is being copied in; the next one has to wait for it.
    busy: bool = False
    #: No more steps will arrive; whether all have, where it is closed.
    closed: bool = False
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """Steps that have got their slots, and are copied in without the lock."""

    simulation: int
    trajectory: Trajectory
    first: int
    steps: int
    #: Which of the steps are kept: a slice if all are, else their offsets.
    kept: slice | Slots
    slots: Slots
    #: Number of samples that the block completes.
    samples: int
    #: Row of the simulation's input fields, if these are to be copied in, too.
    row: Slots


def check_steps(
    spec: FieldSpec,
    simulation: int,
    steps: Steps,
    parameters: Parameters,
    inputs: Steps | None = None,
) -> None:
    """Raise ValueError if fields or parameters have not the shapes of the spec."""
    shape = spec.step_shape
    if steps.shape[1:] != shape or steps.ndim != len(shape) + 1:
        raise ValueError(
            f"Simulation {simulation}: expected steps of shape (time, "
            f"{', '.join(map(str, shape))}), got {steps.shape}."
        )
    if parameters.shape != (len(spec.parameters),):
        raise ValueError(
            f"Simulation {simulation}: expected {len(spec.parameters)} parameters, "
            f"got the shape {parameters.shape}."
        )
    given = None if inputs is None else inputs.shape
    if given != (spec.input_shape if spec.inputs else None):
        raise ValueError(
            f"Simulation {simulation}: expected {len(spec.inputs)} input fields of "
            f"{spec.shape}, got the shape {given}."
        )


@final
class Index:
    """Labels of the steps held, and the samples that they make.

    A sample is named by the slot of its first step. Where samples share steps it is a
    chain of slots; a table of all slots would cost `span` numbers a sample.

    `parameters` is the length of a parameter vector; `inputs` holds the input fields,
    if simulations have any.
    """

    def __init__(
        self,
        layout: Layout,
        slab: Slab,
        parameters: int,
        inputs: InputFields | None = None,
    ) -> None:
        self.layout = layout
        self.slab = slab
        self.inputs = inputs
        #: By number, the simulations whose steps are arriving.
        self.live: dict[int, Trajectory] = {}
        #: Simulations of which every step has arrived, maybe fewer than others have.
        self.finished = IntSet()
        self._simulation = np.zeros(slab.capacity, dtype=np.int64)
        self._step = np.zeros(slab.capacity, dtype=np.int64)
        self._parameters = np.zeros((slab.capacity, parameters), dtype=np.float32)
        self._next = np.zeros(slab.capacity if layout.span > 1 else 0, dtype=np.int32)
        #: Number of simulations that may hold steps of incomplete samples.
        self.unfinished = 0

    def next_step(self, simulation: int) -> int:
        """Return the number of the next step of a simulation."""
        if simulation in self.finished:
            return self.layout.steps
        trajectory = self.live.get(simulation)
        return 0 if trajectory is None else trajectory.next_step

    @property
    def crowded(self) -> bool:
        """Whether one more unfinished simulation could fill the slab for ever.

        Each holds up to ``span - 1`` steps of its next sample. One slot has to be left
        over, or none is ever completed: ``unfinished * (span - 1) < capacity``.
        """
        return (self.unfinished + 1) * (self.layout.span - 1) >= self.slab.capacity

    def check_next(self, simulation: int, first: int, steps: int) -> None:
        """Raise ValueError if steps are not the next ones, or beyond the last."""
        trajectory = self.live.get(simulation)
        expected = 0 if trajectory is None else trajectory.next_step
        if first != expected:
            raise ValueError(
                f"Simulation {simulation}: expected step {expected} next, got step "
                f"{first}. Ask `open` where to go on; none follow a `close`."
            )
        if first + steps > self.layout.steps:
            raise ValueError(
                f"Simulation {simulation}: expected {self.layout.steps} steps in all, "
                f"got steps {first} to {first + steps - 1}. Correct `spec.times`."
            )

    def reserve(self, simulation: int, steps: int, parameters: Parameters) -> Block:
        """Give slots to the next steps; there are enough of them free."""
        layout, trajectory = self.layout, self.live.get(simulation)
        if trajectory is None:
            trajectory = self.live[simulation] = Trajectory()
            self.unfinished += 1
        first, end = trajectory.next_step, trajectory.next_step + steps
        count = layout.kept(end) - layout.kept(first)
        numbers = np.arange(first, end)
        kept: slice | Slots = slice(None)
        if count < steps:
            inside = numbers % layout.stride < layout.span
            kept = np.flatnonzero(inside & (numbers < layout.end))
        slots = self.slab.alloc(count)
        self._simulation[slots] = simulation
        self._step[slots] = numbers[kept]
        self._parameters[slots] = parameters
        row = slots[:0]
        if self.inputs is not None:
            row = self.inputs.hold(simulation, slots)
        trajectory.next_step = end
        trajectory.busy = True
        # Fewer than 0 where a resumed simulation begins with its next sample.
        samples = max(0, layout.completed(end) - trajectory.samples)
        return Block(simulation, trajectory, first, steps, kept, slots, samples, row)

    def publish(self, block: Block) -> Samples:
        """Return the samples that a block completes, now that it is copied."""
        trajectory, layout = block.trajectory, self.layout
        trajectory.busy = False
        trajectory.samples += block.samples
        if layout.span == 1:
            # The reference that the trajectory held goes over to the sample.
            samples = block.slots
        else:
            slots = np.concatenate([trajectory.tail, block.slots])
            self._next[slots[:-1]] = slots[1:]
            starts = np.arange(block.samples) * layout.hop
            samples = slots[starts]
            self.slab.retain(slots[starts[:, None] + np.arange(layout.span)].ravel())
            passed = block.samples * layout.hop
            self.slab.release(slots[:passed])
            trajectory.tail = slots[passed:]
        if trajectory.next_step == layout.steps:
            self.finished.add(block.simulation)
        if block.samples and trajectory.samples == layout.samples:
            self._release_tail(trajectory)
        if trajectory.closed:
            self.close(block.simulation, trajectory.complete)
        return samples

    def cancel(self, block: Block) -> None:
        """Take back a block that could not be copied."""
        block.trajectory.busy = False
        block.trajectory.next_step = block.first
        self.slab.release(block.slots)
        if block.first == 0 or block.trajectory.closed:
            self.close(block.simulation)

    def close(self, simulation: int, complete: bool = False) -> None:
        """Release what only the incomplete samples of a simulation hold.

        One that is `complete` has ended, after as many steps as have arrived.
        """
        trajectory = self.live.get(simulation)
        if trajectory is None:
            return
        if trajectory.busy:
            trajectory.closed, trajectory.complete = True, complete
            return
        if complete:
            self.finished.add(simulation)
        del self.live[simulation]
        if trajectory.samples < self.layout.samples:
            self._release_tail(trajectory)

    def slots(self, samples: Samples) -> Slots:
        """Return the slots of the samples' steps, sample by sample."""
        if self.layout.span == 1:
            return samples
        chain = np.empty((len(samples), self.layout.span), dtype=np.intp)
        chain[:, 0] = samples
        for i in range(1, self.layout.span):
            chain[:, i] = self._next[chain[:, i - 1]]
        return chain.ravel()

    def labels(self, samples: Samples) -> Labels:
        """Return the simulation, first step and parameters of samples, copied."""
        return self._simulation[samples], self._step[samples], self._parameters[samples]

    def following(self, slots: Slots) -> Slots:
        """Return the slot of the step behind each; empty if no samples share steps."""
        return self._next[slots] if self.layout.span > 1 else self._next

    def restore(self, slots: Slots, labels: Labels, following: Slots) -> None:
        """Note what is in slots that were filled, as `labels` and `following` said."""
        self._simulation[slots], self._step[slots], self._parameters[slots] = labels
        if self.layout.span > 1:
            self._next[slots] = following

    def resume(
        self, simulation: int, next_step: int, samples: int, tail: Slots
    ) -> None:
        """Go on with a simulation at its step `next_step`."""
        self.live[simulation] = Trajectory(next_step, samples, tail)
        if samples < self.layout.samples:
            self.unfinished += 1
            self.slab.retain(tail)

    def _release_tail(self, trajectory: Trajectory) -> None:
        self.slab.release(trajectory.tail)
        trajectory.tail = trajectory.tail[:0]
        self.unfinished -= 1
