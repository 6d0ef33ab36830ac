"""How many files the trainer's process may have open: every outlet is one."""

from __future__ import annotations

import errno
import os
import resource

__all__ = ["allow_many_files", "files_exhausted"]


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
            return soft
    return hard


def files_exhausted() -> bool:
    """Whether this process cannot open one more file."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False
