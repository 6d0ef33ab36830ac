"""Data sets on disk: fields of whole ensembles, written by the workers themselves."""

from __future__ import annotations

from surrogate_flow.archive.archive import Archive
from surrogate_flow.archive.errors import ArchiveError
from surrogate_flow.archive.planned import planned
from surrogate_flow.archive.provenance import Provenance
from surrogate_flow.archive.writer import Writer

__all__ = ["Archive", "ArchiveError", "Provenance", "Writer", "planned"]
