"""The workers of a study's cluster: how many there are, and which begin simulations."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from dask.utils import format_bytes
from distributed import Client
from distributed.core import Status

from surrogate_flow.ensemble.forgetting import ANSWER

__all__ = ["Workers"]

logger = logging.getLogger(__name__)

_LEAVING = {Status.closing_gracefully.name, Status.closing.name, Status.closed.name}


class Workers:
    """threads = those that begin simulations + those that Dask has paused.

    A worker is paused while its process holds more than a share of its memory limit
    (``distributed.worker.memory.pause``, 80 %). It executes what it has begun, and
    begins nothing. One that leaves counts no more.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        #: Threads of all workers that stay.
        self.threads = 0
        #: Threads of those that are not paused.
        self.ready = 0
        self._count = 0
        self._paused: dict[str, dict[str, Any]] = {}

    def look(self, leaving: Collection[str] = ()) -> None:
        """Ask the scheduler; warn of each worker that has been paused since.

        Parameters
        ----------
        leaving : collection of str
            Addresses of further workers that leave.

        Raises
        ------
        OSError, TimeoutError
            If it gives no answer.
        """
        ask: Any = self._client.scheduler
        try:
            known = self._client.sync(ask.identity, callback_timeout=ANSWER)
        except TimeoutError:
            # If this process stood still, so did the answer.
            known = self._client.sync(ask.identity, callback_timeout=ANSWER)
        staying = {
            address: worker
            for address, worker in known["workers"].items()
            if address not in leaving and worker["status"] not in _LEAVING
        }
        self._count, before = len(staying), self._paused
        self._paused = {
            address: worker
            for address, worker in staying.items()
            if worker["status"] == Status.paused.name
        }
        self.threads = sum(worker["nthreads"] for worker in staying.values())
        held_up = sum(worker["nthreads"] for worker in self._paused.values())
        self.ready = self.threads - held_up
        for address in self._paused.keys() - before.keys():
            logger.warning(
                "Worker %s begins no simulation until it holds less: %s. If that lasts,"
                " give it more (memory of a queue's cluster, memory_limit of a "
                "LocalCluster, under data.cluster), or look for what the solver keeps "
                "from one simulation to the next.",
                address,
                _memory(self._paused[address]),
            )

    def words(self) -> str:
        """Say which workers are paused, if any are."""
        if not self._paused:
            return ""
        address, worker = next(iter(self._paused.items()))
        return (
            f"{len(self._paused)} of {self._count} workers paused for want of memory ("
            f"{address}: "
            f"{_memory(worker)})"
        )


def _memory(worker: dict[str, Any]) -> str:
    held = format_bytes(worker.get("metrics", {}).get("memory", 0))
    return f"its process holds {held} of at most {format_bytes(worker['memory_limit'])}"
