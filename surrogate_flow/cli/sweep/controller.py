"""Runs a sweep: starts trials, watches them, tells the search what they came to."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from optuna.trial import FrozenTrial, Trial, TrialState

from surrogate_flow.cli.lightning import build
from surrogate_flow.cli.sweep.attempt import Attempt
from surrogate_flow.cli.sweep.checks import warn_of_repetition
from surrogate_flow.cli.sweep.folder import SweepFolder
from surrogate_flow.cli.sweep.places import Place, Refused
from surrogate_flow.cli.sweep.table import told
from surrogate_flow.data.online import OnlineData
from surrogate_flow.ensemble.sharing import SharedStudy
from surrogate_flow.ensemble.study import StudySettings
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.quantities import counted
from surrogate_flow.fields.window import monitored
from surrogate_flow.files import last_line, observing
from surrogate_flow.report.console import print_lines, the_console
from surrogate_flow.report.folder.run_folder import INTERRUPTED, RunFolder
from surrogate_flow.report.live.publisher import LivePage, new_topic
from surrogate_flow.surrogate.checkpoint import batch_of

__all__ = ["Controller"]

logger = logging.getLogger(__name__)

_POLL = 0.5  # seconds between two looks at the trials
_REPORT = 5.0  # seconds between two looks at their validations
_ATTEMPTS = 4  # of a trial that is killed before it gets any further
_END = 600.0  # seconds for trials to validate, save and end
_AGAIN = 30.0  # seconds until a job that the queue has refused is submitted again
# The last line of a program that has failed, but not because of a signal.
_ERROR = re.compile(
    r"surrogate-flow: error: |(?!KeyboardInterrupt)[\w.]*(Error|Exception)\b"
)
_INTERRUPTED = "surrogate-flow: interrupted"  # a signal that came before a trial begins
_KILLED = {128 + signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGKILL}


class Controller:
    """Has every trial of a sweep run once, whatever is killed meanwhile.

    Parameters
    ----------
    folder : SweepFolder
        Held by this process.
    place : Place
    """

    def __init__(self, folder: SweepFolder, place: Place) -> None:
        self._folder, self._place = folder, place
        self._study = folder.study
        self._recipe = folder.recipe
        words = folder.recipe.words(folder.recipe.corners()[0])
        self._at_once = folder.recipe.at_once or place.fits(words)
        self._reported = 0.0
        # Attempts at each trial that have ended before it got any further.
        self._in_vain: Counter[int] = Counter()
        # When each trial began, of those that have begun here.
        self._began: dict[int, float] = {}
        # Trials that the queue has refused, when they are submitted again, and why.
        self._refused: dict[int, float] = {}
        self._refusal = ""
        handles = [t.user_attrs.get("handle", {}) for t in folder.trials()]
        self._accepted = any("job" in handle for handle in handles)
        #: Seconds until a job that the queue has refused is submitted again.
        self.again = _AGAIN
        #: Seconds between two looks at the validations of trials.
        self.report = _REPORT
        #: Seconds for trials to validate, save and end.
        self.end = _END
        self._page = LivePage(folder.path)
        self._shared: SharedStudy | None = None

    def run(self, stopped: Callable[[], bool], ends: float = math.inf) -> None:
        """Run until all trials have ended, or `stopped` returns true.

        At the time `ends` (`time.time`) it leaves trials that need nothing of it.
        """
        folder = self._folder
        if not folder.left:
            return
        folder.note_version()
        logger.info("%s", self._plan(folder.left))
        with self._ensemble() as check:
            # For whoever has started this process, and waits until the sweep runs.
            self._study.set_user_attr("process", os.getpid())
            try:
                while not stopped() and not folder.stops:
                    if time.time() >= ends:
                        if self._place.outlives and not self._recipe.share_simulations:
                            return
                        break
                    check()
                    running = self._watch()
                    if not running and not folder.left:
                        return
                    while len(running) < self._at_once and self._unbegun:
                        if self._refused:
                            break
                        running.append(self._begin())
                    time.sleep(_POLL)
            except Exception:
                self._end_all()
                raise
            self._end_all()

    def _plan(self, left: int) -> str:
        """Return how many trials run at a time, and how more would."""
        count, at_once = self._recipe.count, self._at_once
        some = f", {left:,} left" if left < count else ""
        said = f"{counted(count, 'trial')}{some}, {min(at_once, left)} at a time"
        if self._recipe.at_once or at_once >= left:
            return said
        more = min(2 * at_once, left)
        return f"{said} ({self._place.limit}; at_once: {more} for {more})"

    @contextlib.contextmanager
    def _ensemble(self) -> Iterator[Callable[[], None]]:
        """Open the study that all trials share; yield what raises its errors."""
        recipe = self._recipe
        if not recipe.share_simulations:
            logger.info("Live page: surrogate-flow watch %s", self._folder.path)
            yield lambda: None
            return
        words = recipe.words(recipe.corners()[0])
        data, surrogate = build(["fit", *words])
        assert isinstance(data, OnlineData), "refused before"
        warn_of_repetition(recipe, data, surrogate.window, words)
        archive, _ = data.planned(self._folder.path / "simulations.zarr")
        design = data.new_design()
        try:
            with SharedStudy(
                data.solver,
                design,
                cluster=data.cluster,
                faults=data.faults,
                settings=StudySettings(
                    data.workflow,
                    self._folder.path,
                    cores=data.cores_per_simulation,
                    inputs=data.inputs,
                ),
                archive=archive,
                late=recipe.late,
            ) as shared:
                address = shared.study.cluster.address.scheduler_address
                self._place.require_reachable(address)
                topic = new_topic(self._folder.path)
                self._page.open(shared.study.client, topic, {})
                self._show()
                self._shared = shared
                try:
                    yield shared.check
                finally:
                    self._shared = None
                    self._show()
                    self._page.end("stopped" if self._folder.left else "ended")
        finally:
            archive.release()

    def _show(self) -> None:
        """Send the trials to the live page, where there is one of all of them."""
        if self._recipe.share_simulations:
            with observing("The live page of the sweep"):
                self._page.send({"sweep": told(self._folder, self._folder.rows())})

    @property
    def _unbegun(self) -> int:
        return max(0, self._recipe.count - self._folder.begun)

    def _running(self) -> list[FrozenTrial]:
        trials = self._folder.trials()
        return [trial for trial in trials if trial.state == TrialState.RUNNING]

    def _begin(self) -> FrozenTrial:
        trial = self._folder.begin()
        self._start(trial, 0)
        return self._study.get_trials(deepcopy=False)[trial.number]

    def _start(self, trial: Trial, attempt: int, killed: str = "") -> None:
        """Start a trial, or have it go on; `killed` says how the attempt before was."""
        folder, number = self._folder, trial.number
        if self._recipe.searched != "grid":
            # What was killed as it asked has not noted all of them.
            for name, values in folder.distributions.items():
                trial._suggest(name, values)
        words = ["fit", *folder.words(trial.params, _name(number))]
        words += ["--trainer.default_root_dir", str(folder.trial(number))]
        checkpoint = folder.checkpoint(number) if self._recipe.resume else None
        if checkpoint is not None:
            words += ["--ckpt_path", str(checkpoint)]
        goes_on = f"goes on from {_origin(checkpoint)}"
        if killed:
            logger.warning("Trial %d %s, %s", number, killed, goes_on)
        if not attempt or not self._recipe.resume:
            self._began[number] = time.monotonic()
        trial.set_user_attr("attempt", attempt)
        trial.set_user_attr("reached", folder.reached(number))
        # Killed between these two: whoever goes on finds it by the attempt's file.
        begun = Attempt(folder.attempt(number, attempt))
        log = folder.log(number)
        before = log.stat().st_size if log.is_file() else 0
        try:
            handle = self._place.start(begun, words, log)
        except Refused as refused:
            self._submit_later(number, refused)
            return
        self._refused.pop(number, None)
        self._accepted, self._refusal = True, ""
        trial.set_user_attr("handle", {**handle, "log": before})
        if not killed:
            does = f"{goes_on}, attempt {attempt + 1}" if attempt else "begins"
            shown = ", ".join(f"{k} {v}" for k, v in trial.params.items())
            logger.info("Trial %d %s: %s", number, does, shown)

    def _submit_later(self, number: int, refused: Refused) -> None:
        """Wait with a trial: where jobs were accepted, it is a limit of the queue."""
        if not self._accepted:
            raise refused
        self._refused[number] = time.monotonic() + self.again
        if self._refusal != (said := str(refused)):
            self._refusal = said
            again = f"It is submitted again every {self.again:g} s."
            logger.warning("Trial %d waits: %s %s", number, said, again)

    def _watch(self) -> list[FrozenTrial]:
        """Return the trials that run; settle those that have ended."""
        now = time.monotonic()
        reports = now - self._reported > self.report
        self._reported = now if reports else self._reported
        running, known = [], self._running()
        # Before another one begins: which GPUs are taken.
        runs = {t.number: self._place.runs(self._attempt(t)) for t in known}
        self._accepted = self._accepted or any(runs.values())
        for frozen in known:
            number = frozen.number
            trial = Trial(self._study, frozen._trial_id)
            attempt = self._attempt(frozen)
            if runs[number]:
                running.append(frozen)
                if reports:
                    self._report(trial, attempt)
            elif number in self._refused:
                running.append(frozen)
                if now >= self._refused[number]:
                    self._start(trial, trial.user_attrs.get("attempt", 0))
            elif self._settle(trial, attempt):
                running.append(frozen)
        if reports:
            self._show()
        return running

    def _attempt(self, frozen: FrozenTrial) -> Attempt:
        return self._folder.attempt_of(frozen)

    def _report(self, trial: Trial, attempt: Attempt) -> None:
        """Tell the search of a trial's validations; end one that lags."""
        known = self._study.get_trials(deepcopy=False)[trial.number]
        for step, error in self._folder.validations(trial.number).items():
            if step not in known.intermediate_values:
                trial.report(error, step)
        pruned = trial.user_attrs.get("pruned")
        if self._recipe.prune and not pruned and trial.should_prune():
            trial.set_user_attr("pruned", pruned := True)
            logger.info("Trial %d lags, and is ended", trial.number)
        if pruned:
            # Again where the sweep was killed between these two lines.
            self._place.end(attempt)

    def _settle(self, trial: Trial, attempt: Attempt) -> bool:
        """Note what a trial that has ended came to; return whether it runs again."""
        number, folder = trial.number, self._folder
        attempt.close()
        if self._place.runs(attempt):
            return True  # It has begun in this moment.
        if self._shared is not None:
            self._shared.take_out(_name(number))
        error = self._error(number)
        if self._ended(trial, error):
            return False
        further = trial.user_attrs.get("reached") != folder.reached(number)
        further = further and self._recipe.resume
        self._in_vain[number] = 1 if further else self._in_vain[number] + 1
        why = self._why(number, attempt)
        if error is not None:
            why = "its validation error is nan: the training has diverged"
        elif folder.outcome(number) is not None:
            why = "it has no validation error: leave out trainer.limit_val_batches"
        if why or self._in_vain[number] >= _ATTEMPTS:
            known = "host" in attempt.handle
            ended = "was killed" if known else "ended without a word"
            why = why or f"it {ended} {_ATTEMPTS} times before it got any further"
            trial.set_user_attr("why", why)
            self._study.tell(trial, state=TrialState.FAIL)
            logger.error("Trial %d failed: %s [%s]", number, why, folder.log(number))
            return False
        killed = self._killed(attempt)
        self._start(trial, trial.user_attrs.get("attempt", 0) + 1, killed)
        return True

    def _error(self, number: int) -> float | None:
        """Return the error of a trial that has trained to its end, if it has one."""
        outcome = self._folder.outcome(number)
        validated = outcome is not None and monitored(outcome.errors) in outcome.errors
        return self._folder.error(number) if validated else None

    def _ended(self, trial: Trial, error: float | None) -> bool:
        """Note a trial that was pruned, or is complete; return whether it is."""
        number = trial.number
        if (began := self._began.get(number)) is not None:
            trial.set_user_attr("wall_seconds", time.monotonic() - began)
        if trial.user_attrs.get("pruned"):
            self._study.tell(trial, state=TrialState.PRUNED)
            return True
        if error is None or math.isnan(error):
            return False
        self._study.tell(trial, error)
        logger.info("Trial %d is complete: relative L2 error %.3g", number, error)
        return True

    def _killed(self, attempt: Attempt) -> str:
        """Return what killed an attempt; "" where it ended in order, or never began."""
        status, job = self._place.status(attempt), attempt.handle.get("job")
        if status is None:
            by = f" (job {job})" if job else ""
            return f"was killed{by}" if attempt.killed else ""
        number = abs(status) % 128
        asked = number in (0, signal.SIGTERM, signal.SIGINT)
        return "" if asked else f"was killed (signal {number})"

    def _why(self, number: int, attempt: Attempt) -> str:
        """Return why a trial failed; "" where it was killed, and can go on."""
        runs, status = self._folder.runs(number), self._place.status(attempt)
        if runs:
            with contextlib.suppress(UserError):
                error = str(RunFolder(runs[-1]).about.get("error", INTERRUPTED))
                if error != INTERRUPTED:
                    return error.splitlines()[0]
        log = self._folder.log(number)
        if status is None:
            return _error_in(log, attempt)
        if status < 0 or status in _KILLED:
            return ""
        return _said(last_line(log)) or f"exit status {status}"

    def _end_all(self) -> None:
        """Have all trials end with a checkpoint; note those that are complete."""
        known = [(frozen, self._attempt(frozen)) for frozen in self._running()]
        left = [attempt for _, attempt in known if self._place.runs(attempt)]
        for attempt in left:
            attempt.close()
            self._place.end(attempt)
        if left:
            print_lines(
                the_console(),
                f"Ending {counted(len(left), 'trial')}, after a checkpoint, within "
                f"{self.end:g} s. Ctrl-C kills them.",
            )
        deadline = time.monotonic() + self.end
        try:
            while any(map(self._place.runs, left)) and time.monotonic() < deadline:
                time.sleep(_POLL)
        finally:
            # Also at a second Ctrl-C.
            for attempt in filter(self._place.runs, left):
                logger.warning(
                    "Trial %s did not end, and is killed. Usual causes: a long "
                    "validation, or a solver that hangs; its log.txt says which.",
                    attempt.path.parent.name,
                )
                self._place.kill(attempt)
            for frozen, attempt in known:
                if not self._place.runs(attempt):
                    trial = Trial(self._study, frozen._trial_id)
                    self._ended(trial, self._error(frozen.number))


def _name(number: int) -> str:
    """Return what a trial is called in its ensemble."""
    return f"trial {number}"


def _origin(checkpoint: Path | None) -> str:
    """Return from where a training goes on that is given a checkpoint, or none."""
    if checkpoint is None:
        return "the beginning"
    batch = batch_of(checkpoint)
    return "its last checkpoint" if batch is None else f"batch {batch}"


def _error_in(log: Path, attempt: Attempt) -> str:
    """Return the error that the log of a job ends with; "" of one that was killed."""
    first = attempt.handle.get("log", 0)
    if not log.is_file() or log.stat().st_size <= first:
        return ""
    line = last_line(log)
    # One that has not begun was refused by the shell, or by Python, or ended at once.
    refused = "host" not in attempt.handle and not line.startswith(_INTERRUPTED)
    return _said(line) if _ERROR.match(line) or refused else ""


def _said(line: str) -> str:
    """Return an error without the name of the program, which whoever shows it says."""
    return line.removeprefix("surrogate-flow: error: ")
