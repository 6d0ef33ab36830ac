"""The folder of a sweep: what was tried and what came of it, read by anyone."""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import msgspec
import optuna
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from surrogate_flow.cli.sweep.recipe import Point, Range, SweepRecipe
from surrogate_flow.fields.errors import UserError
from surrogate_flow.files import DirectoryLock, write_text
from surrogate_flow.report.folder.run_folder import RunFolder, RunSummary

__all__ = ["METRIC", "SweepError", "SweepFolder", "TrialRow"]

logger = logging.getLogger(__name__)

METRIC = "val_relative_l2"
_RECIPE, _JOURNAL, _STOP = "sweep.yaml", "journal.log", "stop"
_STUDY = "sweep"


class SweepError(UserError, RuntimeError):
    """A sweep cannot begin, or go on."""


@dataclass(frozen=True)
class TrialRow:
    """What a trial has come to.

    Attributes
    ----------
    number : int
    state : str
        waiting, running, complete, pruned, failed.
    point : dict
        Its values of the space.
    error : float, optional
        Relative L2 error over the held-out simulations, of its last validation.
    seconds : float, optional
        Of training.
    steps : int
        Batches trained.
    why : str
        Why it failed.
    run : Path, optional
        Folder of its newest run.
    """

    number: int
    state: str
    point: dict[str, Any]
    error: float | None = None
    seconds: float | None = None
    steps: int = 0
    why: str = ""
    run: Path | None = None


