"""Whose the folder of a comparison is: of one comparison, and of one process."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surrogate_flow.cli.compare.errors import ContestError
from surrogate_flow.files import DirectoryLock

__all__ = ["check", "held", "note", "other_versions"]

logger = logging.getLogger(__name__)

_NOTE = "comparison.json"
_VERSIONS = "versions"
_EARLIER = "(version not noted)"


def check(folder: Path, described: Mapping[str, Any]) -> None:
    """Refuse a folder in which something else was compared.

    Parameters
    ----------
    folder : Path
    described : mapping
        What the runs of this comparison share.

    Raises
    ------
    ContestError
        Naming what differs.
    """
    if (theirs := _read(folder)) is None:
        return
    for name, value in json.loads(json.dumps(described)).items():
        if theirs.get(name) != value:
            raise ContestError(
                f"{folder} holds runs of another comparison: {name} was "
                f"{theirs.get(name)!r}, now it is {value!r}. Name another folder "
                "with --output, or remove this one."
            )


def note(folder: Path, described: Mapping[str, Any]) -> None:
    """Note what is compared, and the version of this package beside those before."""
    versions = [*dict.fromkeys([*_versions(folder), _mine()])]
    text = json.dumps({**described, _VERSIONS: versions}, indent=1)
    (folder / _NOTE).write_text(text)


def other_versions(folder: Path) -> str | None:
    """Return what to say if other versions of this package have run there."""
    others = [version for version in _versions(folder) if version != _mine()]
    if not others:
        return None
    return (
        f"Warning: {folder} holds runs of surrogate-flow {', '.join(others)}; this is "
        f"{_mine()}. What differs between arms may be the version: name another "
        "folder with --output to compare with this one alone."
    )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other comparisons out of a folder; the kernel does so until this one ends.

    Raises
    ------
    ContestError
        If another process compares there now, which is named.
    """
    lock = DirectoryLock(folder)
    if lock.holder:
        raise ContestError(
            f"{folder} is in use by another comparison: {lock.holder}. Nothing was "
            "changed in it. Wait until that has ended, or end it, and type this again; "
            "or name another folder with --output."
        )
    if not lock.acquired:
        logger.warning(
            "%s cannot be locked, which its file system does not allow: start no "
            "second comparison there.",
            folder,
        )
    try:
        yield
    finally:
        lock.release(remove=True)


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / _NOTE
    return dict(json.loads(path.read_text())) if path.is_file() else None


def _versions(folder: Path) -> list[str]:
    noted = _read(folder)
    return [] if noted is None else list(noted.get(_VERSIONS, [_EARLIER]))


def _mine() -> str:
    return importlib.metadata.version("surrogate-flow")
