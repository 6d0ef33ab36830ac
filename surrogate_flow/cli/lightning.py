"""Lightning's commands: fit, validate, test and predict."""

from __future__ import annotations

import _thread
import importlib.metadata
import logging
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as L
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_only

from surrogate_flow import nn, solvers
from surrogate_flow.cli import runs
from surrogate_flow.cli.parser import Parser, parse
from surrogate_flow.cli.plan import require_trained
from surrogate_flow.cli.recipes import CommandLine
from surrogate_flow.cli.signals import Request, stop_requested
from surrogate_flow.cli.trainer import (
    FolderTrainer,
    as_list,
    in_slurm,
    loggers_of,
    refused_by_trainer,
    require_possible,
)
from surrogate_flow.data.module import SurrogateData
from surrogate_flow.data.online import OnlineData
from surrogate_flow.fields.errors import UserError, raised_by_user, user_error
from surrogate_flow.report.callbacks import AtomicCheckpoints, run_callbacks
from surrogate_flow.report.console import the_console
from surrogate_flow.report.progress import ProgressLine
from surrogate_flow.reservoir.layout import require_reachable
from surrogate_flow.surrogate import checkpoint
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["LightningParser", "SurrogateCLI", "build", "execute"]

_EPOCHS = 1  # by default
_REPORT = "SURROGATE_FLOW_REPORT"  # "no": thousands of short fits draw nothing

logger = logging.getLogger(__name__)

for _package in (nn, solvers):
    # jsonargparse accepts the bare names of classes that are imported.
    for _name in _package.__all__:
        getattr(_package, _name)


class LightningParser(Parser, LightningArgumentParser):
    """The parser of all commands that train or simulate: Lightning's."""


