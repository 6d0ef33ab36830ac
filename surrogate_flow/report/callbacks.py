"""The callbacks of a run, and when and how it is saved: completely, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as L
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from rich.console import Console

from surrogate_flow.data.checkpoint import steps_files
from surrogate_flow.data.module import RunCallback, data_of
from surrogate_flow.fields.window import SINGLE
from surrogate_flow.files import (
    DirectoryLock,
    observing,
    remedy,
    write_atomically,
    write_text,
)
from surrogate_flow.report.boards import Boards
from surrogate_flow.report.console import print_lines, the_console
from surrogate_flow.report.folder.crate import CRATE, write_crate
from surrogate_flow.report.folder.run_folder import OUTCOME, REPORT, RunFolder
from surrogate_flow.report.held_out import HeldOut
from surrogate_flow.report.live.publisher import LivePage
from surrogate_flow.report.monitor import MetricsTable, Monitor
from surrogate_flow.report.progress import ProgressLine
from surrogate_flow.report.records import Records
from surrogate_flow.report.report import Report
from surrogate_flow.report.summary import WriteSummary

__all__ = ["AtomicCheckpoints", "FinalValidation", "SafeCheckpoint", "run_callbacks"]

logger = logging.getLogger(__name__)


class AtomicCheckpoints(TorchCheckpointIO):
    """Replaces a checkpoint when the new one is on the disk; reads data, never code.

    A full disk does not end a run: the checkpoint before stays, the failure is logged,
    and `error` is that of the last attempt, ``None`` if it was written. Files of steps
    that no checkpoint names any more are removed after it, never before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.error: OSError | None = None
        # The files of steps that each checkpoint names, and all that were ever named.
        self._written: dict[Path, set[Path]] = {}
        self._steps: set[Path] = set()
        self._lock: DirectoryLock | None = None

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,
    ) -> None:
        """Write beside the old checkpoint, then replace it."""
        target = Path(path)
        steps = {target.absolute().parent / name for name in steps_files(checkpoint)}
        self._steps |= steps
        # A failed attempt has left files, whose room is needed now.
        self._tidy(steps)
        self.error = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock or DirectoryLock(target.parent)
            with write_atomically(target, sync=True) as part, part.open("wb") as file:
                torch.save(checkpoint, file)
            self._written[target.absolute()] = steps
            self._tidy()
        except (OSError, RuntimeError) as error:
            # torch's writer reports a write that failed in its own words.
            torch_words = ("inline_container", "PytorchStreamWriter")
            if isinstance(error, OSError):
                self.error = error
            elif any(word in str(error) for word in torch_words):
                self.error = OSError(str(error))
            else:
                raise
            kept = "the one before is kept" if target.is_file() else "there is none yet"
            logger.error(
                "The checkpoint %s was not written (%s); %s. %s",
                target,
                error,
                kept,
                remedy(self.error),
            )

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint, without executing anything in it."""
        return dict(super().load_checkpoint(path, map_location, weights_only=True))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a file that was written here; Lightning's would delete any folder.

        The path may come from a checkpoint, which is untrusted.
        """
        target = Path(path)
        if target.absolute() in self._written and not target.is_symlink():
            target.unlink(missing_ok=True)
            del self._written[target.absolute()]
            self._tidy()

    def _tidy(self, coming: Collection[Path] = ()) -> None:
        named = set().union(coming, *self._written.values())
        for path in self._steps - named:
            path.unlink(missing_ok=True)
        self._steps &= named


