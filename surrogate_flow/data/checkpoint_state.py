"""What a checkpoint says of the simulations and of the reservoir."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int

from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.reservoir import Snapshot

__all__ = ["SavedData", "is_file_of_steps", "named_files", "new_name"]

_ROWS = re.compile(r"(reservoir-[0-9a-f]{8}\.npy)?")


@dataclass(frozen=True)
class SavedData:
    """The state of `OnlineData`, as it goes into a checkpoint.

    Attributes
    ----------
    held_out : int
        Number of held-out simulations; those for training are numbered from there.
    first : dict of str to float
        Parameters of the first simulation for training, by which a sampler is known.
    failed : IntSet
        Simulations that were set aside for good.
    store : Snapshot
        The reservoir's books.
    rows : str
        Name of the file of steps beside the checkpoint; empty if there is none.
    whole : array of int
        Held-out simulations whose fields are in that file, behind the reservoir's.
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

    def plain(self) -> dict[str, Any]:
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
    def from_plain(cls, plain: Mapping[str, Any]) -> SavedData:
        """Undo `plain`.

        Raises
        ------
        ValueError
            If anything is missing, or there is something else.
        """
        names = ({f.name for f in fields(cls)}, {f.name for f in fields(Snapshot)})
        got = (set(plain), set(plain.get("store", ())))
        if got != names:
            differing = sorted((names[0] ^ got[0]) | (names[1] ^ got[1]))
            raise ValueError(
                "The checkpoint's data were written by another version of "
                f"surrogate_flow: entries {differing} are missing or unknown. Start "
                "from its weights instead, or use the version that wrote it."
            )
        store = {k: _array(v) for k, v in plain["store"].items()}
        if not _ROWS.fullmatch(str(plain["rows"])):
            raise ValueError(
                f"The checkpoint names {str(plain['rows'])[:80]!r} as its file of "
                "steps: expected one beside it, reservoir-<8 digits>.npy. It was "
                "changed by hand: start from its weights instead."
            )
        return cls(
            held_out=plain["held_out"],
            first=plain["first"],
            failed=IntSet(plain["failed"]),
            store=Snapshot(**store),
            rows=plain["rows"],
            whole=_array(plain["whole"]),
            parameters=_array(plain["parameters"]),
        )

    def check(self, spec: FieldSpec) -> None:
        """Check that all numbers and indices fit to each other and to the spec.

        Raises
        ------
        ValueError
            If not.
        """
        self.store.check(spec)
        whole = np.asarray(self.whole)
        shape = (len(whole), len(spec.parameters))
        unique = len(np.unique(whole)) == len(whole)
        inside = not len(whole) or 0 <= whole.min() <= whole.max() < self.held_out
        if not (unique and inside and self.parameters.shape == shape):
            raise ValueError(
                f"The checkpoint contradicts itself: expected {len(whole)} different "
                f"held-out simulations below {self.held_out} and their parameters, got "
                f"{self.parameters.shape} of {whole.tolist()[:9]}. It is damaged."
            )


def new_name() -> str:
    """Return the name of a new file of steps, which lies beside its checkpoint."""
    return f"reservoir-{secrets.token_hex(4)}.npy"


def named_files(checkpoint: Mapping[str, Any]) -> set[str]:
    """Return the names of all files of steps that belong to a checkpoint."""
    ranks = [
        rank
        for entry in checkpoint.values()
        if isinstance(entry, dict)
        for rank in entry.get("ranks", ())
    ]
    names = {str(rank.get("rows", "")) for rank in ranks if isinstance(rank, dict)}
    return {name for name in names if is_file_of_steps(name)}


def is_file_of_steps(name: str) -> bool:
    """Whether a file of steps may be called so."""
    return bool(name and _ROWS.fullmatch(name))


def _plain(value: Any) -> Any:
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def _array(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if not value.is_contiguous():
        # A few bytes of a file may be said to be any number of values.
        raise ValueError(
            f"The checkpoint has an entry of {tuple(value.shape)} values that are not "
            "all there. It is damaged: start from its weights instead."
        )
    return value.numpy()
