"""A cluster that somebody else has opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from distributed import Client
from distributed.comm.addressing import get_address_host
from distributed.deploy.cluster import Cluster
from distributed.security import Security
from distributed.utils import get_ip

from surrogate_flow.cluster import security

__all__ = ["Existing"]


@dataclass(frozen=True)
class Existing:
    """Where a scheduler is, for processes that did not start it; it outlives them.

    Attributes
    ----------
    scheduler_address : str
        ``tls://host:port``, say.
    security : distributed.Security, optional
        Keys for TLS, or the names of their files.
    local : bool
        Whether all workers share this machine's file system and sockets.
    jobs : bool
        Whether workers are jobs of a batch system, which come and go.
    """

    scheduler_address: str
    security: Security | None = None
    local: bool = False
    jobs: bool = False
    #: Dask's client looks at it before it connects.
    status: str = "running"

    @classmethod
    def of(cls, cluster: Cluster, *, local: bool, jobs: bool = False) -> Self:
        """Return how another process reaches a cluster of this one."""
        keys = getattr(cluster, "security", None)
        return cls(cluster.scheduler_address, keys, local, jobs)

    @contextmanager
    def in_files(self, folder: Path) -> Iterator[Self]:
        """Put the keys into private files, so that they can be told by name.

        What torch.distributed sends is neither encrypted nor authenticated.
        """
        if self.security is None:
            yield self
            return
        with security.in_files(folder, self.security) as keys:
            yield replace(self, security=keys)

    @property
    def interface(self) -> str | None:
        """Address of this machine on the network of the scheduler.

        None if nothing has to be reached from other machines.
        """
        return None if self.local else get_ip(get_address_host(self.scheduler_address))

    def client(self) -> Client:
        """Connect.

        Raises
        ------
        OSError
            If there is no answer, or the keys' files are not to be seen from here.
        """
        try:
            return Client(
                self.scheduler_address,
                security=self.security,
                set_as_default=False,
            )
        except FileNotFoundError as error:
            raise OSError(
                f"Found no keys of the scheduler {self.scheduler_address} in "
                f"{getattr(self.security, 'tls_ca_file', None)}: the first rank has "
                "written them into the folder of the run. Set trainer.default_root_dir "
                "to a folder that all ranks share."
            ) from error
