"""How many files the trainer's process may have open: every outlet is one."""

from __future__ import annotations

import os
import resource
import sys

__all__ = ["allow_many_files", "free_files"]

OPEN = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"


def allow_many_files() -> int:
    """Raise the soft limit of open files to the hard one, and return what holds now.

    A thousand outlets do not fit into the usual soft limit of 1024, which is that low
    only for programs that call ``select``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            # Some systems refuse "unlimited": then what there is must do.
            return _plain(soft)
    return _plain(hard)


def free_files() -> int:
    """Return how many more files this process can open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir(OPEN))
    except OSError:
        # Not even the list of them.
        return 0
    return max(0, _plain(limit) - used)


def _plain(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit
