"""What a study has done and holds, in each checkpoint and a file of steps beside it."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, final

import numpy as np
import pytorch_lightning as L
import torch
from jaxtyping import Float, Float32, Int

from surrogate_flow.data.module import run_folder
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.ensemble.ledger import Ledger
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.names import first_difference
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.files import write_atomically
from surrogate_flow.reservoir import PendingBatches, Snapshot, Store
from surrogate_flow.reservoir.snapshot import packed, packed_rows, unpacked
from surrogate_flow.surrogate.checkpoint import SAME_RECIPES

__all__ = [
    "CheckpointError",
    "StudyCheckpoint",
    "checkpoint_folder",
    "is_steps_file",
    "read_steps",
    "steps_files",
    "write_steps",
]

logger = logging.getLogger(__name__)

_STEPS_FILE = re.compile(r"reservoir-[0-9a-f]{8}\.npy")
_RESTART = "Leave out --ckpt_path to begin anew."

Steps = Float[np.ndarray, "row channel *space"]


class CheckpointError(UserError, ValueError):
    """A checkpoint that is damaged, or of another study or version."""


@final
class StudyCheckpoint:
    """Finished and failed simulations, the reservoir, and batches not yet trained.

    A checkpoint always has the reservoir's index. With its steps, a resumed run draws
    the very same batches. Without, the simulations whose samples were not trained run
    again, from the first such step on: nothing is left out.

    Parameters
    ----------
    store : Store
    validation : ValidationSet
    ledger : Ledger
        Which simulations have ended.
    first : mapping
        Of the first simulation for training: its parameters, and digests of its fields.
    fields : bool
        Whether to write the steps too.
    """

    def __init__(
        self,
        store: Store,
        validation: ValidationSet,
        ledger: Ledger,
        first: Mapping[str, Any],
        *,
        fields: bool,
    ) -> None:
        #: Batches drawn and not trained; `load` makes a new one.
        self.pending = PendingBatches()
        self._store, self._validation, self._ledger = store, validation, ledger
        self._first, self._fields = dict(first), fields
        self._saved: tuple[int, dict[str, Any]] | None = None

    def save(self, step: int, trained: int, folder: Path) -> dict[str, Any]:
        """Return the state as plain values, and write the steps into `folder`.

        Checkpoints of one `step` of the optimizer share a state. `trained` is the
        number of batches that this process has trained.
        """
        if self._saved is None or self._saved[0] != step:
            self.pending.acknowledge(trained)
            state = None
            if self._fields:
                path = folder / f"reservoir-{secrets.token_hex(4)}.npy"
                try:
                    with write_steps(path, self._validation.spec.step_shape) as write:
                        state = self._state(write, path.name)
                except TimeoutError:
                    raise
                except OSError as error:
                    logger.error(
                        "The reservoir was not written into %s (%s): the checkpoint "
                        "goes without, and a resumed run repeats simulations. Make "
                        "room there.",
                        folder,
                        error,
                    )
            self._saved = (step, (state or self._state(None)).to_plain())
        return self._saved[1]

    def _state(self, write: Callable[[Steps], None] | None, rows: str = "") -> _State:
        validation, failed = self._validation, IntSet()

        def note() -> None:
            nonlocal failed
            failed = IntSet(self._ledger.to_plain()["failed"])
            for row in range(validation.count):
                # A run that goes on tries these again.
                failed.discard(validation.number(row))

        snapshot = self._store.save(self.pending, write, note)
        complete: list[int] = []
        if write is not None:
            complete = validation.ended
            for row in complete:
                write(validation.fields[row])
            if self._validation.spec.inputs:
                channels = len(self._validation.spec.variables)
                write(packed(validation.inputs[complete], channels))
        return _State(
            held_out=validation.count,
            first=self._first,
            failed=failed,
            store=snapshot,
            rows=rows,
            whole=np.array(complete, dtype=np.int64),
            parameters=validation.parameters[complete],
            steps=self._lengths(complete),
            early=self._ledger.early(),
        )

    def _lengths(self, rows: list[int]) -> Int[np.ndarray, " simulation"] | None:
        validation = self._validation
        steps = np.array([*map(validation.steps, rows)], dtype=np.int64)
        return None if (steps == validation.spec.steps).all() else steps

    def load(self, plain: Mapping[str, Any], folder: Path) -> None:
        """Go on from a state that `save` returned, of a checkpoint in `folder`.

        Raises
        ------
        UserError
            If it is of another study or damaged, or its file of steps is, or its
            reservoir does not fit this one.
        """
        validation, store = self._validation, self._store
        state = _State.from_plain(plain, validation.spec)
        self._require("held_out", validation.count, state.held_out)
        asked, has = dict(self._first), dict(state.first)
        for name in (v.name for v in validation.spec.inputs):
            drawn = f"inputs (a digest of the first simulation's {name})"
            self._require(drawn, asked.pop(name, None), has.pop(name, None))
        self._require("sampler (the first simulation's parameters)", asked, has)
        steps = self._read(state, folder / state.rows) if state.rows else None
        again = 0
        if steps is None:
            store.restore(state.store, None)
            again = len(state.store.restarts(store.layout))
        else:
            spec, whole = validation.spec, len(state.whole)
            shape = (whole, spec.steps, *spec.step_shape)
            last = len(steps) - packed_rows(spec, whole)
            end = last - whole * spec.steps
            self.pending = PendingBatches(store.restore(state.store, steps[:end]))
            fields = steps[end:last].reshape(shape)
            inputs = unpacked(steps[last:], spec, whole)
            validation.restore(
                state.whole, fields, state.parameters, inputs, state.steps
            )
        for number in state.failed:
            store.close(number, complete=False)
        complete, failed = store.finished, IntSet(state.failed.ranges)
        logger.info(
            "Going on: %d simulations are done, %d failed, %d run again for samples "
            "that were not trained; the reservoir has %d samples.",
            len(complete),
            len(failed),
            again,
            store.stats().population,
        )
        for row in validation.ended:
            complete.add(validation.number(row))
        for number in state.failed:
            if number in complete:
                # Its last attempt failed when all steps had arrived.
                failed.discard(number)
        self._ledger.restore(
            {"complete": complete.ranges, "failed": failed.ranges}, state.early
        )

    @staticmethod
    def _require(argument: str, asked: object, has: object) -> None:
        if asked != has:
            raise CheckpointError(
                f"The checkpoint is of another data.{argument}: "
                f"{first_difference(has, asked)}. {SAME_RECIPES}"
            )

    def _read(self, state: _State, path: Path) -> Steps | None:
        if not path.is_file():
            logger.warning(
                "%s is gone: it was deleted, or not copied together with the "
                "checkpoint that names it. Samples that were not trained are simulated "
                "again.",
                path,
            )
            return None
        spec, store = self._validation.spec, state.store
        pending = int(store.again_size.sum()) * self._store.window.span
        count = len(store.simulation) + pending + len(state.whole) * spec.steps
        count += packed_rows(spec, len(store.given) + len(state.whole))
        return read_steps(path, (count, *spec.step_shape))


@dataclass(frozen=True)
class _State:
    """The state of `OnlineData`; a checkpoint has an entry of each name."""

    #: Number of held-out simulations; those for training are numbered from there.
    held_out: int
    #: Of the first simulation for training: its parameters, which identify the
    #: sampler, and digests of its input fields.
    first: Mapping[str, Any]
    #: Simulations that failed permanently.
    failed: IntSet
    #: The reservoir, without its steps.
    store: Snapshot
    #: Name of the file of steps beside the checkpoint; empty if there is none.
    rows: str
    #: Complete held-out simulations, whose steps follow the reservoir's in that file,
    #: and their parameters.
    whole: Int[np.ndarray, " simulation"]
    parameters: Float32[np.ndarray, "simulation parameter"]
    #: Their numbers of steps; None if all have those of the spec.
    steps: Int[np.ndarray, " simulation"] | None = None
    #: Simulations that have ended early, as `Ledger.early` has them.
    early: Mapping[str, list[tuple[int, int]]] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Return numbers, strings and tensors only."""
        plain = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        store = _plain(vars(self.store))
        if not len(self.store.given):
            del store["given"]
        if not self.early:
            del plain["early"]
        if self.steps is None:
            del plain["steps"]
        return {**plain, "failed": self.failed.ranges, "store": store}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], spec: FieldSpec) -> _State:
        """Undo `to_plain`, and check that all parts fit each other and the spec."""
        names = ({f.name for f in fields(cls)}, {f.name for f in fields(Snapshot)})
        # Not in version 0.1, without input fields, and where none has ended early.
        got = (
            {*plain, "steps", "early"},
            {*plain.get("store", ()), "passed", "given", "again_remaining"},
        )
        if got != names:
            differing = sorted((names[0] ^ got[0]) | (names[1] ^ got[1]))
            raise CheckpointError(
                "The checkpoint's data were written by another version of "
                f"surrogate_flow: entries {differing} are missing or unknown.",
                remedy=f"Use the version that wrote it. {_RESTART}",
            )
        parts = {name: _array(value) for name, value in plain.items()}
        parts["failed"] = IntSet(plain["failed"])
        early = plain.get("early", {})
        parts["early"] = {str(kind): IntSet(early[kind]).ranges for kind in early}
        parts["store"] = Snapshot(**{k: _array(v) for k, v in plain["store"].items()})
        state = cls(**parts)
        state.store.check(spec)
        if state.rows != "" and not is_steps_file(state.rows):
            raise CheckpointError(
                "The checkpoint's file of steps",
                "a file beside it, reservoir-<8 digits>.npy",
                repr(state.rows)[:80],
                _RESTART,
            )
        whole = np.asarray(state.whole)
        different = np.unique(whole[(whole >= 0) & (whole < state.held_out)])
        shape = (len(different), len(spec.parameters))
        if len(different) < len(whole) or state.parameters.shape != shape:
            raise CheckpointError(
                "The checkpoint is damaged",
                f"{len(whole)} different held-out simulations below {state.held_out} "
                f"with parameters of {shape}",
                f"{whole.tolist()[:9]} with parameters of {state.parameters.shape}",
                _RESTART,
            )
        if (steps := state.steps) is not None and not (
            steps.shape == whole.shape and ((steps > 0) & (steps <= spec.steps)).all()
        ):
            raise CheckpointError(
                "The checkpoint is damaged",
                f"1 to {spec.steps} steps of {len(whole)} held-out simulations",
                steps.tolist()[:9],
                _RESTART,
            )
        return state


