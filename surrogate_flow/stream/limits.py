"""How many files the trainer may open; each connection of an outlet is one."""

from __future__ import annotations

import contextlib
import os
import resource
import sys

from surrogate_flow.stream.errors import StreamError

__all__ = ["allow_many_files", "require_files"]

RESERVE = 64  # for checkpoints, logs and the connections of the next second
OPEN_FILES = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"


def allow_many_files() -> None:
    """Raise the soft limit of open files to the hard limit.

    The usual soft limit of 1024 is for programs that call ``select``, and too low for a
    thousand outlets.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems refuse "unlimited": keep the present limit there.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def require_files() -> None:
    """Check that this process may open some more files.

    At the limit, ZeroMQ aborts the process on a unix socket, and accepts no connection
    on TCP.

    Raises
    ------
    StreamError
        If fewer than 64, or a quarter of the limit, are left.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        limit = sys.maxsize
    try:
        free = limit - len(os.listdir(OPEN_FILES))
    except OSError:
        # Even this listing needs a file.
        free = 0
    if free < (reserve := min(RESERVE, limit // 4)):
        raise StreamError(
            "Files that this process may still open",
            f"at least {reserve}",
            f"{free} of {limit}",
            "Each running simulation needs one, and checkpoints need some. Raise the "
            "limit before the trainer starts (ulimit -n, as root ulimit -Hn; nofile in "
            "/etc/security/limits.conf), or run fewer simulations at once.",
        )
