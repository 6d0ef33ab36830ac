"""Lightning's trainer and loggers, and what of its arguments is ours or refused."""

from __future__ import annotations

import logging
import os
import re
import signal
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as L
import torch
from dask.system import CPU_COUNT
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    LearningRateFinder,
    ModelCheckpoint,
    Timer,
)
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.utilities import rank_zero_only

from surrogate_flow.cli.recipes import pairs
from surrogate_flow.fields.errors import UserError
from surrogate_flow.report.monitor import MetricsTable
from surrogate_flow.surrogate.schedule import require_metric

__all__ = [
    "FolderTrainer",
    "MetricsEvents",
    "as_list",
    "in_slurm",
    "loggers_of",
    "refused_by_trainer",
    "require_possible",
]

logger = logging.getLogger(__name__)

# Those that fit several times, or want a network in two parts.
_FIT_AGAIN: dict[type, str] = {
    BatchSizeFinder: "Set --data.batch_size.",
    LearningRateFinder: "Set --model.optimizer.lr; 'compare' fits with several.",
    BackboneFinetuning: "The network is trained as a whole.",
}
# Options of the trainer that Lightning refuses by the hardware, naming none.
_HARDWARE = ("accelerator", "devices", "num_nodes", "strategy", "precision")
_BATCHES = "an int, the number of batches, or 1.0 for all of them"


class _Unprofiled(PassThroughProfiler):
    """Profiles nothing: a step of Lightning asks for that eighty times."""

    _NOTHING = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._NOTHING


class FolderTrainer(L.Trainer):
    """The trainer of a run, which has a folder, whatever logs beside it.

    Attributes
    ----------
    folder : Path
    """

    folder = Path()

    @property
    def log_dir(self) -> str:
        """Where settings, failures and reports are written to."""
        return str(self.folder)

    def take(self, folder: Path, metrics: Collection[str]) -> None:
        """Write into a folder; so do checkpoints of the user's that name none.

        Raises
        ------
        UserError
            If a callback monitors a misspelt one of the `metrics`, there are too few
            cores, or the strategy would copy this process, with threads and sockets.
        """
        self.folder = folder
        if type(self.profiler) is PassThroughProfiler:  # type: ignore[has-type]
            self.profiler = _Unprofiled()
        for callback in self.callbacks:  # type: ignore[attr-defined]  # Lightning's
            monitor, name = getattr(callback, "monitor", None), type(callback).__name__
            for refused, remedy in _FIT_AGAIN.items():
                if isinstance(callback, refused):
                    raise UserError(
                        "--trainer.callbacks",
                        "callbacks of one fit of a surrogate",
                        name,
                        remedy,
                    )
            if isinstance(monitor, str):
                what = f"--trainer.callbacks: monitor of {name}"
                require_metric(what, monitor, metrics)
        for callback in self.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                if callback.filename in ("best", "last"):
                    raise UserError(
                        "--trainer.callbacks: filename of ModelCheckpoint",
                        "another than the run's own best and last",
                        callback.filename,
                        "Or name a dirpath.",
                    )
                callback.dirpath = str((folder / "checkpoints").absolute())
        most = max(CPU_COUNT, 2)
        if isinstance(self.accelerator, CPUAccelerator) and self.num_devices > most:
            raise UserError(
                "--trainer.devices",
                f"at most {most}, as there is no GPU for each",
                self.num_devices,
            )
        if isinstance(self.strategy.launcher, _MultiProcessingLauncher):
            kind = getattr(self.strategy, "_start_method", "spawn")
            raise UserError(
                "--trainer.strategy", "one that starts processes anew", kind, "Use ddp."
            )


def as_list(value: Any) -> list[Any]:
    """Return one or several arguments of the trainer as a list."""
    if value is None or isinstance(value, bool):
        return []
    return [*value] if isinstance(value, (list, tuple)) else [value]