def is_steps_file(name: object) -> bool:
    """Return whether a file of steps may have this name."""
    return isinstance(name, str) and _STEPS_FILE.fullmatch(name) is not None


def steps_files(checkpoint: Mapping[str, Any]) -> set[str]:
    """Return the names of all files of steps that belong to a checkpoint."""
    entries = [entry for entry in checkpoint.values() if isinstance(entry, dict)]
    ranks = [rank for entry in entries for rank in entry.get("ranks", ())]
    names = [rank.get("rows") for rank in ranks if isinstance(rank, dict)]
    return {str(name) for name in names if is_steps_file(name)}


@contextmanager
def write_steps(
    path: Path, step_shape: tuple[int, ...]
) -> Iterator[Callable[[Steps], None]]:
    """Yield a function that appends steps to a ``.npy`` file of any number of them.

    The file appears under its name when it is complete and on the disk, or not at all.
    It is written, not mapped into memory: a full disk is an `OSError` that way.
    """
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path, sync=True) as part, part.open("wb") as file:

        def write_header() -> None:
            # numpy leaves room in the header for a larger number.
            header = {"descr": "<f4", "fortran_order": False}
            np.lib.format.write_array_header_1_0(
                file, {**header, "shape": (count, *step_shape)}
            )

        def append(steps: Steps) -> None:
            nonlocal count
            file.write(np.ascontiguousarray(steps, dtype=np.float32).data)
            count += len(steps)

        write_header()
        yield append
        file.seek(0)
        write_header()


