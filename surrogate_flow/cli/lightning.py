"""The parser of all commands, and Lightning's: fit, validate, test and predict."""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import sys
import threading
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as L
import yaml
from jsonargparse import get_loader, set_loader
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_only

from surrogate_flow import solvers
from surrogate_flow.cli import explain, generate, plan, predict, runs
from surrogate_flow.cli.callbacks import Ending, Kept
from surrogate_flow.cli.checkpoints import AtomicCheckpoints
from surrogate_flow.cli.compare import command as compare
from surrogate_flow.cli.loggers import MetricsEvents, MetricsTable
from surrogate_flow.cli.recipes import CommandLine, pairs, read_recipe
from surrogate_flow.cli.signals import stop_requested
from surrogate_flow.data.module import SurrogateData
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.names import class_at, with_present_names
from surrogate_flow.report.console import the_console
from surrogate_flow.report.monitor import Monitor
from surrogate_flow.report.progress import ProgressLine
from surrogate_flow.report.report import Report
from surrogate_flow.report.summary import WriteSummary
from surrogate_flow.surrogate import checkpoint
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["SurrogateCLI", "build", "run"]

_EPOCHS = 1  # unless more are asked for
#: Commands without a trainer; `predict` is Lightning's own where there is a workflow.
_WITHOUT_TRAINER = {
    "plan": plan,
    "generate": generate,
    "compare": compare,
    "predict": predict,
}

logger = logging.getLogger(__name__)

for _name in solvers.__all__:
    # jsonargparse takes the bare names of classes that are imported.
    getattr(solvers, _name)


def _load(text: str) -> Any:
    return with_present_names(_load_yaml(text))


# So that what version 0.1 wrote is read: the classes have the names of today.
_load_yaml = get_loader("yaml")
set_loader("yaml", _load)


