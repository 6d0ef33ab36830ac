"""Lightning's loggers, for disks that may be full."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from surrogate_flow.files import log_unwritten, write_atomically

__all__ = ["MetricsEvents", "MetricsTable"]

logger = logging.getLogger(__name__)


class MetricsTable(CSVLogger):
    """metrics.csv; rows that a full disk has no room for stay in memory until it has.

    A full disk is logged once, and training goes on.
    """

    _full = False

    @rank_zero_only
    def save(self) -> None:
        """Append the rows that are not in the file yet."""
        writer = self.experiment
        path, known = Path(writer.metrics_file_path), list(writer.metrics_keys)
        size = path.stat().st_size if path.is_file() else 0
        try:
            if size and not set().union(*writer.metrics) - set(known):
                super().save()
            elif writer.metrics:
                self._replace(path)
            self._full = False
        except OSError as error:
            writer.metrics_keys = known
            with suppress(OSError):
                # Without the part of a row; the row is written again by the next save.
                os.truncate(path, min(size, path.stat().st_size))
            if not self._full:
                log_unwritten(path, error)
            self._full = True

    def _replace(self, path: Path) -> None:
        """Write all rows, old and new, under a new header."""
        writer = self.experiment
        try:
            with write_atomically(path) as part:
                if path.is_file():
                    shutil.copyfile(path, part)
                writer.metrics_file_path = str(part)
                super().save()
        finally:
            writer.metrics_file_path = str(path)


class MetricsEvents(TensorBoardLogger):
    """TensorBoard's events, until the disk has no room for them."""

    _ended = False

    @rank_zero_only
    def log_metrics(
        self, metrics: Mapping[str, float], step: int | None = None
    ) -> None:
        """Write the metrics of one step, unless the disk was full before."""
        if not self._ended:
            with self._ending():
                super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Write what is buffered, and no hparams.yaml: config.yaml has all settings."""
        with self._ending():
            super(TensorBoardLogger, self).save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file."""
        with self._ending():
            super().finalize(status)

    @contextmanager
    def _ending(self) -> Iterator[Any]:
        try:
            yield
        except (OSError, ValueError) as failure:
            # The writer's error comes again for all that follows, as a ValueError.
            error = failure.__cause__ or failure
            if not isinstance(error, OSError):
                raise
            if not self._ended:
                logger.error("TensorBoard's events end here (%s).", error)
            self._ended = True
