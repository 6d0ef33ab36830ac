"""The folder of a sweep: what was tried and what came of it, read by anyone."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from surrogate_flow.cli.sweep import search
from surrogate_flow.cli.sweep.attempt import Attempt
from surrogate_flow.cli.sweep.recipe import Point, SweepRecipe
from surrogate_flow.cli.sweep.trial import Training, TrialRow, validations_of
from surrogate_flow.dataset import Archive, ArchiveError
from surrogate_flow.ensemble.sharing import Sharing
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.window import monitored
from surrogate_flow.files import LOCK, DirectoryLock, write_text
from surrogate_flow.report.folder.run_folder import RunSummary
from surrogate_flow.report.folder.words import flattened

__all__ = ["CONTROLLER", "SweepError", "SweepFolder", "TrialRow"]

logger = logging.getLogger(__name__)

#: Of the job that runs a sweep: its id.
CONTROLLER = "controller.json"
_RECIPE, _JOURNAL, _STOP = "sweep.yaml", "journal.log", "stop"


class SweepError(UserError, RuntimeError):
    """A sweep cannot begin, or go on."""


class SweepFolder:
    """``sweep.yaml``, Optuna's ``journal.log`` and ``trials/0000``, ...

    Parameters
    ----------
    path : Path
    recipe : SweepRecipe, optional
        That in the folder by default.

    Raises
    ------
    SweepError
        If it is not the folder of a sweep.
    """

    def __init__(self, path: Path, recipe: SweepRecipe | None = None) -> None:
        self.path = path
        if recipe is None and not (path / _RECIPE).is_file():
            meant = [
                place
                for place in (Path("sweeps") / path.stem, path.parent)
                if (place / _RECIPE).is_file()
            ]
            remedy = f"Did you mean {meant[0]}?" if meant else ""
            raise SweepError(
                "The folder of a sweep", f"one with {_RECIPE}", str(path), remedy
            )
        self.recipe = recipe or SweepRecipe.read(path / _RECIPE)
        self._ended: dict[int, TrialRow] = {}
        self._read: dict[Path, Training] = {}

    @classmethod
    def create(cls, path: Path, recipe: SweepRecipe, option: str = "--folder") -> Self:
        """Make the folder, or open that of the same sweep, or of one that never began.

        Parameters
        ----------
        path : Path
        recipe : SweepRecipe
        option : str
            That names another folder.

        Raises
        ------
        SweepError
            If it is of another sweep, or no folder of ours.
        """
        another = f"Name another folder with {option}."
        known = cls(path) if (path / _RECIPE).is_file() else None
        if known and known._began:
            then, now = known.recipe.kept(), recipe.kept()
            for name in {**then, **now}:
                if then.get(name) != now.get(name):
                    raise SweepError(
                        f"{path} is of another sweep: its {name} is "
                        f"{then.get(name)!r}, expected {now.get(name)!r}. {another}"
                    )
            return cls(path, recipe)
        if known:
            (path / _JOURNAL).unlink(missing_ok=True)
            for data_set in path.glob("*.zarr"):
                shutil.rmtree(data_set)
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            got = "other files in it" if path.is_dir() else "a file"
            expected = "a new folder, or that of the same sweep"
            raise SweepError(str(path), expected, got, another)
        folder = cls(path, recipe)
        folder._write()
        return folder

    @property
    def _began(self) -> bool:
        """Whether it runs, or has a trial or a simulation that could be lost."""
        # A job that waits in the queue is to run what is here.
        submitted = (self.path / CONTROLLER).exists()
        if self.holder or submitted or self.study.get_trials(deepcopy=False):
            return True
        try:
            return any(len(Archive(f).complete()) for f in self.path.glob("*.zarr"))
        except ArchiveError:
            return True

    def _write(self) -> None:
        """Write the recipe."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / _RECIPE, self.recipe.written())
        except OSError as error:
            raise SweepError(
                f"{self.path} cannot be written ({error}). Name another folder."
            ) from error

    @contextlib.contextmanager
    def held(
        self,
        made_of: Mapping[str, Any] | None = None,
        *,
        patience: float = 0.0,
        again: bool = True,
    ) -> Iterator[None]:
        """Be the one who runs the sweep; write its recipe.

        Parameters
        ----------
        made_of : mapping, optional
            By its name, what all trials are made of beside the recipe.
        patience : float
            Seconds that another one has to let it go.
        again : bool
            Whether a sweep that was stopped runs again.

        Raises
        ------
        SweepError
            If another process does, or trials there are made of something else.
        """
        deadline = time.monotonic() + patience
        while (lock := DirectoryLock(self.path)).holder and time.monotonic() < deadline:
            time.sleep(1.0)
        if lock.holder:
            raise SweepError(
                f"{self.path} is run by {lock.holder}. Type surrogate-flow sweep "
                f"status {self.path}, or sweep stop."
            )
        if not lock.acquired:
            logger.warning("%s cannot be locked: run it once at a time.", self.path)
        try:
            search.mend(self.path / _JOURNAL)
            self._require_same({**self.recipe.made_of(), **(made_of or {})})
            self.study.set_user_attr("working folder", os.getcwd())
            self._write()
            if again:
                (self.path / _STOP).unlink(missing_ok=True)
            yield
        finally:
            lock.release(remove=True)

    def _require_same(self, made_of: Mapping[str, Any]) -> None:
        noted = self.study.user_attrs.get("made of", {})
        for name, value in made_of.items():
            if (before := noted.get(name, value)) != value:
                was, now = (flattened({"": each}) for each in (before, value))
                said = "; ".join(
                    f"{key.lstrip('.')} was {was.get(key)!r}, now {now.get(key)!r}"
                    for key in {**was, **now}
                    if key and was.get(key) != now.get(key)
                )
                raise SweepError(
                    f"{self.path} is of another sweep: {name} has changed since its "
                    f"trials began. {said}"[:400].strip(" .")
                    + ". Name another folder."
                )
        self.study.set_user_attr("made of", {**noted, **made_of})

    def note_version(self) -> None:
        """Note this version of the package; warn if trials are of another one."""
        mine = importlib.metadata.version("surrogate-flow")
        noted = self.study.user_attrs.get("versions", [])
        if others := ", ".join(version for version in noted if version != mine):
            logger.warning(
                "%s holds trials of surrogate-flow %s; this is %s. What differs "
                "between trials may be the version: name another folder for this one.",
                *(self.path, others, mine),
            )
        self.study.set_user_attr("versions", [*dict.fromkeys([*noted, mine])])

    @property
    def holder(self) -> str:
        """Who runs the sweep, or ""; read by anyone who sees the folder."""
        with contextlib.suppress(FileNotFoundError), (self.path / LOCK).open() as file:
            try:
                # Shared and for a moment: a resume beside it waits longer.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read() or "another process"
        return ""

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
        return search.opened(self.path / _JOURNAL, self.recipe)

    @property
    def working_folder(self) -> Path:
        """Where it was begun, or went on last: paths in its recipe start there."""
        return Path(self.study.user_attrs.get("working folder", "."))

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The space, in Optuna's terms."""
        return search.distributions(self.recipe)

    @cached_property
    def _grid(self) -> dict[str, Point]:
        """The points of a grid, by what tells them apart; without one none."""
        grid = self.recipe.grid() if self.recipe.searched == "grid" else []
        return {_key(point): point for point in grid}

    def trials(self) -> list[FrozenTrial]:
        """Return the trials that have begun; of each point of a grid the newest."""
        trials = self.study.get_trials(deepcopy=False)
        trials = [t for t in trials if t.state != TrialState.WAITING]
        repeated = {*self.study.user_attrs.get("repeated", ())}
        trials = [trial for trial in trials if trial.number not in repeated]
        if self.recipe.searched != "grid":
            return trials
        newest = {_key(trial.params): trial for trial in trials}
        return [trial for key, trial in newest.items() if key in self._grid]

    @property
    def missing(self) -> list[Point]:
        """The points of a grid that have not begun, in order."""
        begun = {_key(trial.params) for trial in self.trials()}
        return [point for key, point in self._grid.items() if key not in begun]

    def begin(self) -> Trial:
        """Begin the next trial: of the next point, or where the search wants one."""
        if self.recipe.searched != "grid":
            return self.study.ask(self.distributions)
        # Not asked for: Optuna refuses values that a list did not have before.
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(self.missing[0]),
                distributions=self.distributions,
            )
        )
        newest = self.study.get_trials(deepcopy=False)[-1]
        return Trial(self.study, newest._trial_id)

    def repeat_failed(self) -> None:
        """Have the values of each trial that has failed run once more, as another."""
        failed = [t for t in self.trials() if t.state == TrialState.FAIL]
        # Those of a grid are missing by then.
        for trial in failed if self.recipe.searched != "grid" else ():
            self.study.enqueue_trial(trial.params)
        before = self.study.user_attrs.get("repeated", [])
        self.study.set_user_attr("repeated", [*before, *(t.number for t in failed)])

    @property
    def begun(self) -> int:
        """Number of trials that have begun."""
        return len(self.trials())

    @property
    def left(self) -> int:
        """Number of trials that have not ended."""
        ended = sum(trial.state.is_finished() for trial in self.trials())
        return max(0, self.recipe.count - ended)

    def trial(self, number: int) -> Path:
        """Return the folder of a trial."""
        return self.path / "trials" / f"{number:04d}"

    def log(self, number: int) -> Path:
        """Return the file with a trial's output."""
        return self.trial(number) / "log.txt"

    def attempt(self, number: int, attempt: int) -> Path:
        """Return the file that whoever trains a trial makes, at each attempt."""
        return self.trial(number) / f"attempt-{attempt}"

    def attempt_of(self, trial: FrozenTrial) -> Attempt:
        """Return the newest attempt at a trial."""
        path = self.attempt(trial.number, trial.user_attrs.get("attempt", 0))
        return Attempt(path, trial.user_attrs.get("handle", {}))

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

    def outcome(self, number: int, *, early: bool = False) -> RunSummary | None:
        """Return what a trial has come to; with `early` also one ended by a signal."""
        for run in reversed(self.runs(number)):
            with contextlib.suppress(ValueError, OSError):
                if (found := RunSummary.read(run)) is not None:
                    return found if early or not found.ended_early else None
        return None

    def parts(self, number: int) -> list[Path]:
        """Return the runs that make up a trial: without `resume` the newest alone."""
        runs = self.runs(number)
        return runs if self.recipe.resume else runs[-1:]

    def validations(self, number: int) -> dict[int, float]:
        """Return the errors of a trial's validations, by batch."""
        found: dict[int, float] = {}
        for run in self.parts(number):
            found |= validations_of(run)
        return found

    def error(self, number: int) -> float | None:
        """Return the least error of a trial's validations: that of its best.ckpt."""
        return min((error for error, _ in self._errors(number)), default=None)

    def _errors(self, number: int) -> list[tuple[float, Path]]:
        """Return the errors of a trial and their runs; NaN if all are."""
        found = [
            (error, run)
            for run in self.parts(number)
            for error in validations_of(run).values()
            or [error for _, error in self._training(run).curve]
        ]
        outcome = self.outcome(number, early=True)
        errors = {} if outcome is None else outcome.errors
        if (metric := monitored(errors)) in errors:
            found.append((errors[metric], self.runs(number)[-1]))
        return [each for each in found if isfinite(each[0])] or found

    def rows(self) -> list[TrialRow]:
        """Return all trials: the best first, then those that run, then the others."""
        sharing, late = Sharing.read(self.path), self.recipe.late
        held = bool(self.holder)
        rows = [self._row(trial, held).among(sharing, late) for trial in self.trials()]
        first = len(self.study.get_trials(deepcopy=False))
        rows += [
            TrialRow(number, "waiting", dict(point))
            for number, point in enumerate(self.missing, first)
        ]
        order = ("complete", "running", "interrupted", "waiting", "pruned", "failed")
        return sorted(
            rows,
            key=lambda row: (order.index(row.state), row.error or 0.0, row.number),
        )

    def curve(self, number: int) -> list[tuple[float, float]]:
        """Return the seconds of training at each validation of a trial, and its error.

        Those of its parts are added.
        """
        found, before = list[tuple[float, float]](), 0.0
        for run in self.parts(number):
            found += [(before + at, e) for at, e in self._training(run).curve]
            before += self._seconds(run)
        return found

    def _seconds(self, run: Path) -> float:
        """Return the seconds of training of a run, also of one that was killed."""
        with contextlib.suppress(ValueError, OSError):
            if (outcome := RunSummary.read(run)) is not None:
                return outcome.training_seconds
        return self._training(run).seconds

    def _training(self, run: Path) -> Training:
        training = self._read.setdefault(run, Training(run))
        training.update()
        return training

    def _going(self, trial: FrozenTrial, held: bool) -> str:
        """Return the state of a trial that has not ended."""
        trains = held or self.attempt_of(trial).trains
        return "running" if trains else "interrupted"

    def _row(self, trial: FrozenTrial, held: bool) -> TrialRow:
        if trial.number in self._ended:
            return self._ended[trial.number]
        number, outcome = trial.number, self.outcome(trial.number, early=True)
        validations, runs = self.validations(number), self.runs(number)
        states = {
            TrialState.COMPLETE: "complete",
            TrialState.PRUNED: "pruned",
            TrialState.FAIL: "failed",
        }
        trained = self._training(runs[-1] if runs else self.trial(number))
        row = TrialRow(
            number,
            states.get(trial.state) or self._going(trial, held),
            trial.params,
            # What the search was told stays, also where files of a run are removed.
            error=trial.value
            if trial.state == TrialState.COMPLETE
            else self.error(number),
            seconds=sum(map(self._seconds, self.parts(number))) or None,
            wall_seconds=trial.user_attrs.get("wall_seconds"),
            steps=outcome.batches if outcome else max([trained.steps, *validations]),
            validated=outcome.validated if outcome else None,
            why=str(trial.user_attrs.get("why", "")),
            run=runs[-1] if runs else None,
            attempts=int(trial.user_attrs.get("attempt", -1)) + 1,
        )
        if trial.state.is_finished():
            self._ended[number] = row
        return row

    def keep_best(self, row: TrialRow) -> Path | None:
        """Copy the best checkpoint of a trial beside the table."""
        _, run = min(self._errors(row.number), default=(0.0, None))
        runs = [*([run] if run else []), *reversed(self.parts(row.number))]
        kept = (
            each / "checkpoints" / f"{name}.ckpt"
            for name in ("best", "last")
            for each in runs
        )
        if (found := next(filter(Path.is_file, kept), None)) is None:
            return None
        part = Path(shutil.copyfile(found, self.path / "best.part"))
        return part.replace(self.path / "best.ckpt")


def _key(point: Point) -> str:
    return json.dumps(dict(point), sort_keys=True)