class Parser(LightningArgumentParser):
    """jsonargparse's parser, whose complaints are one line each.

    Attributes
    ----------
    owner : class or function, optional
        Whose arguments it parses, if it is one that jsonargparse makes for a class.
    """

    owner: Any = None

    def add_class_arguments(
        self, theclass: Any, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Note whose arguments these are."""
        self.owner = self.owner if nested_key else theclass
        added: list[str] = super().add_class_arguments(
            theclass, nested_key, *args, **kwargs
        )
        return added

    def add_function_arguments(
        self, function: Any, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Note whose arguments these are."""
        self.owner = self.owner if nested_key else function
        added: list[str] = super().add_function_arguments(
            function, nested_key, *args, **kwargs
        )
        return added

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong, in words for users.

        Raises
        ------
        ParserError
            An inner parser raises argparse's error, whose text the outer one finds.
        """
        error = explain.innermost(message)
        parser = getattr(ex, "subcommand_parser", None) or self
        error = error or explain.Complaint(message, parser, self.owner).explained()
        if self.owner is None:
            raise error from ex
        raise ArgumentError(None, explain.shielded(error)) from ex


class SurrogateCLI(LightningCLI):
    """LightningCLI with one link between data and model, and a folder for each run."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Leave out `predict` where there is no workflow for it."""
        found = LightningCLI.subcommands()
        if not _uses_lightning(sys.argv[1:]):
            del found["predict"]
        return found

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        added = parser._subcommands_action
        assert added is not None, "Lightning has just made it"
        for name, command in _WITHOUT_TRAINER.items():
            if name not in self._subcommand_parsers:
                # Without --config, which is for settings of a trainer.
                own = self.parser_class(allow_abbrev=False)
                command.add_arguments(own)
                added.add_subcommand(name, own)

    @property
    def _trains(self) -> bool:
        """Whether the command is one of Lightning's."""
        return not self.subcommand or self.subcommand in self._subcommand_parsers

    def _set_seed(self) -> None:
        if self._trains:
            super()._set_seed()

    def instantiate_classes(self) -> None:
        """Build what the command needs: data, model and trainer, or less."""
        if self._trains:
            super().instantiate_classes()
        else:
            self.config_init = self.parser.instantiate_classes(self.config)

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
        if not command or command in self._subcommand_parsers:
            self._require_data_only(options)

    @staticmethod
    def _require_data_only(options: Any) -> None:
        if options.get("weights_only") is False:
            raise UserError(
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
        callbacks.append(Report(folder, console))
        if self.subcommand == "fit":
            callbacks += [WriteSummary(folder), Ending()]
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
        if not self._trains:
            _WITHOUT_TRAINER[subcommand].run(self.config_init[subcommand])
            return
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
    """Let the first Ctrl-C or SIGTERM end a run in order, whatever it waits for."""

    def stop() -> None:
        # Several ranks end together, at the next batch.
        trainer.should_stop = trainer.world_size == 1
        # In a thread: the interrupted code may hold the very locks that it needs.
        threading.Thread(target=data.stop, name="stop", daemon=True).start()

    def is_true(record: logging.LogRecord) -> bool:
        # To Lightning the data have come to their end.
        ended = "` stopped: `max_epochs" in record.getMessage()
        return not (requested.is_set() and ended)

    said = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    with stop_requested(stop) as requested:
        said.addFilter(is_true)
        try:
            yield requested
        finally:
            said.removeFilter(is_true)


def run(line: CommandLine) -> None:
    """Parse a command line, and run its command.

    Raises
    ------
    UserError
        If something in it is wrong.
    """
    _cli(SurrogateCLI, line)


def build(words: Sequence[str]) -> tuple[SurrogateData, Surrogate]:
    """Return data and model of a ``fit``, built as it builds them; nothing runs."""
    cli = _cli(_Rehearsal, CommandLine.of(words))
    return cli.datamodule, cli.model


def _uses_lightning(words: Sequence[str]) -> bool:
    """Whether ``predict`` names a workflow, as Lightning's own does."""
    options = {word.partition("=")[0] for word in words}
    return bool(options & {"--data", "--config", "-c"})


def _cli(kind: type[SurrogateCLI], line: CommandLine) -> SurrogateCLI:
    # Lightning starts its other ranks with them.
    sys.argv = [sys.argv[0], *_handed_on(line)]
    try:
        return kind(
            Surrogate,
            SurrogateData,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=Parser,
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
    except explain.ParserError as error:
        raise UserError(explain.placed(error, line)) from error


def _handed_on(line: CommandLine) -> list[str]:
    """Return the words with arguments of a cluster where its class takes them."""
    words, class_path = list(line.words), ""
    for option, path in line.files.items():
        recipe: Any = read_recipe(path)
        for name in {"--data": ("cluster",), "--config": ("data", "cluster")}.get(
            option, () if option == "--data.cluster" else ("none",)
        ):
            recipe = recipe.get("init_args", recipe) if isinstance(recipe, dict) else {}
            recipe = recipe.get(name) if isinstance(recipe, dict) else None
        found = recipe.get("class_path") if isinstance(recipe, dict) else recipe
        class_path = found if isinstance(found, str) else class_path
    for option, value, _ in pairs(words):
        if option == "--data.cluster" and value and option not in line.files:
            given = yaml.safe_load(value)
            given = given.get("class_path") if isinstance(given, dict) else given
            class_path = given if isinstance(given, str) else class_path
    if "." not in class_path or class_path.startswith("surrogate_flow."):
        return words
    try:
        known: Any = inspect.signature(class_at(class_path)).parameters
    except ValueError:
        return words
    known = {*known, "init_args", "dict_kwargs", "class_path"}
    for number, word in enumerate(words):
        word = word.replace("--data.cluster.init_args.", "--data.cluster.", 1)
        head = "--data.cluster."
        name = word.removeprefix(head).partition("=")[0].partition(".")[0]
        if word.startswith(head) and name not in known:
            words[number] = word.replace(head, f"{head}dict_kwargs.", 1)
    return words
