"""A scheduler that runs already, as the cluster of a study."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from distributed import Client
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.security import Security

__all__ = ["ExistingScheduler"]


logger = logging.getLogger(__name__)


class ExistingScheduler(Cluster):
    """Somebody else's scheduler and workers, which outlive the study.

    Parameters
    ----------
    address : str, optional
        Such as ``tls://login1:8786``.
    scheduler_file : str, optional
        Which ``dask scheduler --scheduler-file`` writes; an address goes before it.
    tls_ca_file, tls_cert, tls_key : str, optional
        Paths of the keys with which one connects to it.
    timeout : float
        Seconds to wait for its answer.

    Raises
    ------
    ValueError
        If neither is given, or the file is none of a scheduler.
    OSError
        If it does not answer.
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
        if address is None and scheduler_file is None:
            raise ValueError(
                "ExistingScheduler: expected an address or a scheduler_file, got none."
            )
        # distributed's constructor has no types.
        super().__init__(asynchronous=False, quiet=True)  # type: ignore[no-untyped-call]
        self._address = address or _address_in(Path(str(scheduler_file)))
        self.security = None
        if tls_ca_file or tls_cert or tls_key:
            self.security = Security(
                require_encryption=True,
                tls_ca_file=tls_ca_file,
                tls_client_cert=tls_cert,
                tls_client_key=tls_key,
            )
        logger.info("Asking for %s, for %g s at most", self._address, timeout)
        try:
            with Client(
                self._address,
                security=self.security,
                timeout=timeout,
                set_as_default=False,
            ) as client:
                self._dashboard_link = str(client.dashboard_link)
        except (OSError, TimeoutError) as error:
            raise OSError(
                f"The scheduler at {self._address} gives no answer within "
                f"{timeout:g} s ({error}). Usual cause: it has ended, or listens on "
                "another interface, or expects keys (tls_ca_file, tls_cert, tls_key)."
            ) from error
        self.status = Status.running

    @property
    def scheduler_address(self) -> str:
        """Where it is."""
        return self._address

    @property
    def dashboard_link(self) -> str:
        """Where its dashboard is, as it says itself."""
        return self._dashboard_link

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self, timeout: float | None = None) -> Any:
        """Leave it as it is."""
        self.status = Status.closed


def _address_in(path: Path) -> str:
    try:
        return str(json.loads(path.read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"ExistingScheduler: {path} is not the file of a scheduler "
            f"({type(error).__name__}: {error}). Expected one that `dask scheduler "
            "--scheduler-file` writes, with its address."
        ) from error
