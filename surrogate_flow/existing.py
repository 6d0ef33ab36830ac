"""A cluster that somebody else has opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from distributed import Client
from distributed.deploy.cluster import Cluster
from distributed.security import Security

__all__ = ["Existing"]


@dataclass(frozen=True)
class Existing:
    """Where a scheduler is, for processes that did not start it; it outlives them.

    Attributes
    ----------
    scheduler_address : str
        ``tls://host:port``, say.
    security : distributed.Security, optional
        Keys for TLS.
    local : bool
        Whether all workers share this machine's file system and sockets.
    """

    scheduler_address: str
    security: Security | None = None
    local: bool = False
    #: Dask's client looks at it before it connects.
    status: str = "running"

    @classmethod
    def of(cls, cluster: Cluster, *, local: bool) -> Self:
        """Return how another process reaches a cluster of this one."""
        return cls(cluster.scheduler_address, getattr(cluster, "security", None), local)

    def client(self) -> Client:
        """Connect.

        Raises
        ------
        OSError
            If there is no answer.
        """
        return Client(
            self.scheduler_address,
            security=self.security,
            set_as_default=False,
        )
