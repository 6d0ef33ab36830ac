"""The progress line: what is trained, stored and run, and what waits for what."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as L
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.text import Text

from surrogate_flow.data.module import Status
from surrogate_flow.report.console import LiveLine

__all__ = ["ProgressLine"]

_WIDE = 200  # columns that the complete line needs


class ProgressLine(ProgressBar):
    """Batch, loss, samples/s, reservoir, simulations, and what waits for what.

    A listener of the `Monitor`, whose last `Status` it shows as a `LiveLine` does. On a
    narrow terminal it is shortened to ``reservoir seen+unseen`` and ``simulations
    done/running/failed``.

    Parameters
    ----------
    console : rich.console.Console, optional
    every : float
        Seconds between two lines where there is no terminal.
    """

    def __init__(self, console: Console | None = None, *, every: float = 5.0) -> None:
        super().__init__()
        self._console = console or Console()
        self._line = LiveLine(self._text, self._console, every=every)
        self._enabled = True
        self._stage = ""
        self._status: Status | None = None

    def __call__(self, status: Status) -> None:
        """Show this status until the next one."""
        self._status = status

    def disable(self) -> None:
        """Show nothing (on all ranks but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show the line again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        self._console.print(*args, **kwargs)

    def setup(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> None:
        """Begin to show the line."""
        super().setup(trainer, pl_module, stage)
        self._stage = stage
        if self._enabled:
            self._line.start()

    def on_train_batch_end(self, *arguments: Any, **more: Any) -> None:
        """Raise what ended the line."""
        super().on_train_batch_end(*arguments, **more)
        self._line.check()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Leave the last state of the line on the console."""
        self._line.stop()
        self._line.check()

    def on_exception(self, *_: Any) -> None:
        """Leave the terminal as it was."""
        self._line.stop()

    def _text(self) -> Text:
        # Rewritten in place, it must fit on one line; a log has room.
        narrow = self._console.is_terminal and self._console.width < _WIDE
        status = self._status
        parts = [self._stage] if status is None else status.describe(narrow=narrow)
        return Text(" | ".join(parts), no_wrap=True, overflow="ellipsis")
