"""Saves what a study has done and holds with each checkpoint, and restores it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from surrogate_flow.data.checkpoint_state import (
    CheckpointError,
    Steps,
    StudyState,
    new_steps_file,
    read_steps,
    write_steps,
)
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.ensemble.ledger import Ledger
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.reservoir import PendingBatches, Store

__all__ = ["StudyCheckpoint"]

logger = logging.getLogger(__name__)


@final
class StudyCheckpoint:
    """Finished and failed simulations, the reservoir, and batches not yet trained.

    A checkpoint always has the reservoir's index. With its steps, a resumed run draws
    the very same batches. Without, the simulations whose samples were not trained run
    again, from the first such step on: nothing is left out.

    Parameters
    ----------
    store : Store
    held_out : ValidationSet
    ledger : Ledger
        Which simulations have ended.
    first : mapping of str to float
        Parameters of the first simulation for training.
    fields : bool
        Whether to write the steps too.

    Attributes
    ----------
    pending : PendingBatches
        Those drawn and not trained; `load` makes a new one.
    """

    def __init__(
        self,
        store: Store,
        held_out: ValidationSet,
        ledger: Ledger,
        first: Mapping[str, float],
        *,
        fields: bool,
    ) -> None:
        self.pending = PendingBatches()
        self._store = store
        self._held_out, self._ledger = held_out, ledger
        self._first = dict(first)
        self._fields = fields
        self._saved: tuple[int, dict[str, Any]] | None = None

    def save(self, step: int, trained: int, folder: Path) -> dict[str, Any]:
        """Return the state as plain values, and write the steps into `folder`.

        Parameters
        ----------
        step : int
            Of the optimizer: the checkpoints of one step share one state.
        trained : int
            Batches trained in this process.
        folder : Path
            Of the checkpoints.
        """
        if self._saved is None or self._saved[0] != step:
            self.pending.acknowledge(trained)
            state = self._with_steps(folder) if self._fields else None
            self._saved = (step, (state or self._state(None)).to_plain())
        return self._saved[1]

    def _with_steps(self, folder: Path) -> StudyState | None:
        path = folder / new_steps_file()
        try:
            with write_steps(path, self._held_out.spec.step_shape) as write:
                return self._state(write, path.name)
        except TimeoutError:
            raise
        except OSError as error:
            logger.error(
                "The reservoir was not written into %s (%s): the checkpoint goes "
                "without, and a resumed run repeats simulations. Make room there.",
                folder,
                error,
            )
            return None

    def _state(
        self, write: Callable[[Steps], None] | None, rows: str = ""
    ) -> StudyState:
        failed = IntSet()

        def note() -> None:
            nonlocal failed
            failed = IntSet(self._ledger.to_plain()["failed"])
            for row in range(self._held_out.count):
                # A run that goes on tries these again.
                failed.discard(self._held_out.number(row))

        held_out = self._held_out
        snapshot = self._store.save(self.pending, write, note)
        complete = [] if write is None else held_out.finished
        for row in complete:
            assert write is not None
            write(held_out.fields[row])
        return StudyState(
            held_out=held_out.count,
            first=self._first,
            failed=failed,
            store=snapshot,
            rows=rows,
            whole=np.array(complete, dtype=np.int64),
            parameters=held_out.parameters[complete],
        )

    def load(self, plain: Mapping[str, Any], folder: Path) -> None:
        """Go on from a state that `save` returned.

        Parameters
        ----------
        plain : mapping
        folder : Path
            Of the checkpoint.

        Raises
        ------
        CheckpointError
            If it is of another study or damaged, or its file of steps is.
        ValueError
            If its reservoir does not fit this one.
        """
        held_out, store = self._held_out, self._store
        state = StudyState.from_plain(plain, held_out.spec)
        for what, expected, got in (
            ("data.held_out", held_out.count, state.held_out),
            (
                "data.sampler (the first simulation's parameters)",
                self._first,
                dict(state.first),
            ),
        ):
            if expected != got:
                raise CheckpointError(
                    f"The checkpoint is of another {what}",
                    expected,
                    got,
                    "Use the recipes that it was trained with (config.yaml in its "
                    "run's folder).",
                )
        steps = self._read(state, folder / state.rows) if state.rows else None
        if steps is None:
            store.restore(state.store, None)
        else:
            shape = (-1, held_out.spec.steps, *held_out.spec.step_shape)
            end = len(steps) - len(state.whole) * held_out.spec.steps
            self.pending = PendingBatches(store.restore(state.store, steps[:end]))
            held_out.restore(state.whole, steps[end:].reshape(shape), state.parameters)
        for number in state.store.live[:, 0].tolist():
            if number in state.failed:
                store.close(number, complete=False)
        again = {} if steps is not None else state.store.restarts(store.layout)
        logger.info(
            "Going on: %d simulations are done, %d failed, %d run again for samples "
            "that were not trained; the reservoir has %d samples.",
            len(store.finished),
            len(state.failed),
            len(again),
            store.stats().population,
        )
        complete, failed = IntSet(store.finished.ranges), IntSet(state.failed.ranges)
        for row in held_out.finished:
            complete.add(held_out.number(row))
        for number in state.failed:
            if number in complete:
                # Its last attempt failed when all steps had arrived.
                failed.discard(number)
        self._ledger.restore({"complete": complete.ranges, "failed": failed.ranges})

    def _read(self, state: StudyState, path: Path) -> Steps | None:
        if not path.is_file():
            logger.warning(
                "%s is gone: it was deleted, or not copied together with the "
                "checkpoint that names it. Samples that were not trained are simulated "
                "again.",
                path,
            )
            return None
        spec, store = self._held_out.spec, state.store
        pending = int(store.again_size.sum()) * self._store.window.span
        count = len(store.simulation) + pending + len(state.whole) * spec.steps
        return read_steps(path, (count, *spec.step_shape))
