"""What goes wrong with a data set on disk."""

from __future__ import annotations

__all__ = ["ArchiveError"]


class ArchiveError(RuntimeError):
    """A data set cannot be written, cannot be read, or is not the one expected."""
