"""Checkpoints that are complete, or still the one before."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from surrogate_flow.data.checkpoint import steps_files
from surrogate_flow.files import DirectoryLock, write_atomically

__all__ = ["AtomicCheckpoints"]

logger = logging.getLogger(__name__)


class AtomicCheckpoints(TorchCheckpointIO):
    """Replaces a checkpoint when the new one is on the disk; reads data, never code.

    A full disk does not end a run: the checkpoint before stays, the failure is logged,
    and `error` is that of the last attempt, ``None`` if it was written. Files of steps
    that no checkpoint names any more are removed after it, never before.
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
        """Write beside the old checkpoint, then replace it."""
        target = Path(path)
        steps = {target.absolute().parent / name for name in steps_files(checkpoint)}
        self._steps |= steps
        # A failed attempt has left files, whose room is needed now.
        self._tidy(steps)
        self.error = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock or DirectoryLock(target.parent)
            with write_atomically(target, sync=True) as part, part.open("wb") as file:
                torch.save(checkpoint, file)
            self._written[target.absolute()] = steps
            self._tidy()
        except (OSError, RuntimeError) as error:
            # torch's writer reports a write that failed in its own words.
            torch_words = ("inline_container", "PytorchStreamWriter")
            if isinstance(error, OSError):
                self.error = error
            elif any(word in str(error) for word in torch_words):
                self.error = OSError(str(error))
            else:
                raise
            kept = "the one before is kept" if target.is_file() else "there is none yet"
            logger.error(
                "The checkpoint %s was not written (%s); %s. Make room on the disk.",
                target,
                error,
                kept,
            )

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint, without executing anything in it."""
        return dict(super().load_checkpoint(path, map_location, weights_only=True))

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
