"""The end of all jobs of a study: none is left in the queue."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from surrogate_flow.cluster.batch.job import ANSWER
from surrogate_flow.cluster.batch.registry import Registry

__all__ = ["cancel_all", "undisturbed"]

logger = logging.getLogger(__name__)

_CANCEL = 15.0  # seconds until a cancelled job must have left the queue


def cancel_all(roster: Registry, submitting: threading.Thread) -> None:
    """Cancel every job, wait until they have left, and name those that have not.

    Parameters
    ----------
    roster : Registry
    submitting : Thread
        What adds jobs to it, which has been told to end, and may still wait for the
        batch system's answer about a last one.
    """
    for job in list(roster.jobs):
        roster.cancel(job)
    if submitting.is_alive():
        logger.info("Waiting for the batch system's answer, to cancel its job too.")
        submitting.join(ANSWER)
    # One that was being submitted meanwhile.
    for job in list(roster.jobs):
        roster.cancel(job)
    if submitting.is_alive():
        logger.warning(
            "The batch system has not said whether it took a last job. Look for "
            "one of yours in the queue, and end it."
        )
    deadline = time.monotonic() + _CANCEL
    while (remaining := roster.remaining()) and time.monotonic() < deadline:
        time.sleep(0.2)
    # A scheduler that ends before its workers complains of each.
    while roster.workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    for job in remaining:
        logger.warning(
            "Job %s may still be in the queue (%s). End it: %s",
            job.id,
            roster.standing(job),
            job.cancel_command,
        )


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C for a moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
