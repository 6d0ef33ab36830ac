"""Runs every arm of a comparison with every seed, one after the other."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from surrogate_flow.compare.arm import OFFLINE, Arm
from surrogate_flow.compare.rehearsal import rehearse
from surrogate_flow.outcome import FILE, Outcome

__all__ = ["Contest", "ContestError"]

logger = logging.getLogger(__name__)

_POLL = 0.5  # seconds between two looks at what a run says
_CURVE = 20  # points of a curve
_END = 600.0  # seconds for a run to validate, save and end, with its jobs
_NOTE = "comparison.json"
_ENDED = "ended.txt"  # names the folder of a run that was not cut off
_TAIL = 20  # lines of a run that failed


class ContestError(RuntimeError):
    """A run of the comparison failed, or belongs to another one."""


@dataclass(frozen=True)
class Contest:
    """arms x seeds -> outcomes, the same number of batches each.

    Every run is a process of its own, whose words go to ``log.txt`` in its folder. What
    has ended is not run again.

    Parameters
    ----------
    folder : Path
        Of the comparison.
    arms : sequence of Arm
    seeds : int
        0, 1, ...: of the weights, and of the order of the samples. The simulations are
        the same for all.
    model : str
        Recipe of the model.
    batches : int
        Steps of the optimizer of each run; online ones may end before, with their data.
    offline : int
        Simulations of the data set, the held-out ones not counted.
    workflow : Path
        Recipe of the study that makes the data set.
    words : sequence of str
        Arguments for each fit.
    of_study : sequence of str
        Those under ``--data.``, for what simulates.
    of_data : sequence of str
        Those for the data set.
    reservoir : mapping
        Those of the reservoir, which the recipes of the arms have already.
    """

    folder: Path
    arms: Sequence[Arm]
    seeds: int
    model: str
    batches: int
    offline: int
    workflow: Path
    words: Sequence[str] = ()
    of_study: Sequence[str] = ()
    of_data: Sequence[str] = ()
    reservoir: Mapping[str, Any] = field(default_factory=dict)

    def run(self, console: Console) -> None:
        """Run what has not ended yet, after all of it was checked.

        Raises
        ------
        RecipeError
            If an arm cannot run; nothing has been written then.
        ContestError
            If a run fails, with the end of what it said; or if the folder holds runs of
            another comparison.
        """
        self._claim()
        # Seed by seed, so that a machine that gets slower does so for all arms. Offline
        # last: what only a run shows, it shows before many simulations have been made.
        coming = [
            (arm, seed)
            for seed in range(self.seeds)
            for arm in sorted(self.arms, key=lambda arm: arm.name == OFFLINE)
            if self.outcome(arm, seed) is None
        ]
        for arm, seed in coming:
            # Seeds differ in nothing that could be refused.
            if seed == coming[0][1]:
                self._rehearse(arm, seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        for arm, seed in coming:
            if arm.name == OFFLINE:
                self._generate(console)
            self._fit(arm, seed, console)
            self._note()

    def run_folder(self, arm: Arm, seed: int) -> Path | None:
        """Return the folder of a run that has ended by itself."""
        ended = self._place(arm, seed) / _ENDED
        return ended.parent / ended.read_text() if ended.is_file() else None

    def outcome(self, arm: Arm, seed: int) -> Outcome | None:
        """Return what has come of a run, if it has ended."""
        folder = self.run_folder(arm, seed)
        return None if folder is None else Outcome.read(folder)

    def _place(self, arm: Arm, seed: int) -> Path:
        return self.folder / arm.name / f"seed-{seed}"

    def _claim(self) -> None:
        """Refuse a folder in which something else was compared."""
        if not (path := self.folder / _NOTE).is_file():
            return
        mine = json.loads(json.dumps(self._described()))
        theirs = json.loads(path.read_text())
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise ContestError(
                    f"{self.folder} holds runs of another comparison: {name} was "
                    f"{theirs.get(name)!r}, now it is {value!r}. Name another folder "
                    "with --output, or remove this one."
                )

    def _note(self) -> None:
        """Note what is compared, once a run of it has ended."""
        (self.folder / _NOTE).write_text(json.dumps(self._described(), indent=1))

    def _described(self) -> dict[str, Any]:
        """Return what runs of one comparison share; arms and seeds may be added."""
        return {
            "workflow": self.workflow.read_text(),
            "model": Path(self.model).read_text(),
            "batches": self.batches,
            "offline": self.offline,
            "words": [*self.words],
            "of_study": [*self.of_study],
            "reservoir": dict(self.reservoir),
        }

    def _generate(self, console: Console) -> None:
        output = self.folder / "offline.zarr"
        words = ["--data", str(self.workflow), "--output", str(output), *self.of_study]
        said = f"data set of {self.offline} simulations"
        count = f"--data.simulations={self.offline}"
        self._call(["generate", *words, count], self.folder / "generate", said, console)

    def _of_training(self, seed: int) -> list[str]:
        """Return the arguments of a fit that are the same for all arms."""
        return [
            *("--model", self.model),
            f"--seed_everything={seed}",
            f"--trainer.max_steps={self.batches}",
            f"--trainer.val_check_interval={max(1, self.batches // _CURVE)}",
            *self.words,
        ]

    def _rehearse(self, arm: Arm, seed: int) -> None:
        """Refuse an arm that could not run; offline, the study of its data set."""
        words = [*self.of_study, *self._of_training(seed)]
        if arm.name == OFFLINE:
            count = f"--data.simulations={self.offline}"
            rehearse(arm.name, self.workflow, [*words, count])
            return
        with tempfile.TemporaryDirectory(prefix="flow-compare-") as folder:
            recipe = arm.data(Path(folder))
            rehearse(arm.name, recipe, [*words, *arm.seeded(seed)], reservoir=True)

    def _fit(self, arm: Arm, seed: int, console: Console) -> None:
        place = self._place(arm, seed)
        own = self.of_data if arm.name == OFFLINE else self.of_study
        words = [
            *("--data", str(arm.data(self.folder))),
            *own,
            *arm.seeded(seed),
            *self._of_training(seed),
            f"--trainer.default_root_dir={place}",
        ]
        before = set(place.glob(f"*/*/{FILE}"))
        self._call(["fit", *words], place, f"{arm.name}, seed {seed}", console)
        new = [path.parent for path in set(place.glob(f"*/*/{FILE}")) - before]
        outcome = Outcome.read(new[0]) if new else None
        if outcome is None:
            raise ContestError(f"{place} has no {FILE}, though the run has ended.")
        limited = any("simulations=" in word for word in own)
        if outcome.batches != self.batches and not limited:
            raise ContestError(
                f"{arm.name}, seed {seed}: expected {self.batches} batches, got "
                f"{outcome.batches}: the run was stopped. Type the command again."
            )
        # Not by the run itself: one that was interrupted has an outcome, too.
        (place / _ENDED).write_text(str(new[0].relative_to(place)))

    def _call(
        self, words: Sequence[str], place: Path, said: str, console: Console
    ) -> None:
        """Run a command of this package; show the last thing that it says."""
        place.mkdir(parents=True, exist_ok=True)
        log = place / "log.txt"
        command = [sys.executable, "-m", "surrogate_flow", *words]
        with (
            log.open("w") as file,
            console.status(said) as status,
            _process(command, file, f"{said} ({log})", console) as process,
        ):
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL)
                line = _tail(log, 1).strip()
                status.update(f"{said}: {line}"[: console.width - 4])
        if process.returncode:
            raise ContestError(
                f"{said}: the run failed (exit status {process.returncode}). "
                f"{log} ends with:\n{_tail(log, _TAIL)}"
            )
        console.print(f"{said}: done", highlight=False)


@contextlib.contextmanager
def _process(
    words: Sequence[str], log: Any, said: str, console: Console
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a run, which ends in order when this process is told to end."""
    process = subprocess.Popen(
        words,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=_environment(),
        # Ctrl-C at a terminal reaches it once, from here.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            _end(process, said, console)


def _end(process: subprocess.Popen[bytes], said: str, console: Console) -> None:
    """Have a run end in order; kill it, with its workers, if it does not in time."""
    process.send_signal(signal.SIGINT)
    console.print(
        f"{said}: validates, saves and ends, within {_END:g} s. Ctrl-C kills it.",
        highlight=False,
        soft_wrap=True,
    )
    try:
        process.wait(_END)
    except subprocess.TimeoutExpired:
        console.print(
            f"{said}: expected it to end within {_END:g} s, it had not, and was "
            "killed. A validation that takes longer, or a solver that hangs, is the "
            "usual cause: its log says. The same command runs it anew, with fewer "
            "--data.held_out or with --data.faults.step_timeout if need be.",
            highlight=False,
            soft_wrap=True,
        )
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment() -> Mapping[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def _tail(log: Path, lines: int) -> str:
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 8192))
        text = file.read().decode(errors="replace")
    return "\n".join(text.rstrip().splitlines()[-lines:])
