"""What a store holds at one moment, without the fields."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final, get_type_hints

import numpy as np
from jaxtyping import Float, Int, jaxtyped

from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.reservoir.batches import Draw
from surrogate_flow.reservoir.inputs import Fields, Kept
from surrogate_flow.reservoir.layout import Layout

__all__ = ["Snapshot", "packed", "packed_rows", "unpacked", "write_inputs"]

_CHUNK = 2**26  # bytes of input fields that are written at once


@final
@dataclass(frozen=True)
class Snapshot:
    """The index of a store, as a checkpoint has it; a *row* is a step that it holds."""

    #: Name of the policy's class.
    policy: str
    #: Of each row.
    simulation: Int[np.ndarray, " row"]
    step: Int[np.ndarray, " row"]
    parameters: Float[np.ndarray, "row parameter"]
    #: Row of the next step, where samples share steps; else empty.
    following: Int[np.ndarray, " following"]
    #: Where each row's fields are in the file; empty if they were not written.
    place: Int[np.ndarray, " place"]
    #: Rows in which samples begin, in the places of the population: first those never
    #: drawn, so many; and how often each was drawn.
    members: Int[np.ndarray, " sample"]
    unseen: int
    times: Int[np.ndarray, " sample"]
    #: Number, next step and complete samples of the simulations whose steps arrive.
    live: Int[np.ndarray, "simulation 3"]
    #: Index in `live`, and row of a step that only an incomplete sample needs.
    tails: Int[np.ndarray, "tail 2"]
    #: Simulations of which every step has arrived.
    finished: Int[np.ndarray, "range 2"]
    #: Sizes and labels of the batches drawn and not trained, one after the other.
    again_size: Int[np.ndarray, " batch"]
    again_simulation: Int[np.ndarray, " again"]
    again_step: Int[np.ndarray, " again"]
    again_parameters: Float[np.ndarray, "again parameter"]
    #: Samples inserted, drawn, batches, samples evicted and removed.
    counts: Int[np.ndarray, " 5"]
    #: Number of samples that left after 0, 1, 2, ... draws.
    left: Int[np.ndarray, " times"]
    #: State of the generator of draws, as JSON; empty if there is none.
    random: str
    #: Simulation and first step of samples that have left, and are simulated again with
    #: others of their simulation.
    passed: Int[np.ndarray, "passed 2"] = field(
        default_factory=lambda: np.zeros((0, 2), dtype=np.int64)
    )
    #: Simulations whose input fields are in the file, before the rows.
    given: Int[np.ndarray, " given"] = field(
        default_factory=lambda: np.zeros(0, dtype=np.int64)
    )
    #: What each of the batches drawn and not trained says is still to come; empty where
    #: none says it.
    again_remaining: Float[np.ndarray, " remaining"] = field(
        default_factory=lambda: np.zeros(0)
    )

    def draws(
        self,
        fields: Float[np.ndarray, "sample span channel *space"],
        inputs: Fields,
    ) -> list[Draw]:
        """Return the batches drawn and not trained, of which these are the fields."""
        ends, remaining = np.cumsum(self.again_size), self.again_remaining.tolist()
        remaining = remaining or [math.inf] * len(ends)
        return [
            Draw(
                fields[start:end],
                numbers := self.again_simulation[start:end],
                self.again_step[start:end],
                self.again_parameters[start:end],
                np.stack([inputs[n] for n in numbers.tolist()]) if inputs else None,
                of_one,
            )
            for start, end, of_one in zip(
                ends - self.again_size, ends, remaining, strict=True
            )
        ]

    def check(self, spec: FieldSpec) -> None:
        """Refuse a part of a wrong type or size, or one that points at nothing.

        Raises
        ------
        UserError
        """
        with jaxtyped("context"):
            for name, hint in get_type_hints(type(self)).items():
                # The axes of one name must be equally long.
                if not isinstance(value := getattr(self, name), hint):
                    got = f"{getattr(value, 'dtype', type(value))} of {np.shape(value)}"
                    _refuse(name, hint, got)
        rows, again = len(self.simulation), self.again_step
        # What numbers of steps, rows, and samples stay below.
        bounds = {"step": spec.steps, "again_step": spec.steps}
        bounds |= {"following": rows, "place": rows, "members": rows}
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "i" and value.size:
                if value.min() < 0:
                    _refuse(name, "0 or more", value.min())
                if value.max() >= bounds.get(name, math.inf):
                    _refuse(name, f"less than {bounds[name]}", value.max())
        for name, count, allowed in (
            ("parameters", self.parameters.shape[1], [len(spec.parameters)]),
            ("following", len(self.following), [0, rows]),
            ("place", len(self.place), [0, rows]),
            ("again_size", self.again_size.sum(), [len(again)]),
            ("again_remaining", len(self.again_remaining), [0, len(self.again_size)]),
        ):
            if count not in allowed:
                _refuse(name, " or ".join(map(str, allowed)), count)
        numbers = {*self.simulation.tolist(), *self.again_simulation.tolist()}
        if spec.inputs and len(self.place) == rows and numbers - {*self.given.tolist()}:
            _refuse("given", "the input fields of each simulation", "some missing")
        if len(np.unique(self.place)) < len(self.place):
            _refuse("place", "each row once", "some twice")
        if not 0 <= self.unseen <= len(self.members):
            _refuse("unseen", f"at most {len(self.members)}", self.unseen)
        if (self.tails >= (len(self.live), rows)).any():
            _refuse("tails", f"less than {len(self.live)} and {rows}", self.tails.max())
        if (self.live[:, 1] > spec.steps).any():
            _refuse("live", f"at most {spec.steps} steps", self.live[:, 1].max())
        try:
            if self.random:
                np.random.default_rng(0).bit_generator.state = json.loads(self.random)
        except Exception as error:
            # Another kind for each thing that can be missing.
            _refuse("random", "the state of a generator", type(error).__name__)

    def restarts(self, layout: Layout) -> dict[int, int]:
        """Return at which step each simulation has to begin again without the fields.

        That is the first step of the first sample that was not trained yet. Simulations
        that are not named are trained completely, or have not begun.
        """
        first = {
            number: min(samples * layout.stride, layout.steps)
            for number, _, samples in self.live.tolist()
            if samples < layout.samples
        }
        for number, step in self._untrained():
            first[number] = min(step, first.get(number, layout.steps))
        return first

    def repeated(self, layout: Layout) -> dict[int, set[int]]:
        """Return the first steps of the samples that have left, of each of `restarts`.

        They are trained, and come again with those that are not. So do some that are
        seen and held, but without the fields these are held no longer.
        """
        inserted = {number: samples for number, _, samples in self.live.tolist()}
        finished = IntSet(self.finished.tolist())
        stay = {*self._untrained(), *self._held()}
        repeated: dict[int, set[int]] = {}
        for number in self.restarts(layout):
            count = layout.samples if number in finished else inserted.get(number, 0)
            steps = range(0, count * layout.stride, layout.stride)
            repeated[number] = {step for step in steps if (number, step) not in stay}
        for number, step in self.passed.tolist():
            repeated.setdefault(number, set()).add(step)
        return repeated

    def _held(self) -> list[tuple[int, int]]:
        return _pairs(self.simulation[self.members], self.step[self.members])

    def _untrained(self) -> list[tuple[int, int]]:
        """Return the samples of which no draw was trained."""
        held = self._held()
        times = dict(zip(held, self.times.tolist(), strict=True))
        drawn = Counter(_pairs(self.again_simulation, self.again_step))
        # Each draw of these, if there was one, is among the batches not trained.
        again = [sample for sample, n in drawn.items() if times.get(sample, 0) <= n]
        return held[: self.unseen] + again

    def settled(self, layout: Layout) -> IntSet:
        """Return the simulations of which every sample has been trained."""
        numbers = IntSet(self.finished.tolist())
        for number, _, samples in self.live.tolist():
            # Steps behind the last sample are of no use.
            if samples >= layout.samples:
                numbers.add(number)
        for number in self.restarts(layout):
            numbers.discard(number)
        return numbers


def packed(
    inputs: Float[np.ndarray, "simulation input *space"], channels: int
) -> Float[np.ndarray, "row channel *space"]:
    """Return input fields as so many steps, filled up with zeros.

    Examples
    --------
    >>> packed(np.ones((2, 3, 5)), channels=2).shape
    (4, 2, 5)
    """
    count, given, *space = inputs.shape
    each = -(-given // channels)
    rows = np.zeros((count, each * channels, *space), dtype=np.float32)
    rows[:, :given] = inputs
    return rows.reshape(count * each, channels, *space)


def unpacked(
    rows: Float[np.ndarray, "row channel *space"], spec: FieldSpec, count: int
) -> Float[np.ndarray, "simulation input *space"]:
    """Return the input fields of `count` simulations, of which these are the rows."""
    each = packed_rows(spec, 1) * len(spec.variables)
    inputs = np.array(rows).reshape(count, each, *spec.shape)
    return inputs[:, : len(spec.inputs)]


def write_inputs(
    kept: Kept,
    again: Sequence[Draw],
    spec: FieldSpec,
    write: Callable[[Float[np.ndarray, "row channel *space"]], None],
) -> Int[np.ndarray, " given"]:
    """Write the input fields of what is held and of batches; return whose they are."""
    channels = len(spec.variables)
    for fields in kept.read(_CHUNK):
        write(packed(fields, channels))
    others = {
        number: fields
        for draw in again
        if draw.inputs is not None
        for number, fields in zip(draw.simulation.tolist(), draw.inputs, strict=True)
    }
    for number in kept.numbers.tolist():
        others.pop(number, None)
    for fields in others.values():
        write(packed(fields[None], channels))
    return np.concatenate([kept.numbers, [*others]]).astype(np.int64)


def packed_rows(spec: FieldSpec, count: int) -> int:
    """Return as how many steps the input fields of `count` simulations are kept."""
    return count * -(-len(spec.inputs) // len(spec.variables))


def _pairs(
    simulation: Int[np.ndarray, " sample"], step: Int[np.ndarray, " sample"]
) -> list[tuple[int, int]]:
    return list(zip(simulation.tolist(), step.tolist(), strict=True))


def _refuse(name: str, expected: str, got: Any) -> None:
    raise UserError(
        f"The checkpoint's reservoir is damaged: {name}",
        expected,
        got,
        "Start from its weights instead.",
    )
