"""dask-jobqueue, without the handler of Ctrl-C that its import installs.

With that handler an interrupted process ends in silence, with the status of success.
"""

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
    mine = signal.default_int_handler if _is_theirs(_before) else _before
    signal.signal(signal.SIGINT, mine)
