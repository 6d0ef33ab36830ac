"""dask-jobqueue, without the handler of Ctrl-C that its import installs.

With that handler an interrupted process ends in silence, with the status of success.
"""

import shlex
import signal
import sys
import threading
from typing import Any, cast

_before = signal.getsignal(signal.SIGINT)

from dask_jobqueue import JobQueueCluster, PBSCluster, SLURMCluster  # noqa: E402
from dask_jobqueue.core import Job as Submission  # noqa: E402

__all__ = ["JobQueueCluster", "PBSCluster", "SLURMCluster", "Submission", "quoting"]


def quoting(job_class: type[Submission]) -> type[Submission]:
    """Return a class of jobs in whose scripts paths may have blanks.

    dask-jobqueue writes them as they are; directives and the shell split at blanks.
    """

    class Quoting(job_class):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            keys, job = kwargs.get("security"), cast(Any, self)
            files = keys.get_tls_config_for_role("worker").values() if keys else ()
            for path in {sys.executable, *map(str, files)}:
                command = job._command_template.replace(path, shlex.quote(path))
                job._command_template = command
            if job.job_header:
                logs = str(job.log_directory)
                job.job_header = job.job_header.replace(logs, shlex.quote(logs))

    return Quoting


def _is_theirs(handler: object) -> bool:
    return getattr(handler, "__module__", "") == "dask_jobqueue.runner"


if (
    _is_theirs(signal.getsignal(signal.SIGINT))
    and threading.current_thread() is threading.main_thread()
):
    # A recipe may have named one of its classes before.
    mine = signal.default_int_handler if _is_theirs(_before) else _before
    signal.signal(signal.SIGINT, mine)
