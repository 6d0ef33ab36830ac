"""What Dask keeps of every task it has ever run, and a study does not need."""

from __future__ import annotations

import logging
from typing import Any

from dask.utils import key_split
from distributed import Client

__all__ = ["ANSWER", "forget"]

ANSWER = 30.0  # seconds that a scheduler may be too busy to answer

logger = logging.getLogger(__name__)


def forget(client: Client) -> None:
    """Have the scheduler and this process forget the tasks that are over.

    For each task submitted the scheduler notes in its span, without end, that it was a
    future (170 bytes), and every process remembers what the names of the last 100,000
    tasks begin with (20 MB).

    Raises
    ------
    OSError
        If the scheduler is gone. One that is too busy is asked again next time.
    """
    _forget_names()
    try:
        client.run_on_scheduler(_forget_spans, callback_timeout=ANSWER)
    except TimeoutError as error:
        logger.debug("The scheduler does not answer: %r", error)
    except OSError:
        raise
    except Exception as error:
        # A scheduler of others that runs no functions, or lacks this package.
        logger.debug("The scheduler at %s keeps its books: %r", client, error)


def _forget_spans(dask_scheduler: Any) -> None:
    _forget_names()
    spans = dask_scheduler.extensions.get("spans")
    for span in spans.spans.values() if spans else ():
        if span.metadata:
            del span.metadata["collections"][1:]


def _forget_names() -> None:
    key_split.cache_clear()
