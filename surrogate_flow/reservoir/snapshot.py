"""What a store holds at one moment, without the fields."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Float, Int

from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.reservoir.batches import Draw
from surrogate_flow.reservoir.layout import Layout

__all__ = ["Snapshot"]


@final
@dataclass(frozen=True)
class Snapshot:
    """The index of a store, as a checkpoint has it; a *row* is a step that it holds.

    Attributes
    ----------
    policy : str
        Name of the policy's class.
    simulation, step, parameters : array
        Of each row.
    following : array of shape (row,) or (0,)
        Row of the next step, where samples share steps.
    place : array of shape (row,) or (0,)
        Where each row's fields are in the file; empty if they were not written.
    members : array of shape (sample,)
        Rows in which samples begin, in the places of the population.
    unseen : int
        Number of samples never drawn; they come first in `members`.
    times : array of shape (sample,)
        How often each was drawn.
    live : array of shape (simulation, 3)
        Of simulations whose steps arrive: number, next step, complete samples.
    tails : array of shape (tail, 2)
        Index in `live`, and row of a step that only an incomplete sample needs.
    finished : array of shape (range, 2)
        Simulations of which every step has arrived.
    again_size, again_simulation, again_step, again_parameters : array
        Of batches that were drawn and not trained: sizes, and labels one after the
        other.
    counts : array of shape (5,)
        Samples inserted, drawn, batches, samples evicted and removed.
    left : array of shape (times,)
        Number of samples that left after 0, 1, 2, ... draws.
    random : str
        State of the generator of draws, as JSON; empty if there is none.
    """

    policy: str
    simulation: Int[np.ndarray, " row"]
    step: Int[np.ndarray, " row"]
    parameters: Float[np.ndarray, "row parameter"]
    following: Int[np.ndarray, " row"]
    place: Int[np.ndarray, " row"]
    members: Int[np.ndarray, " sample"]
    unseen: int
    times: Int[np.ndarray, " sample"]
    live: Int[np.ndarray, "simulation 3"]
    tails: Int[np.ndarray, "tail 2"]
    finished: Int[np.ndarray, "range 2"]
    again_size: Int[np.ndarray, " batch"]
    again_simulation: Int[np.ndarray, " sample"]
    again_step: Int[np.ndarray, " sample"]
    again_parameters: Float[np.ndarray, "sample parameter"]
    counts: Int[np.ndarray, " 5"]
    left: Int[np.ndarray, " times"]
    random: str

    def plain(self) -> dict[str, object]:
        """Return the attributes by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def draws(
        self, fields: Float[np.ndarray, "sample span channel *space"]
    ) -> list[Draw]:
        """Return the batches drawn and not trained, of which these are the fields."""
        ends = np.cumsum(self.again_size)
        return [
            Draw(
                fields[start:end],
                self.again_simulation[start:end],
                self.again_step[start:end],
                self.again_parameters[start:end],
            )
            for start, end in zip(ends - self.again_size, ends, strict=True)
        ]

    def check(self, spec: FieldSpec) -> None:
        """Check that all parts have the right type and size, and point at each other.

        Raises
        ------
        UserError
            Naming the first part that does not.
        """
        rows, samples, again = len(self.simulation), len(self.members), self.again_step
        live = len(self.live)
        # Name: its shape, and the bound that its values stay below.
        wanted: dict[str, tuple[tuple[int, ...], int | None]] = {
            "simulation": ((rows,), None),
            "step": ((rows,), spec.steps),
            "following": ((len(self.following) and rows,), rows),
            "place": ((len(self.place) and rows,), rows),
            "members": ((samples,), rows),
            "times": ((samples,), None),
            "live": ((live, 3), None),
            "tails": ((len(self.tails), 2), None),
            "finished": ((len(self.finished), 2), None),
            "again_size": ((len(self.again_size),), len(again) + 1),
            "again_simulation": ((len(again),), None),
            "again_step": ((len(again),), spec.steps),
            "counts": ((5,), None),
            "left": ((len(self.left),), None),
        }
        for name, (shape, bound) in wanted.items():
            value = getattr(self, name)
            if value.shape != shape or value.dtype.kind != "i":
                _refuse(name, f"integers of {shape}", f"{value.dtype} of {value.shape}")
            if value.size and value.min() < 0:
                _refuse(name, "0 or more", value.min())
            if value.size and bound is not None and value.max() >= bound:
                _refuse(name, f"less than {bound}", value.max())
        for name, count in (("parameters", rows), ("again_parameters", len(again))):
            value, shape = getattr(self, name), (count, len(spec.parameters))
            if value.shape != shape or value.dtype.kind != "f":
                _refuse(name, f"floats of {shape}", f"{value.dtype} of {value.shape}")
        if len(self.place) and (np.sort(self.place) != np.arange(rows)).any():
            _refuse("place", "each row once", "some twice")
        if not 0 <= self.unseen <= samples:
            _refuse("unseen", f"at most {samples}", self.unseen)
        if self.again_size.sum() != len(again):
            _refuse("again_size", f"{len(again)} in all", self.again_size.sum())
        if (self.tails >= (live, rows)).any():
            _refuse("tails", f"less than {live} and {rows}", self.tails.max())
        if (self.live[:, 1] > spec.steps).any():
            _refuse("live", f"at most {spec.steps} steps", self.live[:, 1].max())
        try:
            if self.random:
                np.random.default_rng(0).bit_generator.state = json.loads(self.random)
        except Exception as error:
            # Another kind for each thing that can be missing.
            _refuse("random", "the state of a generator", type(error).__name__)

    def restarts(self, layout: Layout) -> dict[int, int]:
        """Return where simulations have to begin again if the fields are lost.

        That is the first step of the first sample that was not trained yet. Of samples
        trained in another order, some are trained again; none is left out.

        Returns
        -------
        dict of int to int
            Number of a simulation -> number of a step. Those that are not named are
            trained completely, or have not begun.
        """
        first = {
            int(number): min(int(samples) * layout.stride, layout.steps)
            for number, _, samples in self.live
            if samples < layout.samples
        }
        rows, again = self.members[: self.unseen], self._first_draws(layout.steps)
        for simulations, steps in (
            (self.simulation[rows], self.step[rows]),
            (self.again_simulation[again], self.again_step[again]),
        ):
            # Of equal simulations the lowest step comes first.
            order = np.lexsort((steps, simulations))
            numbers, places = np.unique(simulations[order], return_index=True)
            for number, step in zip(numbers, steps[order][places], strict=True):
                known = first.get(int(number), layout.steps)
                first[int(number)] = min(known, int(step))
        return first

    def settled(self, layout: Layout) -> IntSet:
        """Return the simulations of which every sample has been trained."""
        numbers = IntSet(self.finished.tolist())
        for number, _, samples in self.live:
            # Steps behind the last sample are of no use.
            if samples >= layout.samples:
                numbers.add(int(number))
        for number in self.restarts(layout):
            numbers.discard(number)
        return numbers

    def _first_draws(self, steps: int) -> Bool[np.ndarray, " sample"]:
        """Which of the samples drawn and not trained were not trained before either."""
        held = self.simulation[self.members] * steps + self.step[self.members]
        drawn = self.again_simulation * steps + self.again_step
        if not len(held):
            return np.ones(len(drawn), dtype=bool)
        order = np.argsort(held)
        place = order[np.minimum(np.searchsorted(held[order], drawn), len(held) - 1)]
        _, which, now = np.unique(drawn, return_inverse=True, return_counts=True)
        before = (held[place] == drawn) & (self.times[place] > now[which])
        first: Bool[np.ndarray, " sample"] = ~before
        return first


def _refuse(name: str, expected: str, got: Any) -> None:
    raise UserError(
        f"The checkpoint's reservoir is damaged: {name}",
        expected,
        got,
        "Start from its weights instead.",
    )
