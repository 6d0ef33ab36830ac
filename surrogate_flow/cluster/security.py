"""Keys of one study for Dask's TLS, and what stays open without them."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed.deploy.cluster import Cluster
from distributed.security import Security

__all__ = ["dashboard_host", "in_files", "in_memory", "keys_for", "requires_keys"]

_ROLES = ("client", "scheduler", "worker")
_TEXTS = ("tls_ca_file", *(f"tls_{r}_{w}" for r in _ROLES for w in ("cert", "key")))


def in_memory() -> Security:
    """Return new keys in no file: one TLS certificate, which both sides demand."""
    keys: Security = Security.temporary()
    return keys


@contextmanager
def in_files(folder: Path, keys: Security | None = None) -> Iterator[Security]:
    """Write keys into a folder of mode 0700 within `folder`; remove it in the end.

    Workers that other programs start, and other ranks, get the names of the files only,
    so that all must see them under the same name.

    Parameters
    ----------
    folder : Path
        Created if it does not exist.
    keys : Security, optional
        New ones by default; keys that are in files already stay there.

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
            # Dask, too, distinguishes a key from the name of its file by that.
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


@contextmanager
def keys_for(chosen: Security | bool | None, folder: Path) -> Iterator[Security | None]:
    """Yield the `security` of a recipe: new keys in files by default."""
    if chosen is None or chosen is True:
        with in_files(folder) as keys:
            yield keys
    else:
        yield chosen or None


def requires_keys(cluster: Cluster) -> bool:
    """Whether the scheduler accepts only connections with its keys."""
    scheme = str(cluster.scheduler_address).partition("://")[0]
    return scheme in ("tls", "wss", "inproc")


def dashboard_host(cluster: Cluster) -> str:
    """Return where the dashboard of a scheduler in this process listens.

    Returns
    -------
    str
        "" for every interface; ``{host}``, as Dask writes that of the scheduler, for a
        scheduler that is elsewhere or shows nothing.
    """
    spec = getattr(cluster, "scheduler_spec", None) or {"options": {}}
    address = spec["options"].get("dashboard_address") or "{host}:0"
    return str(address).rpartition("://")[2].rpartition(":")[0]
