"""Who may take part in a cluster: keys of one study, for Dask's TLS."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed.deploy.cluster import Cluster
from distributed.security import Security

__all__ = ["in_files", "in_memory", "is_closed"]

_ROLES = ("client", "scheduler", "worker")


def in_memory() -> Security:
    """Return new keys, for scheduler, workers and client alike, that are in no file.

    Whoever connects must have them, and so must whom it connects to: TLS with a
    certificate of their own, which both sides demand.
    """
    keys: Security = Security.temporary()
    return keys


@contextmanager
def in_files(folder: Path) -> Iterator[Security]:
    """Write new keys into a folder of mode 0700 within `folder`; remove it in the end.

    For workers that other programs start, which get the names of the files: all nodes
    must see them under the same name.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=".keys-", dir=folder.resolve()))
    try:
        keys = in_memory().get_tls_config_for_role("worker")
        certificate, key = private / "certificate.pem", private / "key.pem"
        _write(certificate, keys["cert"])
        _write(key, keys["key"])
        yield Security(
            require_encryption=True,
            tls_ca_file=str(certificate),
            **{f"tls_{role}_cert": str(certificate) for role in _ROLES},
            **{f"tls_{role}_key": str(key) for role in _ROLES},
        )
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)


def is_closed(cluster: Cluster) -> bool:
    """Whether only who has the keys can speak with the scheduler."""
    scheme = str(cluster.scheduler_address).partition("://")[0]
    return scheme in ("tls", "wss", "inproc")
