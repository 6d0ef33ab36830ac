"""Where the checkpoints of a run go."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as L

__all__ = ["checkpoint_folder"]


def checkpoint_folder(trainer: L.Trainer) -> Path:
    """Return where the checkpoints of a run go."""
    folder = Path(trainer.log_dir or ".") / "checkpoints"
    for callback in trainer.checkpoint_callbacks:
        folder = Path(getattr(callback, "dirpath", None) or folder)
    return folder