class SweepFolder:
    """``sweep.yaml``, Optuna's ``journal.log`` and ``trials/0000``, ...

    Parameters
    ----------
    path : Path

    Raises
    ------
    SweepError
        If it is not the folder of a sweep.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / _RECIPE).is_file():
            raise SweepError("The folder of a sweep", f"one with {_RECIPE}", str(path))
        self.recipe = SweepRecipe.read(path / _RECIPE)

    @classmethod
    def create(cls, path: Path, recipe: SweepRecipe) -> Self:
        """Make the folder, or open that of the same sweep.

        Raises
        ------
        SweepError
            If it is of another sweep, or no folder of ours.
        """
        plain = msgspec.to_builtins(recipe)
        file = path / _RECIPE
        if file.is_file():
            folder = cls(path)
            before = msgspec.to_builtins(folder.recipe)
            free = ("trials", "at_once", "jobs")
            if differ := [k for k in plain if plain[k] != before[k] and k not in free]:
                raise SweepError(
                    f"{path} is of another sweep: its {differ[0]} is "
                    f"{before[differ[0]]!r}, expected {plain[differ[0]]!r}. Name "
                    "another folder with --folder."
                )
        elif path.exists() and any(path.iterdir()):
            raise SweepError(
                f"{path} has other files: expected a new folder, or that of the same "
                "sweep. Name another with --folder."
            )
        path.mkdir(parents=True, exist_ok=True)
        write_text(file, yaml.safe_dump(plain, sort_keys=False))
        return cls(path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be the one who runs the sweep.

        Raises
        ------
        SweepError
            If another process does.
        """
        lock = DirectoryLock(self.path)
        if not lock.acquired:
            raise SweepError(
                f"{self.path} is run by {lock.holder or 'another process'}. Type "
                f"surrogate-flow sweep status {self.path}, or sweep stop."
            )
        try:
            (self.path / _STOP).unlink(missing_ok=True)
            yield
        finally:
            lock.release(remove=True)

    @property
    def holder(self) -> str:
        """Who runs the sweep, or ""."""
        lock = DirectoryLock(self.path)
        holder = "" if lock.acquired else lock.holder or "another process"
        lock.release(remove=True)
        return holder

    def ask_to_stop(self) -> None:
        """Have whoever runs the sweep end it, on whatever machine."""
        (self.path / _STOP).touch()

    @property
    def stops(self) -> bool:
        """Whether the sweep is to end."""
        return (self.path / _STOP).exists()

    @cached_property
    def study(self) -> optuna.Study:
        """The trials and their values, kept in Optuna's journal file."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        recipe = self.recipe
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(self.path / _JOURNAL))),
                study_name=_STUDY,
                load_if_exists=True,
                sampler=_sampler(recipe),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=4)
                if recipe.prune
                else optuna.pruners.NopPruner(),
            )
        if recipe.searched == "grid" and not study.get_trials(deepcopy=False):
            for point in recipe.grid():
                study.enqueue_trial(point)
        return study

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The space, in Optuna's terms."""
        lists = {
            name: CategoricalDistribution(values)
            for name, values in self.recipe.choices().items()
        }
        return lists | {k: _range(v) for k, v in self.recipe.ranges().items()}

    @property
    def begun(self) -> int:
        """Number of trials that have begun."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(trial.state != TrialState.WAITING for trial in trials)

    @property
    def left(self) -> int:
        """Number of trials that have not ended."""
        trials = self.study.get_trials(deepcopy=False)
        return self.recipe.count - sum(trial.state.is_finished() for trial in trials)

    def trial(self, number: int) -> Path:
        """Return the folder of a trial."""
        return self.path / "trials" / f"{number:04d}"

    def log(self, number: int) -> Path:
        """Return the file with a trial's output."""
        return self.trial(number) / "log.txt"

    def attempt(self, number: int, attempt: int) -> Path:
        """Return the file that whoever trains a trial makes, at each attempt."""
        return self.trial(number) / f"attempt-{attempt}"

    def runs(self, number: int) -> list[Path]:
        """Return the folders of a trial's runs, the oldest first."""
        return sorted(path for path in self.trial(number).glob("*/*") if path.is_dir())

    def checkpoint(self, number: int, name: str = "last") -> Path | None:
        """Return the newest checkpoint of a trial, if it has one."""
        paths = [run / "checkpoints" / f"{name}.ckpt" for run in self.runs(number)]
        return next((path for path in reversed(paths) if path.is_file()), None)

    def reached(self, number: int) -> int:
        """Return when a trial's newest checkpoint was written, in ns; 0 without one."""
        found = self.checkpoint(number)
        return 0 if found is None else found.stat().st_mtime_ns

    def words(self, point: Point, name: str = "trial") -> list[str]:
        """Return the options of `fit` for a trial, as part of its ensemble."""
        words = self.recipe.words(point)
        if self.recipe.share_simulations:
            folder = str(self.path.absolute())
            words += ["--data.attach.folder", folder, "--data.attach.name", name]
        return words

    def outcome(self, number: int) -> RunSummary | None:
        """Return what a trial has come to, if it has ended."""
        for run in reversed(self.runs(number)):
            with contextlib.suppress(ValueError, OSError):
                if (found := RunSummary.read(run)) is not None:
                    return found
        return None

    def validations(self, number: int) -> dict[int, float]:
        """Return the errors of a trial's validations, by batch."""
        found: dict[int, float] = {}
        for run in self.runs(number):
            with contextlib.suppress(UserError):
                table = RunFolder(run).metrics
                if {"step", METRIC} <= {*table}:
                    known = table[["step", METRIC]].dropna()
                    found |= dict(
                        zip(known["step"].astype(int), known[METRIC], strict=True)
                    )
        return found

    def rows(self) -> list[TrialRow]:
        """Return all trials: the best first, then those that run, then the others."""
        rows = [self._row(trial) for trial in self.study.get_trials(deepcopy=False)]
        order = ("complete", "running", "waiting", "pruned", "failed")
        return sorted(
            rows,
            key=lambda row: (order.index(row.state), row.error or 0.0, row.number),
        )

    def _row(self, trial: FrozenTrial) -> TrialRow:
        number, outcome = trial.number, self.outcome(trial.number)
        validations = self.validations(number)
        runs = self.runs(number)
        states = {
            TrialState.COMPLETE: "complete",
            TrialState.PRUNED: "pruned",
            TrialState.FAIL: "failed",
            TrialState.WAITING: "waiting",
        }
        value = trial.value if trial.state == TrialState.COMPLETE else None
        return TrialRow(
            number,
            states.get(trial.state, "running"),
            trial.params or trial.system_attrs.get("fixed_params", {}),
            error=value
            if value is not None
            else next(reversed(validations.values()), None),
            seconds=outcome.training_seconds if outcome else None,
            steps=outcome.batches if outcome else max(validations, default=0),
            why=str(trial.user_attrs.get("why", "")),
            run=runs[-1] if runs else None,
        )

    def keep_best(self, row: TrialRow) -> Path | None:
        """Copy the checkpoint of the best trial beside the table."""
        found = self.checkpoint(row.number, "best") or self.checkpoint(row.number)
        if found is None:
            return None
        best = self.path / "best.ckpt"
        part = best.with_suffix(".part")
        shutil.copyfile(found, part)
        return part.replace(best)


def _sampler(recipe: SweepRecipe) -> BaseSampler:
    if recipe.searched != "tpe":
        return RandomSampler(seed=recipe.seed)
    # Trials that run count as bad, so that those at once differ.
    return TPESampler(seed=recipe.seed, constant_liar=True)


def _range(given: Range) -> BaseDistribution:
    if isinstance(given.low, int) and isinstance(given.high, int):
        step = int(given.step or 1)
        return IntDistribution(given.low, given.high, log=given.log, step=step)
    return FloatDistribution(
        float(given.low), float(given.high), log=given.log, step=given.step
    )