def loggers_of(config: Mapping[str, Any], folder: Path) -> list[Logger]:
    """Return the loggers of a run: the user's, and metrics.csv with any of them."""
    if config.get("barebones"):
        return []
    theirs, table = as_list(config["logger"]), MetricsTable(folder, name="", version="")
    if config["logger"] in (None, True):
        return [table, MetricsEvents(folder, name="", version="")]
    # The first is `trainer.logger`, which callbacks of theirs may speak to.
    return [*theirs, table]


def require_possible(config: Mapping[str, Any], *, stream: bool) -> None:
    """Refuse what Lightning would only when the simulations run.

    Parameters
    ----------
    config : mapping of str to object
        The arguments of the trainer.
    stream : bool
        Whether batches come once, so that their number is not known.
    """
    for name in ("accumulate_grad_batches", "val_check_interval"):
        # Lightning would divide by it.
        if isinstance(config[name], (int, float)) and config[name] <= 0:
            raise UserError(f"--trainer.{name}", "more than 0", config[name])
    try:
        Timer(config["max_time"])
    except (MisconfigurationException, TypeError, ValueError) as error:
        days = "days:hours:minutes:seconds, such as 00:00:30:00"
        raise UserError("--trainer.max_time", days, config["max_time"]) from error
    for name in ("limit_train_batches", "overfit_batches") if stream else ():
        value = config[name]
        if isinstance(value, float) and value not in (0.0, 1.0):
            raise UserError(
                f"--trainer.{name}",
                _BATCHES,
                value,
                "A stream of simulations has no number of batches to take a share of.",
            )


class _OneTask(LightningEnvironment):
    """This process alone, in a job that has room for several and may be run again."""

    auto_requeue, requeue_signal = True, signal.SIGUSR1


def in_slurm(config: Mapping[str, Any]) -> list[ClusterEnvironment]:
    """Return what stands for Slurm where srun began no process for each device.

    In a job of several tasks this process is the one that trains then; its workers have
    the cores of the others. It starts those of further devices itself, as elsewhere.

    Raises
    ------
    UserError
        If the other nodes are to train, too.
    """
    names = "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"
    tasks, step = (int(os.environ.get(name) or 0) for name in names)
    devices = str(config["devices"])
    ranks = int(devices) if devices.isdigit() else 1 + devices.count(",")
    if devices in ("auto", "-1") and config["accelerator"] != "cpu":
        ranks = torch.cuda.device_count()
    several, begun = tasks > 1 or (tasks == 1 and ranks > 1), step > 1
    # An environment of the user's knows better, and so do other launchers.
    others = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"} & {*os.environ}
    given = [*as_list(config["plugins"])]
    given += [getattr(config["strategy"], "cluster_environment", None)]
    theirs = any(isinstance(plugin, ClusterEnvironment) for plugin in given)
    if not several or begun or others or theirs or TorchElasticEnvironment.detect():
        return []
    if config["num_nodes"] > 1:
        raise UserError(
            "--trainer.num_nodes",
            "a process on each node of the job",
            "this one alone",
            "Write srun before the command in the job's script.",
        )
    return [_OneTask()]


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


def refused_by_trainer(error: Exception, words: Sequence[str]) -> UserError:
    """Return what Lightning's trainer refuses in a command line, with the options."""
    said = re.sub(r"<([\w.]+) object at 0x\w+>", r"\1", " ".join(str(error).split()))
    typed = [
        option.removeprefix("--trainer.")
        for option, _, _ in pairs(words)
        if option.startswith("--trainer.")
    ]
    named = [
        name
        for name in typed
        if re.search(rf"\b{re.escape(name.rpartition('.')[2])}\b", said)
    ]
    frames = traceback.extract_tb(error.__traceback__)
    if any("pytorch_lightning/loggers/" in frame.filename for frame in frames):
        named = ["logger"]
    named = named or [name for name in typed if name in _HARDWARE] or typed
    options = " and ".join(f"--trainer.{name}" for name in named)
    return UserError(
        f"{options or 'trainer'}: {said.rstrip('.!')}.",
        remedy=f"Leave {options or 'it'} out for the default, or see "
        "'surrogate-flow fit --trainer.help'.",
    )
