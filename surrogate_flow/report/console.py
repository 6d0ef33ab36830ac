"""The console that progress and logs share, so that neither breaks the other."""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings

from rich.console import Console
from rich.logging import RichHandler

__all__ = ["hush", "show_logs", "the_console"]


_PLAIN = "%(asctime)s %(levelname)-8s %(message)s"


@functools.cache
def the_console() -> Console:
    """Return the one of this process."""
    return Console()


def _handler() -> logging.Handler:
    console = the_console()
    if console.is_terminal:
        return RichHandler(
            console=console, show_path=False, markup=False, log_time_format="%X"
        )
    # Whoever searches a job's log wants a line to be a line.
    plain = logging.StreamHandler(sys.stdout)
    plain.setFormatter(logging.Formatter(_PLAIN, datefmt="%X"))
    return plain


def show_logs() -> None:
    """Show what the package logs, in the manner of the progress line."""
    handler = _handler()
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


def hush() -> None:
    """Silence warnings of Lightning's that no user could mend."""
    others = [
        "`isinstance\\(treespec",
        "\\s*``instantiate_classes``",
        "Be aware that when using `ckpt_path`",
        "The dirpath has changed",
    ]
    if "SLURM_JOB_ID" not in os.environ:
        # On every login node.
        others.append("The `srun` command is available")
    for words in others:
        warnings.filterwarnings("ignore", words)