class SurrogateCLI(LightningCLI):
    """LightningCLI with one link between data and model, and a folder for each run.

    Parameters
    ----------
    words : list of str, optional
        The arguments; those of the process by default.
    run : bool
        Whether the first word is a command to run. Without one, data, model and trainer
        are built, and nothing is written.
    """

    def __init__(self, words: list[str] | None = None, *, run: bool = True) -> None:
        self._made: tuple[Path, list[Path]] | None = None
        self._checkpoints = AtomicCheckpoints()
        self._stopped = Request()
        self._words = sys.argv[1:] if words is None else words
        try:
            super().__init__(
                Surrogate,
                SurrogateData,
                args=words,
                run=run,
                subclass_mode_data=True,
                save_config_kwargs={"overwrite": True},
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_class=LightningParser,
                trainer_class=FolderTrainer,
                trainer_defaults={
                    "max_epochs": _EPOCHS,
                    "val_check_interval": 500,
                    "check_val_every_n_epoch": None,
                    "log_every_n_steps": 10,
                    "num_sanity_val_steps": 0,
                    "enable_model_summary": False,
                },
                parser_kwargs={
                    "prog": "surrogate-flow",
                    "allow_abbrev": False,
                    "version": importlib.metadata.version("surrogate-flow"),
                },
            )
        except BaseException:
            # Refused before it began, a run leaves no folder.
            first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # Lightning
            if first and self._made is not None:
                runs.discard(*self._made)
            raise

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static
        """Return the command that is given: a parser of each is most of a start."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in self._words[:1] if name in known}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give the model the spec of the data."""
        parser.set_defaults({"data": {"class_path": "surrogate_flow.OnlineData"}})
        # The class's own default is a function, which no config.yaml can hold.
        adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}
        parser.set_defaults({"model.optimizer": adam})
        schedule = {"class_path": "surrogate_flow.WarmupCosine"}
        parser.set_defaults({"model.scheduler": schedule})
        parser.link_arguments("data.spec", "model.spec", apply_on="instantiate")

    def instantiate_classes(self) -> None:
        """Build all; a class that refuses, or needs a package, is a sentence."""
        try:
            super().instantiate_classes()
        except Exception as error:
            # jsonargparse wraps what a constructor raises.
            cause: BaseException | None = error
            known = (ImportError, MisconfigurationException)
            while cause is not None and not isinstance(cause, known):
                cause = cause.__cause__
            if user_error(error) or raised_by_user(error) or cause is None:
                raise
            raise refused_by_trainer(cause, sys.argv[1:]) from error

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Refuse to execute a checkpoint, whatever else Lightning offers."""
        super().parse_arguments(parser, args)
        options = self.config.get(self.config.get("subcommand"), self.config)
        if options.get("weights_only") is False:
            raise UserError(
                "--weights_only", "true", "false", "A checkpoint is never executed."
            )
        options["weights_only"] = True
        seed = options["seed_everything"]
        if not 0 <= seed < 2**32:
            raise UserError("--seed_everything", "from 0 to 4294967295", seed)

    def _parse_ckpt_path(self) -> None:
        """Take no arguments from a checkpoint, as Lightning would: it has none."""

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add loggers, checkpoints, progress and report, unless they are set."""
        config = self._get(self.config_init, "trainer")
        require_possible(config, stream=not self.datamodule.repeats)
        self._root = Path(config.get("default_root_dir") or "runs")
        self._folder = self._root / self.datamodule.workflow
        if self.subcommand:
            kind = "" if self.subcommand == "fit" else self.subcommand
            self._made = runs.new_folder(self._root, self.datamodule.workflow, kind)
            self._folder = self._made[0]
        typed = any(w.partition("=")[0] == "--trainer.max_epochs" for w in sys.argv)
        counted = config.get("max_steps", -1) > 0
        default = config["max_epochs"] == _EPOCHS and not typed
        if counted and default and self.datamodule.repeats:
            # The default of one epoch is for data that come once.
            kwargs["max_epochs"] = -1
        kwargs["logger"] = loggers_of(config, self._folder)
        self.trainer_defaults["callbacks"] = self._callbacks(config)
        plugins = [*as_list(config["plugins"]), *in_slurm(config), self._checkpoints]
        kwargs["plugins"] = plugins
        with _refusing(ImportError, TypeError, ValueError, RuntimeError):
            trainer = super().instantiate_trainer(**kwargs)
        assert isinstance(trainer, FolderTrainer), "the CLI's class of trainers"
        trainer.take(self._folder, self.model.metrics)
        return trainer

    def _callbacks(self, config: Any) -> list[L.Callback]:
        folder, console = self._folder, the_console()
        theirs = as_list(config["callbacks"])
        bar = any(isinstance(callback, ProgressBar) for callback in theirs)
        shown = config.get("enable_progress_bar") is not False and not bar
        lines = [ProgressLine(console)] if shown else []
        checkpoints = config.get("enable_checkpointing") is not False
        fit = self.subcommand == "fit"
        first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # Lightning
        if fit and not checkpoints and first:
            logger.warning(
                "No checkpoint is written (--trainer.enable_checkpointing false): the "
                "network is gone when the run ends."
            )
        return run_callbacks(
            folder,
            lines,
            console=console,
            fit=fit,
            checkpoints=checkpoints,
            report=os.environ.get(_REPORT, "").lower() not in ("no", "0", "false"),
        )

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; a first signal ends it in order, but not with 0."""
        graceful = _graceful(self.trainer, self.datamodule)
        with graceful as self._stopped, _refusing():
            super()._run_subcommand(subcommand)
        if self._stopped.is_set():
            _requeue(self.trainer, self._stopped.number)
            sys.exit(self._stopped.status)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Find the checkpoint to start from, and refuse one that does not fit."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "fit":
            require_trained(self.model)
            if isinstance(data := self.datamodule, OnlineData):
                # Before a logger begins a run.
                require_reachable(
                    *(data.reservoir, data.spec, self.model.window, data.simulations),
                    self.trainer.world_size,
                )
        path, workflow = kwargs.get("ckpt_path"), self.datamodule.workflow
        if path in ("last", "best"):
            path = runs.last_checkpoint(self._root, workflow, path, self._folder)
        elif path is None and subcommand == "fit":
            path = runs.job_checkpoint(self._root, workflow)
        if path is not None:
            # Before anything is opened or submitted.
            recipe, state = checkpoint.read(path, resumes=subcommand == "fit")
            saved = {checkpoint.KEY: recipe}
            self.model.take_conditions(recipe["conditions"])
            checkpoint.require_same(self.model.recipe, saved, str(path))
            checkpoint.require_tensors(self.model.state_dict(), state, str(path))
            logger.info("From the checkpoint %s", path)
            if subcommand == "fit":
                runs.tidy(Path(path))
            kwargs["ckpt_path"] = str(path)
        return kwargs

    def fit(self, **kwargs: Any) -> None:
        """Fit; name a rank that has died, if that is why it fails."""
        try:
            self.trainer.fit(**kwargs)
        except RuntimeError as error:
            explained = self.datamodule.ranks.explain(error)
            if explained is error:
                raise
            raise explained from error

    def after_fit(self) -> None:
        """Say how to go on with a run that was stopped.

        Raises
        ------
        UserError
            If its last checkpoint could not be written.
        """
        last = self._folder / "checkpoints" / "last.ckpt"
        # One that comes while a run that has trained is validated ends nothing.
        stopped = self._stopped.is_set() and self.datamodule.stopped
        if stopped and self.trainer.is_global_zero and last.is_file():
            logger.warning(
                "The run was ended before its end. The same command with --ckpt_path "
                "last goes on with it."
            )
        if self._checkpoints.error is not None:
            raise UserError(
                "The run has ended, but its last checkpoint was not written: "
                f"{self._checkpoints.error}. An older one may be in {last.parent}."
            )


@contextmanager
def _refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Say in a sentence what Lightning refuses: it names what the user has chosen."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        known: tuple[type[Exception], ...] = (MisconfigurationException, *kinds)
        if "pytorch_lightning/callbacks/" in frames[-1].filename:
            known += (RuntimeError,)
        if any(frame.name == "experiment" for frame in frames):
            # Of any type: a logger's package that is broken, or has no account.
            known += (Exception,)
        if isinstance(error, known):
            raise refused_by_trainer(error, sys.argv[1:]) from error
        raise


@contextmanager
def _graceful(trainer: L.Trainer, data: SurrogateData) -> Iterator[Request]:
    """Let the first Ctrl-C or SIGTERM end a run in order, whatever it waits for."""
    # Lightning's own would end it without a report, and save within a handler.
    signals: Any = trainer._signal_connector
    signals.register_signal_handlers = bool
    defects: list[BaseException] = []

    def stop_data() -> None:
        try:
            data.stop()
        except BaseException as error:
            defects.append(error)
            # What waits for a batch would wait for ever.
            _thread.interrupt_main()

    def stop() -> None:
        # Several ranks end together, at the next batch.
        trainer.should_stop = trainer.world_size == 1
        # In a thread: the interrupted code may hold the very locks that it needs.
        threading.Thread(target=stop_data, name="stop", daemon=True).start()

    def is_true(record: logging.LogRecord) -> bool:
        # Lightning takes the end of the data for that of the last epoch.
        ended = "` stopped: `max_epochs" in record.getMessage()
        return not (requested.is_set() and ended)

    log = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    with stop_requested(stop) as requested:
        log.addFilter(is_true)
        try:
            yield requested
        finally:
            log.removeFilter(is_true)
            if defects:
                raise defects[0]


def _requeue(trainer: L.Trainer, number: int) -> None:
    """Have Slurm run the job again, as Lightning does: after SIGUSR1, by default."""
    slurm: Any = trainer._accelerator_connector.cluster_environment
    requeues = getattr(slurm, "auto_requeue", False) and number == slurm.requeue_signal
    if requeues and trainer.is_global_zero:
        words = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
        logger.warning("%s: exit status %d", " ".join(words), subprocess.call(words))


def build(words: Sequence[str]) -> tuple[SurrogateData, Surrogate]:
    """Return data and model of a ``fit``, built as it builds them; nothing runs."""
    line = CommandLine.of(words)
    cli = parse(line, lambda words: execute(words[1:], run=False))
    return cli.datamodule, cli.model


def execute(words: Sequence[str], *, run: bool = True) -> SurrogateCLI:
    """Run one of Lightning's commands; only build what it needs if `run` is false."""
    # Lightning starts its other ranks with them.
    sys.argv = [sys.argv[0], *words]
    # Before torch starts its threads, which inherit it; see `speed.Flush`.
    torch.set_flush_denormal(True)
    return SurrogateCLI(run=run)
