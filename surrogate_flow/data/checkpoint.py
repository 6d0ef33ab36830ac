"""Keeps what a study has done and holds in checkpoints, so that a run can go on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from surrogate_flow.data.checkpoint_state import SavedData, new_name
from surrogate_flow.data.steps_file import RowsFile, read_rows
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.reservoir import PendingBatches, Snapshot, Store

__all__ = ["Persistence"]

logger = logging.getLogger(__name__)


class Persistence:
    """A study's memory: finished and failed simulations, the reservoir, and batches.

    A checkpoint always has the reservoir's books. With its fields a resumed run goes on
    with the very same batches. Without them, the simulations whose samples were not
    trained yet run again, from the first such step on: nothing is left out.

    Parameters
    ----------
    store : Store
    held_out : ValidationSet
    first : mapping of str to float
        Parameters of the first simulation for training.
    fields : bool
        Whether to write the fields too.
    """

    def __init__(
        self,
        store: Store,
        held_out: ValidationSet,
        first: Mapping[str, float],
        *,
        fields: bool,
    ) -> None:
        self.flight = PendingBatches()
        self._store = store
        self._held_out = held_out
        self._first = dict(first)
        self._fields = fields
        self._failed = IntSet()
        # Those at the moment of the last books.
        self._noted = IntSet()
        self._lock = threading.Lock()
        self._saved: tuple[int, dict[str, Any]] | None = None
        #: Simulations that had ended, and those that had failed, before this process.
        self.before = (0, 0)

    def set_aside(self, simulation: int) -> None:
        """Note that a simulation failed for good."""
        with self._lock:
            self._failed.add(simulation)

    @property
    def failed(self) -> IntSet:
        """Training simulations that have failed for good, as they are now."""
        with self._lock:
            return IntSet(self._failed.ranges)

    def ended(self) -> Callable[[int], bool]:
        """Return what says of a training simulation whether it had ended by now."""
        done, failed = self._store.finished, self.failed
        return lambda number: number in done or number in failed

    def save(self, step: int, trained: int, folder: Path) -> dict[str, Any]:
        """Return the state as plain values, and write the fields into `folder`.

        Parameters
        ----------
        step : int
            Of the optimizer: the checkpoints of one step share one state.
        trained : int
            Batches trained in this process.
        folder : Path
            Of the checkpoints.
        """
        if self._saved is not None and self._saved[0] == step:
            return self._saved[1]
        self.flight.settle(trained)
        saved = None
        if self._fields:
            try:
                saved = self._with_fields(folder)
            except TimeoutError:
                raise
            except OSError as error:
                logger.error(
                    "The reservoir was not written into %s (%s): the checkpoint goes "
                    "without, and a resumed run repeats simulations. Make room there.",
                    folder,
                    error,
                )
        if saved is None:
            snapshot = self._store.save(self.flight, None, self._note)
            saved = self._state(snapshot, "", [])
        self._saved = (step, saved.plain())
        return self._saved[1]

    def _note(self) -> None:
        with self._lock:
            self._noted = IntSet(self._failed.ranges)

    def _with_fields(self, folder: Path) -> SavedData:
        held_out = self._held_out
        path = folder / new_name()
        with RowsFile(path, held_out.spec.step_shape) as file:
            snapshot = self._store.save(self.flight, file.write, self._note)
            whole = held_out.finished
            for row in whole:
                file.write(held_out.fields[row])
        return self._state(snapshot, path.name, whole)

    def _state(self, snapshot: Snapshot, rows: str, whole: list[int]) -> SavedData:
        return SavedData(
            held_out=self._held_out.count,
            first=self._first,
            failed=self._noted,
            store=snapshot,
            rows=rows,
            whole=np.array(whole, dtype=np.int64),
            parameters=self._held_out.parameters[whole],
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
        ValueError
            If it is of another study or contradicts itself, or its file is cut off.
        """
        saved = SavedData.from_plain(plain)
        for what, theirs, mine in (
            ("data.held_out", saved.held_out, self._held_out.count),
            (
                "data.sampler (the first simulation's parameters)",
                dict(saved.first),
                self._first,
            ),
        ):
            if theirs != mine:
                raise ValueError(
                    f"The checkpoint is of another {what}: expected {mine}, got "
                    f"{theirs}. Use the recipes that it was trained with (config.yaml "
                    "in its run's folder)."
                )
        saved.check(self._held_out.spec)
        rows = self._rows(saved, folder / saved.rows)
        if rows is None:
            self._store.restore(saved.store, None)
        else:
            behind = len(rows) - len(saved.whole) * self._held_out.spec.steps
            self.flight = PendingBatches(
                self._store.restore(saved.store, rows[:behind])
            )
            if len(saved.whole):
                shape = (len(saved.whole), -1, *self._held_out.spec.step_shape)
                fields = rows[behind:].reshape(shape)
                self._held_out.restore(saved.whole, fields, saved.parameters)
        self._failed = saved.failed
        for number in saved.store.live[:, 0].tolist():
            if number in self._failed:
                self._store.close(number, complete=True)
        done = len(self._store.finished)
        self.before = (done, len(self._failed))
        again = len(saved.store.restarts(self._store.plan)) if rows is None else 0
        logger.info(
            "Going on: %d simulations are done, %d failed, %d run again for samples "
            "that were not trained; the reservoir has %d samples.",
            done,
            len(self._failed),
            again,
            self._store.counters().population,
        )

    def _rows(
        self, saved: SavedData, path: Path
    ) -> Float[np.ndarray, "row channel *space"] | None:
        if not saved.rows:
            return None
        if not path.is_file():
            logger.warning(
                "%s is gone: it was deleted, or not copied together with the "
                "checkpoint that names it. Samples that were not trained are simulated "
                "again.",
                path,
            )
            return None
        steps = self._held_out.spec.steps
        again = int(saved.store.again_size.sum()) * self._store.window.span
        held = len(saved.whole) * steps
        count = len(saved.store.simulation) + again + held
        return read_rows(path, (count, *self._held_out.spec.step_shape))
