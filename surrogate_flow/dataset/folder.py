"""The folder of a data set: it appears as a whole, and one process adds to it."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zarr

from surrogate_flow.dataset import layout
from surrogate_flow.dataset.errors import ArchiveError
from surrogate_flow.dataset.provenance import Provenance
from surrogate_flow.files import DirectoryLock

__all__ = ["create", "held", "opened"]

logger = logging.getLogger(__name__)


def opened(path: Path) -> Any:
    """Return the Zarr group of a data set.

    Raises
    ------
    ArchiveError
        If there is none, or it cannot be read.
    """
    if not (path / "zarr.json").is_file():
        what = "there is nothing" if not path.exists() else "it has no zarr.json"
        raise ArchiveError(
            f"{path} is no data set of surrogate_flow: {what}. Give the path that "
            "'surrogate-flow generate --output' wrote, or another one to write to."
        )
    try:
        return zarr.open_group(path, mode="r+", use_consolidated=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArchiveError(
            f"{path} cannot be read as a Zarr group ({type(error).__name__}: {error}). "
            "Its zarr.json is cut off, not readable for you, or of something else: "
            "copy the data set again, or generate it anew in another place."
        ) from error


def create(path: Path, provenance: Provenance, parameters: Sequence[Any]) -> None:
    """Write a data set without simulations beside its place, then put it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        part = beside / path.name
        spec = provenance.spec
        layout.write_layout(
            part, spec, provenance.attributes(), layout.chunk_steps(spec)
        )
        group = zarr.open_group(part, mode="r+")
        layout.add_rows(group, spec, parameters, provenance.held_out)
        layout.consolidate(part)
        os.rename(part, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def held(path: Path) -> DirectoryLock:
    """Keep other processes from adding to a data set, and tidy it.

    The workers of this one, wherever they are, write without asking. The kernel takes
    the lock back from a process that is killed.

    Raises
    ------
    ArchiveError
        If another process adds to it now, which is named.
    """
    lock = DirectoryLock(path)
    if lock.holder:
        raise ArchiveError(
            f"{path} is written by another run: {lock.holder}. Nothing was changed in "
            "it. Wait until that has ended, or end it, and type this again; or give "
            "another path."
        )
    if lock.acquired:
        for part in path.glob("*/*.partial"):
            # Half a chunk that a killed process has left.
            part.unlink(missing_ok=True)
    else:
        logger.warning(
            "%s cannot be locked, which its file system does not allow: start no "
            "second run that writes there.",
            path,
        )
    return lock