class FinalValidation(Callback):
    """Validates and saves after the last batch, whatever the interval between both."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop the trainer after its last batch, for which it validates and saves."""
        loop = trainer.fit_loop.epoch_loop
        # A stream, whose length is unknown, is read once.
        once = trainer.num_training_batches == float("inf")
        last = once or trainer.current_epoch + 1 == trainer.max_epochs
        over = last and loop.batch_progress.is_last_batch
        if over or trainer.global_step == loop.max_steps:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Log it if the data ended before `max_steps`."""
        data = data_of(trainer)
        once = data is not None and not data.repeats
        used_up = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if once and used_up and 0 < trainer.global_step < trainer.max_steps:
            logger.info(
                "All simulations are used up after %d of %d batches. %s",
                trainer.global_step,
                trainer.max_steps,
                _more(data),
            )


def _more(data: Any) -> str:
    """Return what gives more batches."""
    parts = (getattr(data, name, None) for name in ("sampler", "inputs"))
    counts = [count for part in parts if (count := getattr(part, "count", None))]
    if counts and data.simulations + data.held_out >= min(counts):
        return (
            "There are no more. Of a data set, which surrogate-flow generate --output "
            "PATH writes, fit trains on them for epochs."
        )
    return "More of them: --data.simulations, or null there for as many as it takes."


class SafeCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that keeps no model whose monitor is not finite.

    Where no validation runs it saves as if one did, unless it has a monitor. It saves
    nothing on the failure of one of several ranks: saving is collective, and
    the other ranks may be gone.
    """

    @property
    def state_key(self) -> str:
        """Its name in a checkpoint, which is that of version 0.1."""
        return super().state_key.replace(type(self).__qualname__, "Kept", 1)

    def setup(self, trainer: L.Trainer, pl_module: Any, *args: Any, **kw: Any) -> None:
        """Have files replaced whole, unless the user has another way.

        best.ckpt is chosen by rollouts, where validations have any.
        """
        if self.filename == "best" and self.monitor == SINGLE and data_of(trainer):
            self.monitor = pl_module.window.monitor
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpoints()
        super().setup(trainer, pl_module, *args, **kw)

    def on_exception(self, trainer: L.Trainer, *args: Any) -> None:
        """Save the state of a run that fails."""
        if trainer.world_size == 1:
            super().on_exception(trainer, *args)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Save after the last batch, and at the interval, if no validation follows."""
        super().on_train_batch_end(trainer, pl_module, *args)
        loop, every = trainer.fit_loop.epoch_loop, trainer.val_check_batch
        validates = loop._should_check_val_epoch() and sum(trainer.num_val_batches) > 0
        due = isinstance(every, int) and (loop.total_batch_idx + 1) % every == 0
        if not validates and not self.monitor and (due or trainer.should_stop):
            self.on_validation_end(trainer, pl_module)

    def check_monitor_top_k(
        self, trainer: L.Trainer, current: torch.Tensor | None = None
    ) -> bool:
        """Return whether a model is among the best: never with NaN or infinity."""
        if current is None or torch.isfinite(current):
            return bool(super().check_monitor_top_k(trainer, current))
        if trainer.is_global_zero:
            logger.warning(
                "%s is %s after %d batches, so %s is not replaced. Usual cause: "
                "training diverges. Lower --model.optimizer.lr, or set "
                "--trainer.gradient_clip_val 1.",
                self.monitor,
                float(current),
                trainer.global_step,
                f"{self.filename}.ckpt",
            )
        return False


class WritePage(RunCallback):
    """Writes report.html as a run ends or fails, and then what makes it an RO-Crate.

    Both are of what is in the run's folder, and behind all that writes there. A run
    that was ended before its first batch has neither. Of a run that fails it prints
    where they are, as `Report` does of others.
    """

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        super().__init__(folder)
        self._made, self._console = False, console

    def on_fit_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Write the page."""
        if (self.folder / OUTCOME).is_file():
            self._page(trainer)

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, error: BaseException
    ) -> None:
        """Write both, unless a second Ctrl-C ends the run at once."""
        failed = self.trained or any(self.folder.glob("failures*.csv"))
        if failed and not isinstance(error, KeyboardInterrupt):
            self._page(trainer)
            lines = f"Run: {self.folder}", f"Report: {self.folder / REPORT}"
            print_lines(self._console or Console(), *lines[: 2 * self._made])
            self.teardown(trainer, module, "")

    def teardown(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> None:
        """Describe the files, which are complete now."""
        if stage in ("validate", "test"):
            self._page(trainer)
        if self._made:
            self._write(CRATE, write_crate)
        self._made = False

    def _page(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        for table in trainer.loggers:
            if isinstance(table, MetricsTable):
                table.save()
        self._write(REPORT, _page)
        self._made = True

    def _write(self, name: str, write: Callable[[RunFolder], object]) -> None:
        with observing(self.folder / name):
            write(RunFolder(self.folder))


def _page(run: RunFolder) -> None:
    # Here, since Bokeh takes a second to import.
    from surrogate_flow.report.html.run_page import run_page

    write_text(run.path / REPORT, run_page(run))


def run_callbacks(
    folder: str | Path,
    lines: Sequence[ProgressLine] | None = None,
    *,
    console: Console | None = None,
    fit: bool = True,
    checkpoints: bool = True,
    report: bool = True,
) -> list[Callback]:
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
    report : bool
        Whether report.html and pictures are, which takes two seconds or three.

    Examples
    --------
    >>> [type(callback).__name__ for callback in run_callbacks("runs/mine")][:3]
    ['Monitor', 'Records', 'Boards']
    """
    folder, console = Path(folder), console or the_console()
    lines = [ProgressLine(console)] if lines is None else lines
    # The loggers have the newest field that the records have written.
    records, boards = Records(folder), Boards(folder, drawn=report)
    # The monitor comes first: the line ends with its last status.
    page = LivePage(folder)
    watching = Monitor(folder, [*lines, records, boards, page])
    callbacks: list[Callback] = [watching, records, boards, *lines]
    callbacks += [HeldOut(folder), Report(folder, console, drawn=report)]
    if fit:
        callbacks += [WriteSummary(folder), FinalValidation()]
    # Two, since one with save_last writes last.ckpt with a new best only.
    for name, monitor in (("best", SINGLE), ("last", None)):
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
    # Behind all others, whose files they show.
    return [*callbacks, *[WritePage(folder, console)] * report, page]
