"""Lightning's subcommands: fit, validate, test and predict with a workflow."""

from __future__ import annotations

import importlib.metadata
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as L
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_only

from surrogate_flow.cli import runs
from surrogate_flow.cli.callbacks import Ending, Kept
from surrogate_flow.cli.checkpoints import AtomicCheckpoints
from surrogate_flow.cli.loggers import MetricsEvents, MetricsTable
from surrogate_flow.data.module import SurrogateData
from surrogate_flow.report.console import hush, show_logs, the_console
from surrogate_flow.report.monitor import Monitor
from surrogate_flow.report.progress import ProgressLine
from surrogate_flow.report.report import Report
from surrogate_flow.report.rollout import RolloutReport
from surrogate_flow.report.summary import Outcomes
from surrogate_flow.surrogate import checkpoint
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = [
    "SurrogateCLI",
    "built",
    "train",
    "uses_lightning",
]

_EPOCHS = 1  # unless more are asked for

logger = logging.getLogger(__name__)


def uses_lightning(words: Sequence[str]) -> bool:
    """Whether ``predict`` names a workflow, as Lightning's own does."""
    options = {word.partition("=")[0] for word in words}
    return bool(options & {"--data", "--config", "-c"})


class SurrogateCLI(LightningCLI):
    """LightningCLI with one link between data and model, and a folder for each run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the workflow say what the model predicts."""
        parser.set_defaults({"data": {"class_path": "surrogate_flow.OnlineData"}})
        # The class's own default is a function, which no config.yaml can hold.
        adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}
        parser.set_defaults({"model.optimizer": adam})
        parser.link_arguments("data.spec", "model.spec", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Open checkpoints as data only, whatever else Lightning offers."""
        super().parse_arguments(parser, args)
        command = self.config.get("subcommand")
        options = self.config[command] if command else self.config
        if options.get("weights_only") is False:
            raise ValueError(
                "--weights_only: expected true, got false. A checkpoint is data, and "
                "is never executed."
            )
        options["weights_only"] = True

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add loggers, checkpoints, progress and report, unless they are set."""
        config = self._get(self.config_init, "trainer")
        counted = config.get("max_steps", -1) > 0
        typed = any(w.partition("=")[0] == "--trainer.max_epochs" for w in sys.argv)
        default = config["max_epochs"] == _EPOCHS and not typed
        if counted and self.datamodule.repeats and default:
            # The default of one epoch is that of data which never come again.
            kwargs["max_epochs"] = -1
        self._folder, self._made = self._new_folder()
        with self._discarding():
            return self._trainer(config, kwargs)

    def _new_folder(self) -> tuple[Path, list[Path]]:
        kind = "" if self.subcommand == "fit" else str(self.subcommand)
        return runs.new_folder(self._root(), self.datamodule.workflow, kind)

    def _trainer(self, config: Any, kwargs: dict[str, Any]) -> L.Trainer:
        folder, console = self._folder, the_console()
        bar = config.get("enable_progress_bar") is not False
        lines = [ProgressLine(console)] if bar else []
        # The line's last state is the monitor's last status.
        callbacks: list[L.Callback] = [Monitor(folder, lines), *lines]
        if config.get("logger") in (None, True):
            kwargs["logger"] = [
                MetricsTable(folder, name="", version=""),
                MetricsEvents(folder, name="", version=""),
            ]
        callbacks += [RolloutReport(folder, console), Report(folder, console)]
        if self.subcommand == "fit":
            callbacks += [Outcomes(folder), Ending()]
            if config.get("enable_checkpointing") is not False:
                # Two, since one with save_last writes last.ckpt with a new best only.
                for name, monitor in (("best", "val_relative_l2"), ("last", None)):
                    callbacks.append(
                        Kept(
                            folder / "checkpoints",
                            filename=name,
                            monitor=monitor,
                            enable_version_counter=False,
                            save_on_train_epoch_end=False,
                            save_on_exception=name == "last",
                        )
                    )
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": callbacks}
        self._checkpoints = AtomicCheckpoints()
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        kwargs["plugins"] = [*plugins, self._checkpoints]
        return super().instantiate_trainer(**kwargs)

    def _parse_ckpt_path(self) -> None:
        """Take no arguments from a checkpoint, as Lightning would: it has none."""

    def _root(self) -> Path:
        config = self._get(self.config_init, "trainer")
        return Path(config.get("default_root_dir") or "runs")

    def _run_subcommand(self, subcommand: str) -> None:
        """Leave no folder of a run that was refused before it began."""
        with self._discarding():
            super()._run_subcommand(subcommand)

    @contextmanager
    def _discarding(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # by Lightning
                runs.discard(self._folder, self._made)
            raise

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Find the checkpoint that is meant, and refuse one that does not fit."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        path, workflow = kwargs.get("ckpt_path"), self.datamodule.workflow
        if path in ("last", "best"):
            path = runs.last_checkpoint(self._root(), workflow, path, self._folder)
        elif path is None and subcommand == "fit":
            path = runs.job_checkpoint(self._root(), workflow)
        if path is not None:
            # Before anything is opened or submitted.
            recipe, _ = checkpoint.read(path)
            checkpoint.require_same(self.model.recipe, {checkpoint.KEY: recipe})
            logger.info("From the checkpoint %s", path)
            if subcommand == "fit":
                runs.tidy(Path(path))
            kwargs["ckpt_path"] = str(path)
        return kwargs

    def validate(self, **kwargs: Any) -> None:
        """Validate, ending in order as `fit` does."""
        with _graceful(self.trainer, self.datamodule):
            self.trainer.validate(**kwargs)

    def test(self, **kwargs: Any) -> None:
        """Test, ending in order as `fit` does."""
        with _graceful(self.trainer, self.datamodule):
            self.trainer.test(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict, ending in order as `fit` does."""
        with _graceful(self.trainer, self.datamodule):
            self.trainer.predict(**kwargs)

    def fit(self, **kwargs: Any) -> None:
        """Fit, with a first Ctrl-C ending the run cleanly.

        Raises
        ------
        RuntimeError
            If the last checkpoint could not be written, or another rank has died.
        """
        with _graceful(self.trainer, self.datamodule) as told:
            try:
                self.trainer.fit(**kwargs)
            except RuntimeError as error:
                explained = self.datamodule.ranks.explain(error)
                if explained is error:
                    raise
                raise explained from error
        last = self._folder / "checkpoints" / "last.ckpt"
        if told.is_set() and last.is_file() and self.trainer.is_global_zero:
            logger.warning(
                "The run was ended before its end. The same command with --ckpt_path "
                "last goes on with it."
            )
        if self._checkpoints.error is not None:
            raise RuntimeError(
                "The run has ended, but its last checkpoint was not written: "
                f"{self._checkpoints.error}. An older one may be in its folder."
            )


class _Rehearsal(SurrogateCLI):
    """All that a run is made of, and no run."""

    def _new_folder(self) -> tuple[Path, list[Path]]:
        return self._root() / self.datamodule.workflow / "rehearsal", []

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


@contextmanager
def _graceful(trainer: L.Trainer, data: SurrogateData) -> Iterator[threading.Event]:
    """Make the first Ctrl-C, or SIGTERM, end a run in order, whatever it waits for.

    A second Ctrl-C raises. SIGTERM is what a batch system sends before it kills. The
    event tells whether there was one.
    """
    told = threading.Event()

    def is_true(record: logging.LogRecord) -> bool:
        # To Lightning the data have come to their end.
        return not (told.is_set() and "` stopped: `max_epochs" in record.getMessage())

    def stop(signum: int, frame: FrameType | None) -> None:
        told.set()
        if signum == signal.SIGINT:
            logger.warning("Ctrl-C: ending in order. Once more to leave at once.")
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        # Several ranks end together, at the next batch.
        trainer.should_stop = trainer.world_size == 1
        # In a thread: the interrupted code may hold the very locks that it needs.
        threading.Thread(target=data.stop, name="stop", daemon=True).start()

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    said = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    said.addFilter(is_true)
    try:
        yield told
    finally:
        said.removeFilter(is_true)
        for number, handler in before.items():
            signal.signal(number, handler)


def train(words: Sequence[str]) -> None:
    """Run one of Lightning's subcommands."""
    show_logs()
    hush()
    _cli(SurrogateCLI, words)


def built(words: Sequence[str]) -> tuple[SurrogateData, Surrogate]:
    """Return data and model of a ``fit``, built as it builds them; nothing runs."""
    cli = _cli(_Rehearsal, words)
    return cli.datamodule, cli.model


def _cli(kind: type[SurrogateCLI], words: Sequence[str]) -> SurrogateCLI:
    sys.argv = [sys.argv[0], *words]
    return kind(
        Surrogate,
        SurrogateData,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
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
            "description": (
                "Train a deep surrogate of a solver while its simulations run. "
                "--data and --model take a recipe: a YAML file, or the name of a "
                "shipped one (heat2d, fully_connected); --data also a data set. "
                "'test' simulates anew; of a data set it takes the held-out "
                "simulations, by which best.ckpt was chosen. "
                "Three commands have a --help of their own: "
                "'surrogate-flow plan' says what a study would ask of its cluster, "
                "'surrogate-flow generate' writes its simulations to a data set, "
                "'surrogate-flow compare' trains offline and online."
            ),
        },
    )
