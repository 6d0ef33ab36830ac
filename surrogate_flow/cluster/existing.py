"""A scheduler that runs already: of another program, or of another rank."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from distributed import Client
from distributed.comm.addressing import get_address_host
from distributed.security import Security
from distributed.utils import get_ip

from surrogate_flow.cluster import security
from surrogate_flow.cluster.config import ClusterConfig, ClusterError

__all__ = ["Existing", "ExistingScheduler"]

logger = logging.getLogger(__name__)


class Existing(ClusterConfig):
    """A scheduler with workers, which the study leaves as they are.

    Parameters
    ----------
    address : str, optional
        Address of the scheduler, such as ``tls://login1:8786``.
    scheduler_file : str, optional
        File of ``dask scheduler --scheduler-file``; read if there is no address.
    tls_ca_file, tls_cert, tls_key : str, optional
        Paths of the keys that the scheduler requires.
    timeout : float
        Seconds to wait for its answer.
    """

    def __init__(
        self,
        address: str | None = None,
        scheduler_file: str | None = None,
        tls_ca_file: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._address, self._file, self.timeout = address, scheduler_file, timeout
        #: Keys, or the names of their files.
        self.security: Security | None = None
        if tls_ca_file or tls_cert or tls_key:
            self.security = Security(
                require_encryption=True,
                tls_ca_file=tls_ca_file,
                tls_client_cert=tls_cert,
                tls_client_key=tls_key,
            )
        #: Address of the dashboard, once opened.
        self.dashboard_link = ""
        #: Whether all workers share this machine's file system and sockets.
        self.local = False
        #: Whether the workers are jobs of a batch system, which come and go.
        self.jobs = False
        #: Whether the workers do nothing else, and end with the study.
        self.ours = False

    @classmethod
    def of(cls, cluster: Any, *, local: bool, jobs: bool = False) -> Self:
        """Return how another process reaches an opened cluster of this one."""
        known = cls(cluster.scheduler_address)
        known.security = getattr(cluster, "security", None)
        known.local, known.jobs = local, jobs
        known.ours = not isinstance(cluster, Existing)
        return known

    @classmethod
    def shared(
        cls, address: str, keys: tuple[str, str, str] | None, *, local: bool
    ) -> Self:
        """Return how a study of another process is reached.

        `keys` are the files of authority, certificate and key.
        """
        known = cls(address, None, *(keys or ()))
        known.local = local
        return known

    @property
    def scheduler_address(self) -> str:
        """Address of the scheduler.

        Raises
        ------
        ClusterError
            If there is none, or the file is not that of a scheduler.
        """
        if self._address is not None:
            return self._address
        if self._file is None:
            raise ClusterError("data.cluster", "an address or a scheduler_file", "none")
        try:
            return str(json.loads(Path(self._file).read_text("utf-8"))["address"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClusterError(
                f"{self._file} is not the file of a scheduler "
                f"({type(error).__name__}: {error}).",
                remedy="`dask scheduler --scheduler-file` writes such a file.",
            ) from error

    @property
    def interface(self) -> str | None:
        """Address of this machine on the scheduler's network; None if all is local."""
        return None if self.local else get_ip(get_address_host(self.scheduler_address))

    @contextmanager
    def open(self, folder: Path, cores: int) -> Iterator[Self]:
        """Check that the scheduler answers."""
        self._address = address = self.scheduler_address
        logger.info("Connecting to %s, for %g s at most", address, self.timeout)
        try:
            with self.client() as client:
                self.dashboard_link = str(client.dashboard_link)
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                f"The scheduler at {address} does not answer within {self.timeout:g} s "
                f"({error}). Usual cause: it has ended, or listens on another "
                "interface, or requires keys (tls_ca_file, tls_cert, tls_key)."
            ) from error
        yield self

    def client(self) -> Client:
        """Connect.

        Raises
        ------
        OSError
            If the scheduler does not answer.
        ClusterError
            If the files of the keys do not exist here.
        """
        try:
            return Client(
                self.scheduler_address,
                security=self.security,
                timeout=self.timeout,
                set_as_default=False,
            )
        except FileNotFoundError as error:
            raise ClusterError(
                f"No keys of the scheduler {self.scheduler_address} in "
                f"{getattr(self.security, 'tls_ca_file', None)}: the first rank has "
                "written them into the folder of the run.",
                remedy="Set trainer.default_root_dir to a folder that all ranks share.",
            ) from error

    @contextmanager
    def in_files(self, folder: Path) -> Iterator[Self]:
        """Write the keys into private files, so that other ranks get their names only.

        What torch.distributed sends is neither encrypted nor authenticated.
        """
        if self.security is None:
            yield self
            return
        with security.in_files(folder, self.security) as keys:
            known = copy.copy(self)
            known.security = keys
            yield known


ExistingScheduler = Existing
"""The name in recipes of version 0.1."""
