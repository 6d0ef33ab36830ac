"""The console that progress and logs share, so that neither breaks the other."""

from __future__ import annotations

import functools
import logging
import os

from rich.console import Console
from rich.logging import RichHandler

__all__ = ["show_logs", "the_console"]


@functools.cache
def the_console() -> Console:
    """Return the one of this process."""
    return Console()


def show_logs() -> None:
    """Show what the package logs, in the manner of the progress line."""
    handler = RichHandler(
        console=the_console(),
        show_path=False,
        markup=False,
        log_time_format="%X",
    )
    # Lightning advertises a product, and the devices that are not there.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: (
            not any(
                word in record.getMessage()
                for word in ("litlogger", "available: False", "TPU available")
            )
        )
    )
    for name in ("surrogate_flow", "pytorch_lightning", "lightning_fabric"):
        package = logging.getLogger(name)
        # The others would say the same again.
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        package.setLevel(logging.INFO if first else logging.WARNING)
        package.handlers[:] = [handler]
