"""Checkpoints that are whole, or still the one before."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from surrogate_flow.data.checkpoint import steps_files
from surrogate_flow.files import DirectoryLock

__all__ = ["AtomicCheckpoints"]

logger = logging.getLogger(__name__)


class AtomicCheckpoints(TorchCheckpointIO):
    """Replaces a checkpoint when the new one is on the disk; reads data, never code.

    A disk that is full does not end a run: the checkpoint before stays as it is, the
    log says so, and `error` is what the last attempt met, ``None`` if it was written.
    Files of steps that belong to no checkpoint any more go with it, never before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.error: OSError | None = None
        # The files of steps that each checkpoint names, and all that were ever named.
        self._written: dict[Path, set[Path]] = {}
        self._steps: set[Path] = set()
        self._lock: DirectoryLock | None = None

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,
    ) -> None:
        """Write beside the old checkpoint, then take its place."""
        target = Path(path)
        part = target.with_name(f"{target.name}.part")
        steps = {target.absolute().parent / name for name in steps_files(checkpoint)}
        self._steps |= steps
        # What an attempt without room has left would take the room of this one.
        self._tidy(steps)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = DirectoryLock(target.parent)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
            self._written[target.absolute()] = steps
            self.error = None
            self._tidy()
        except (OSError, RuntimeError) as error:
            self.error = _of_disk(error)
            if self.error is None:
                raise
            kept = "the one before is kept" if target.is_file() else "there is none yet"
            logger.error(
                "The checkpoint %s was not written (%s); %s. Make room on the disk.",
                target,
                error,
                kept,
            )
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint, without executing anything in it."""
        loaded: dict[str, Any] = super().load_checkpoint(path, map_location, True)
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a file that was written here; Lightning's would delete any folder.

        The path may come from a checkpoint, which is not to be believed.
        """
        target = Path(path)
        if target.absolute() in self._written and not target.is_symlink():
            target.unlink(missing_ok=True)
            del self._written[target.absolute()]
            self._tidy()

    def _tidy(self, coming: Collection[Path] = ()) -> None:
        named = set().union(coming, *self._written.values())
        for path in self._steps - named:
            path.unlink(missing_ok=True)
        self._steps &= named


def _of_disk(error: OSError | RuntimeError) -> OSError | None:
    """Return what the disk said, or None if the error is not of its making."""
    if isinstance(error, OSError):
        return error
    # torch's writer reports a write that failed, or was cut short, in its own words.
    ours = ("inline_container", "PytorchStreamWriter")
    return OSError(str(error)) if any(word in str(error) for word in ours) else None
