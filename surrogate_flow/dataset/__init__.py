"""Simulations on disk, in Zarr format 3."""

from surrogate_flow.dataset.dataset import Archive
from surrogate_flow.dataset.writer import ArchiveError, Writer

__all__ = ["Archive", "ArchiveError", "Writer"]
