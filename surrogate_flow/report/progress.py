"""The progress line: what is trained, stored and run, and who waits for whom."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import pytorch_lightning as L
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.text import Text

from surrogate_flow.data.module import SurrogateData
from surrogate_flow.report.ticker import Ticker

__all__ = ["ProgressLine"]

_WIDE = 200  # columns that the whole line needs
_WINDOW = 5.0  # seconds over which samples/s is averaged


class ProgressLine(ProgressBar):
    """One line: batch, loss, samples/s, reservoir, simulations, who waits for whom.

    It shows as a `Ticker` does, on a narrow terminal shortened to
    ``reservoir seen+unseen`` and ``simulations done/running/failed``.

    Parameters
    ----------
    console : rich.console.Console, optional
    every : float
        Seconds between two lines where there is no terminal.
    """

    def __init__(self, console: Console | None = None, *, every: float = 5.0) -> None:
        super().__init__()
        self._console = console or Console()
        self._ticker = Ticker(self._line, self._console, every=every)
        self._enabled = True
        self._stage = ""
        self._trained: deque[tuple[float, int]] = deque(maxlen=4096)
        self._samples = 0
        self._loss: Any = None
        self._error: float | None = None
        self._last_rate: float | None = None

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
            self._ticker.start()

    def teardown(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> None:
        """Leave the last state of the line standing."""
        self._ticker.stop()

    def on_exception(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        exception: BaseException,
    ) -> None:
        """Leave the terminal as it was."""
        self._ticker.stop()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note that a batch has been trained."""
        self._samples += len(batch.step)
        self._trained.append((time.monotonic(), self._samples))
        self._loss = outputs["loss"]

    def on_validation_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> None:
        """Note the validation error."""
        if "val_relative_l2" in trainer.callback_metrics:
            self._error = float(trainer.callback_metrics["val_relative_l2"])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the pace as it was: nothing is trained any more."""
        self._last_rate = self._rate()

    def _rate(self) -> float:
        if self._last_rate is not None:
            return self._last_rate
        # A copy first: the trainer's thread goes on appending.
        trained, since = tuple(self._trained), time.monotonic() - _WINDOW
        recent = [(t, n) for t, n in trained if t > since]
        if len(recent) < 2:
            return 0.0
        (t0, n0), (t1, n1) = recent[0], recent[-1]
        return (n1 - n0) / max(t1 - t0, 1e-9)

    def _line(self) -> Text:
        ranks = self.trainer.world_size
        parts = [self._stage, *([f"rank 0 of {ranks}"] if ranks > 1 else [])]
        if self._loss is not None:
            parts.append(f"batch {self.trainer.global_step}")
            parts.append(f"loss {float(self._loss):.3g}")
            parts.append(f"{self._rate():.0f} samples/s")
        if self._error is not None:
            parts.append(f"validation {self._error:.2%}")
        # Lightning declares an attribute where a trainer without data module has none.
        data = getattr(self.trainer, "datamodule", None)
        status = data.status() if isinstance(data, SurrogateData) else None
        if status is not None:
            # Rewritten in place, it must fit on one line; a log has room.
            narrow = self._console.is_terminal and self._console.width < _WIDE
            parts += status.words(narrow=narrow)
        return Text(" | ".join(parts), no_wrap=True, overflow="ellipsis")
