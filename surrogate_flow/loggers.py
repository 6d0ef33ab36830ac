"""Lightning's loggers, for disks that may be full."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

__all__ = ["MetricsEvents", "MetricsTable"]

logger = logging.getLogger(__name__)


class MetricsTable(CSVLogger):
    """metrics.csv; rows that the disk has no room for wait in memory for the next save.

    Metrics are not worth a run: a full disk is logged once, and training goes on.
    """

    _full = False

    @rank_zero_only
    def save(self) -> None:
        """Append the rows that are not in the file, or leave it as it was."""
        path = Path(self.experiment.metrics_file_path)
        size = path.stat().st_size if path.is_file() else 0
        try:
            super().save()
            self._full = False
        except OSError as error:
            with suppress(OSError):
                # Half a row would spoil the next one; what is cut off comes again.
                os.truncate(path, min(size, path.stat().st_size))
            if not self._full:
                logger.error("%s was not written (%s). Make room there.", path, error)
            self._full = True


class MetricsEvents(TensorBoardLogger):
    """TensorBoard's events; they end where the disk has no room for them."""

    _ended = False

    @rank_zero_only
    def log_metrics(
        self, metrics: Mapping[str, float], step: int | None = None
    ) -> None:
        """Write one moment, while there was room for all before."""
        if not self._ended:
            with self._ending():
                super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Write what is under way."""
        with self._ending():
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file."""
        with self._ending():
            super().finalize(status)

    @contextmanager
    def _ending(self) -> Iterator[Any]:
        try:
            yield
        except OSError as error:
            # Its writer raises the same for all that follows.
            if not self._ended:
                logger.error("TensorBoard's events end here (%s).", error)
            self._ended = True
