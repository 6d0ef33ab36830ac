"""How many files the trainer's process may have open: every outlet is one."""

from __future__ import annotations

import contextlib
import os
import resource
import sys

__all__ = ["allow_many_files", "require_files"]

RESERVE = 64  # for checkpoints, logs and the connections of the next second
OPEN = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"


def allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one.

    A thousand outlets do not fit into the usual soft limit of 1024, which is that low
    only for programs that call ``select``.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems refuse "unlimited": then what there is must do.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def require_files() -> None:
    """Check that some files are left to open.

    Where none is, ZeroMQ aborts the process on a unix socket, and goes deaf on tcp.

    Raises
    ------
    RuntimeError
        If less than a reserve is left, of 64 or a quarter of what is allowed.
    """
    limit = _plain(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    try:
        free = limit - len(os.listdir(OPEN))
    except OSError:
        # Not even the list of them.
        free = 0
    if free < (reserve := min(RESERVE, limit // 4)):
        raise RuntimeError(
            f"Expected at least {reserve} more files that this process may open, got "
            f"{free} of {limit}: every simulation that runs is one, and checkpoints "
            "need some. Usual cause: more simulations at once than the machine's "
            "limit. Raise it before the trainer starts (ulimit -n, as root ulimit "
            "-Hn; nofile in /etc/security/limits.conf), or run fewer at once."
        )


def _plain(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit
