"""Who may take part in a cluster: keys of one study, for Dask's TLS."""

from __future__ import annotations

import copy
import ipaddress
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from distributed.deploy.cluster import Cluster
from distributed.security import Security

__all__ = ["in_files", "in_memory", "is_closed", "is_open_to_all"]

_ROLES = ("client", "scheduler", "worker")
_TEXTS = ("tls_ca_file", *(f"tls_{r}_{w}" for r in _ROLES for w in ("cert", "key")))


def in_memory() -> Security:
    """Return new keys, for scheduler, workers and client alike, that are in no file.

    Whoever connects must have them, and so must whom it connects to: TLS with a
    certificate of their own, which both sides demand.
    """
    keys: Security = Security.temporary()
    return keys


@contextmanager
def in_files(folder: Path, keys: Security | None = None) -> Iterator[Security]:
    """Write keys into a folder of mode 0700 within `folder`; remove it in the end.

    For processes that get the names of the files only: workers that other programs
    start, and other ranks. All must see them under the same name.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    keys : Security, optional
        Those which are in files already stay there; new ones by default.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=".keys-", dir=folder.resolve()))
    try:
        named = copy.copy(keys or in_memory())
        files: dict[str, str] = {}
        for name in _TEXTS:
            text = getattr(named, name)
            # As Dask tells a key from the name of its file.
            if text is not None and "\n" in text:
                if text not in files:
                    files[text] = str(private / f"{name}.pem")
                    _write(files[text], text)
                setattr(named, name, files[text])
        yield named
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _write(path: str, text: str) -> None:
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)


def is_closed(cluster: Cluster) -> bool:
    """Whether only who has the keys can speak with the scheduler."""
    scheme = str(cluster.scheduler_address).partition("://")[0]
    return scheme in ("tls", "wss", "inproc")


def is_open_to_all(link: str) -> bool:
    """Whether this process listens at the port of a link on every interface."""
    port = urlsplit(link).port if link else None
    return any(
        place.status == psutil.CONN_LISTEN
        and place.laddr.port == port
        and ipaddress.ip_address(place.laddr.ip).is_unspecified
        for place in psutil.Process().net_connections("inet")
    )
