"""dask-jobqueue, imported without the handler of Ctrl-C that it brings.

Its import has a process that hears SIGINT end in silence, with the status of success.
"""

from __future__ import annotations

import signal
import threading

_before = signal.getsignal(signal.SIGINT)

from dask_jobqueue import JobQueueCluster, PBSCluster, SLURMCluster  # noqa: E402
from dask_jobqueue.core import Job as Submission  # noqa: E402

__all__ = ["JobQueueCluster", "PBSCluster", "SLURMCluster", "Submission"]


def _is_theirs(handler: object) -> bool:
    return getattr(handler, "__module__", "") == "dask_jobqueue.runner"


if (
    _is_theirs(signal.getsignal(signal.SIGINT))
    and threading.current_thread() is threading.main_thread()
):
    # A recipe may have named one of its classes before.
    signal.signal(
        signal.SIGINT,
        signal.default_int_handler if _is_theirs(_before) else _before,
    )