def read_steps(path: Path, shape: tuple[int, ...]) -> Steps:
    """Return the steps of a file, which are read when they are used.

    Raises
    ------
    CheckpointError
        If the file is cut off, or holds anything else than float32 of that shape.
    """
    remedy = "Delete it to go on without: then what it held is simulated again."
    try:
        # Unlike numpy.load it knows neither archives nor pickles.
        steps: Steps = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:
        # A header that makes no sense makes the reader fail in half a dozen ways.
        raise CheckpointError(
            f"{path}: cannot be read as a file of steps ({type(error).__name__}). It "
            "is cut off: the disk was full, or the copy is not complete.",
            remedy=remedy,
        ) from error
    if steps.shape != shape or steps.dtype != np.float32:
        got = f"{steps.dtype} of {steps.shape}, of another checkpoint"
        raise CheckpointError(str(path), f"float32 of {shape}", got, remedy)
    return steps


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def _array(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if not value.is_contiguous():
        # A few bytes of a file may claim to be any number of values.
        raise CheckpointError(
            f"The checkpoint is damaged: an entry of {tuple(value.shape)} values is "
            "not all there.",
            remedy=_RESTART,
        )
    return value.numpy()


def checkpoint_folder(trainer: L.Trainer) -> Path:
    """Return where a trainer's checkpoints are written to."""
    folder = run_folder(trainer) / "checkpoints"
    for callback in trainer.checkpoint_callbacks:
        folder = Path(getattr(callback, "dirpath", None) or folder)
    return folder
