"""The callbacks of a run, for a trainer of your own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as L
from rich.console import Console

from surrogate_flow.cli.checkpoints import FinalValidation, SafeCheckpoint
from surrogate_flow.report.console import the_console
from surrogate_flow.report.monitor import Monitor
from surrogate_flow.report.progress import ProgressLine
from surrogate_flow.report.report import Report
from surrogate_flow.report.summary import WriteSummary

__all__ = ["run_callbacks"]


def run_callbacks(
    folder: str | Path,
    lines: Sequence[ProgressLine] | None = None,
    *,
    console: Console | None = None,
    fit: bool = True,
    checkpoints: bool = True,
) -> list[L.Callback]:
    """Return what makes a run of ``surrogate-flow fit``: its line, files and pictures.

    Parameters
    ----------
    folder : str or Path
        Of the run; it gets checkpoints, prediction.png, telemetry.csv and the others.
    lines : sequence of ProgressLine, optional
        One by default; none for a progress bar of Lightning.
    console : rich.console.Console, optional
    fit : bool
        Whether it is one, and not a validation or a test.
    checkpoints : bool
        Whether best.ckpt and last.ckpt are written.

    Examples
    --------
    >>> [type(callback).__name__ for callback in run_callbacks("runs/mine")][:3]
    ['Monitor', 'ProgressLine', 'Report']
    """
    folder, console = Path(folder), console or the_console()
    lines = [ProgressLine(console)] if lines is None else lines
    # The monitor comes first: the line ends with its last status.
    callbacks: list[L.Callback] = [Monitor(folder, lines), *lines]
    callbacks.append(Report(folder, console))
    if fit:
        callbacks += [WriteSummary(folder), FinalValidation()]
    # Two, since one with save_last writes last.ckpt with a new best only.
    for name, monitor in (("best", "val_relative_l2"), ("last", None)):
        if fit and checkpoints:
            callbacks.append(
                SafeCheckpoint(
                    folder / "checkpoints",
                    filename=name,
                    monitor=monitor,
                    enable_version_counter=False,
                    save_on_train_epoch_end=False,
                    save_on_exception=name == "last",
                )
            )
    return callbacks
