"""Data sets on disk: fields of whole ensembles, written by the workers themselves."""

from __future__ import annotations

from surrogate_flow.dataset.dataset import Archive
from surrogate_flow.dataset.errors import ArchiveError
from surrogate_flow.dataset.provenance import Provenance
from surrogate_flow.dataset.writer import Writer

__all__ = ["Archive", "ArchiveError", "Provenance", "Writer"]
