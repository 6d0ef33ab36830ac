"""Files that are complete or absent, and folders that one process writes into."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = [
    "LOCK",
    "NETCDF",
    "DirectoryLock",
    "last_line",
    "last_lines",
    "leads_out",
    "leave",
    "log_unwritten",
    "no_checkpoint",
    "not_netcdf",
    "observing",
    "own_folder",
    "remedy",
    "write_atomically",
    "write_text",
]

logger = logging.getLogger(__name__)

LOCK = ".lock"
# Only temporary folders have it: data sets may lie beside them, and be called alike.
_OWNER, _OWN = ".flow-owner", re.compile(r"flow-([a-z]+-)?[a-z0-9_]{8}")
#: How the names of netCDF files end.
NETCDF = (".nc", ".nc4", ".cdf", ".h5", ".hdf5")
_BYTES = 1 << 16  # at the end of a log, in which its last lines are searched


def no_checkpoint(path: str | Path) -> str:
    """Return that there is none, and which may be meant, of a folder or by its name."""
    given, runs = Path(path), Path("runs")
    found = [*given.glob("*.ckpt"), *given.glob("checkpoints/*.ckpt")]
    if path in ("best", "last"):
        by_time = sorted(
            runs.glob(f"*/*/checkpoints/{path}.ckpt"),
            key=lambda p: p.stat().st_mtime_ns,
        )
        found += by_time[-1:]
    remedy = "A run keeps its own in runs/<workflow>/<time>/checkpoints/."
    if found:
        remedy = f"Did you mean {' or '.join(map(str, sorted(found)))}?"
    return f"No checkpoint {str(path)!r} in {Path.cwd()}. {remedy}"


def not_netcdf(error: BaseException) -> str:
    """Return what is wrong with a file that xarray, by an error, cannot read."""
    # xarray names its backends at length.
    kind = type(error).__name__
    return f"cannot be read as netCDF ({kind}): it is empty, cut off or no such file."


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last lines of a log that are not blank.

    Examples
    --------
    >>> log = Path(tempfile.mkdtemp()) / "log.txt"
    >>> _ = log.write_text("begins\\n\\nends\\n \\n")
    >>> last_lines(log, 2)
    ['begins', 'ends']
    """
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-count:]


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank; "" without one."""
    return "".join(last_lines(log, 1)).strip() if log.is_file() else ""


class DirectoryLock:
    """An advisory lock on a directory, released by the kernel when the process exits.

    Parameters
    ----------
    folder : Path
        Of a directory that exists.
    name : str
        Of the file in it that is locked.

    Attributes
    ----------
    acquired : bool
        Whether this process has it.
    holder : str
        The process that has it instead, and its machine; empty where none is known, as
        on a file system without locks or without room for one.
    """

    def __init__(self, folder: Path, name: str = LOCK) -> None:
        self._path = folder / name
        self._lock = FileLock(self._path, thread_local=False)
        self.acquired = False
        self.holder = ""
        try:
            # The file may be removed by its last holder between opening and locking.
            self._lock.acquire(timeout=0.2, poll_interval=0.05)
        except Timeout:
            self.holder = self._read() or "another process"
        except (OSError, NotImplementedError):
            return
        else:
            self.acquired = True
            # Without room for the holder's name the lock is held all the same.
            with suppress(OSError):
                self._path.write_text(
                    f"process {os.getpid()} on {socket.gethostname()}", "utf-8"
                )

    def release(self, *, remove: bool = False) -> None:
        """Release the lock, and remove its file if asked to; may be called again."""
        if self.acquired:
            if remove:
                self._path.unlink(missing_ok=True)
            self._lock.release()
        self.acquired = False

    def _read(self) -> str:
        try:
            return self._path.read_text("utf-8")
        except OSError:
            return ""


@contextmanager
def own_folder(kind: str, parent: str | None = None) -> Iterator[Path]:
    """Yield a new temporary folder that only this user may enter; remove it in the end.

    What processes that were killed have left there is removed first: folders that this
    function made for this user, on this machine, and which nobody locks any more.

    Parameters
    ----------
    kind : str
        The name is ``flow-<kind>``, and random characters.
    parent : str, optional
        Folder to make it in; that for temporary files by default.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    parent = parent or tempfile.gettempdir()
    for left in Path(parent).glob("flow-*"):
        if _OWN.fullmatch(left.name):
            with suppress(OSError, Timeout):
                _remove_abandoned(left)
    folder = Path(tempfile.mkdtemp(prefix=f"flow-{kind}", dir=parent))
    lock = DirectoryLock(folder, _OWNER)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _remove_abandoned(folder: Path) -> None:
    found, lock = folder.lstat(), folder / _OWNER
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    # Its process has written that behind its lock, which other machines may not see.
    if mine and lock.read_text("utf-8").endswith(f" on {socket.gethostname()}"):
        with FileLock(lock, timeout=0):
            shutil.rmtree(folder)


@contextmanager
def write_atomically(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a path to write to, which takes the place of `path` if all goes well.

    Whatever fails leaves the file that was there before, and nothing else.

    Parameters
    ----------
    path : Path
        Of the file; through a link, what the link points to is replaced.
    sync : bool
        Whether the new file must be on the disk before the old one is gone.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with write_atomically(path) as part:
    ...     _ = part.write_text("complete", "utf-8")
    >>> path.read_text("utf-8"), len(list(path.parent.iterdir()))
    ('complete', 1)
    """
    target = path.resolve()
    part = target.with_name(f"{target.name}.part")
    try:
        yield part
        if sync:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    with write_atomically(path) as part:
        part.write_text(text, "utf-8")


@contextmanager
def observing(what: object) -> Iterator[None]:
    """Log why a thing that tells of a run was not made: it never ends the run.

    Parameters
    ----------
    what : object
        Its path, or what it is in words.
    """
    try:
        yield
    except OSError as error:
        log_unwritten(what, error)
    except Exception:
        # Of any type: by a user's network or names, or by a library.
        logger.exception("%s was not made; all else of the run is.", what)


def leads_out(path: str) -> bool:
    """Whether a path in a folder may be of something outside of it.

    Examples
    --------
    >>> [*map(leads_out, ["out/u_*.nc", "/out/u.nc", "out/../../u.nc"])]
    [False, True, True]
    """
    return Path(path).is_absolute() or ".." in Path(path).parts


def leave(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that tells of a run, whole or not at all, and in no case end it."""
    with observing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as part:
            write(part)


def log_unwritten(path: object, error: OSError) -> None:
    """Log that a file was not written, why, and what helps."""
    logger.error("%s was not written (%s). %s", path, error, remedy(error))


def remedy(error: OSError) -> str:
    """Return what helps against an error of writing."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "See who may write there."
    return "Make room there."
