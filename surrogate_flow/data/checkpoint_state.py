"""What a checkpoint says of a study: plain values, and a file of steps beside it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int

from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.files import write_atomically
from surrogate_flow.reservoir import Snapshot

__all__ = [
    "CheckpointError",
    "StudyState",
    "is_steps_file",
    "new_steps_file",
    "read_steps",
    "steps_files",
    "write_steps",
]

_STEPS_FILE = re.compile(r"reservoir-[0-9a-f]{8}\.npy")
_RESTART = "Leave out --ckpt_path to begin anew."

Steps = Float[np.ndarray, "row channel *space"]


class CheckpointError(UserError, ValueError):
    """A checkpoint that is damaged, or of another study or version."""


@dataclass(frozen=True)
class StudyState:
    """The state of `OnlineData`, as it goes into a checkpoint.

    Attributes
    ----------
    held_out : int
        Number of held-out simulations; those for training are numbered from there.
    first : dict of str to float
        Parameters of the first simulation for training, which identify the sampler.
    failed : IntSet
        Simulations that failed permanently.
    store : Snapshot
        Of the reservoir, without its steps.
    rows : str
        Name of the file of steps beside the checkpoint; empty if there is none.
    whole : array of int
        Complete held-out simulations, whose steps follow the reservoir's in that file.
    parameters : array of shape (simulation, parameter)
        Of these.
    """

    held_out: int
    first: Mapping[str, float]
    failed: IntSet
    store: Snapshot
    rows: str
    whole: Int[np.ndarray, " simulation"]
    parameters: Float32[np.ndarray, "simulation parameter"]

    def to_plain(self) -> dict[str, Any]:
        """Return numbers, words and tensors only."""
        return {
            "held_out": self.held_out,
            "first": dict(self.first),
            "failed": self.failed.ranges,
            "store": {k: _plain(v) for k, v in self.store.plain().items()},
            "rows": self.rows,
            "whole": _plain(self.whole),
            "parameters": _plain(self.parameters),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], spec: FieldSpec) -> StudyState:
        """Undo `to_plain`, and check that all parts fit each other and the spec.

        Raises
        ------
        CheckpointError
            If they do not, or there are others.
        ValueError
            If the snapshot's parts do not fit each other.
        """
        names = ({f.name for f in fields(cls)}, {f.name for f in fields(Snapshot)})
        got = (set(plain), set(plain.get("store", ())))
        if got != names:
            differing = sorted((names[0] ^ got[0]) | (names[1] ^ got[1]))
            raise CheckpointError(
                "The checkpoint's data were written by another version of "
                f"surrogate_flow: entries {differing} are missing or unknown.",
                remedy=f"Use the version that wrote it. {_RESTART}",
            )
        store = Snapshot(**{k: _array(v) for k, v in plain["store"].items()})
        store.check(spec)
        state = cls(
            held_out=plain["held_out"],
            first=plain["first"],
            failed=IntSet(plain["failed"]),
            store=store,
            rows=plain["rows"],
            whole=_array(plain["whole"]),
            parameters=_array(plain["parameters"]),
        )
        if state.rows != "" and not is_steps_file(state.rows):
            raise CheckpointError(
                "The checkpoint's file of steps",
                "a file beside it, reservoir-<8 digits>.npy",
                repr(state.rows)[:80],
                _RESTART,
            )
        whole = np.asarray(state.whole)
        distinct = len(np.unique(whole)) == len(whole)
        inside = not len(whole) or 0 <= whole.min() <= whole.max() < state.held_out
        shape = (len(whole), len(spec.parameters))
        if not (distinct and inside and state.parameters.shape == shape):
            raise CheckpointError(
                "The checkpoint is damaged",
                f"{len(whole)} different held-out simulations below {state.held_out} "
                f"with parameters of {shape}",
                f"{whole.tolist()[:9]} with parameters of {state.parameters.shape}",
                _RESTART,
            )
        return state


def new_steps_file() -> str:
    """Return the name of a new file of steps, which lies beside its checkpoint."""
    return f"reservoir-{secrets.token_hex(4)}.npy"


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
