"""The folder of a data set, which appears as a whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zarr

from surrogate_flow.archive import layout
from surrogate_flow.archive.errors import ArchiveError
from surrogate_flow.archive.provenance import Provenance

__all__ = ["create", "opened"]


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
            "It is cut off, not readable for you, or something else."
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
