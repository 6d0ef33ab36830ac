"""Runs every arm of a comparison with every seed, one after the other."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from surrogate_flow.cli.compare import claim, seconds
from surrogate_flow.cli.compare.arm import OFFLINE, Arm
from surrogate_flow.cli.compare.child import call
from surrogate_flow.cli.compare.errors import ContestError
from surrogate_flow.cli.compare.rehearsal import rehearse
from surrogate_flow.report.summary import FILE, Outcome

__all__ = ["Contest"]

_CURVE = 20  # points of a curve
_GENERATE = "generate"  # the folder of what the data set's generation says
_ENDED = "ended.txt"  # names the folder of a run that was not cut off


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
            another comparison, or another process compares in it.
        """
        claim.check(self.folder, self._described())
        coming = self._coming()
        for arm, seed in coming:
            # Seeds differ in nothing that could be refused.
            if seed == coming[0][1]:
                self._rehearse(arm, seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        with claim.held(self.folder):
            # Another process may have been there until now.
            claim.check(self.folder, self._described())
            self._run(self._coming(), console)

    def _coming(self) -> list[tuple[Arm, int]]:
        """Return what has not ended, in the order in which it is to run.

        Seed by seed, so that a machine that gets slower does so for all arms. Offline
        last: what only a run shows, it shows before many simulations have been made.
        """
        return [
            (arm, seed)
            for seed in range(self.seeds)
            for arm in sorted(self.arms, key=lambda arm: arm.name == OFFLINE)
            if self.outcome(arm, seed) is None
        ]

    def _run(self, coming: Sequence[tuple[Arm, int]], console: Console) -> None:
        if coming and (warning := claim.other_versions(self.folder)):
            console.print(warning, soft_wrap=True, highlight=False)
        generated = False
        for arm, seed in coming:
            if arm.name == OFFLINE and not generated:
                self._generate(console)
                generated = True
            self._fit(arm, seed, console)
            claim.note(self.folder, self._described())

    def run_folder(self, arm: Arm, seed: int) -> Path | None:
        """Return the folder of a run that has ended by itself."""
        ended = self._place(arm, seed) / _ENDED
        return ended.parent / ended.read_text() if ended.is_file() else None

    def outcome(self, arm: Arm, seed: int) -> Outcome | None:
        """Return what has come of a run, if it has ended."""
        folder = self.run_folder(arm, seed)
        return None if folder is None else Outcome.read(folder)

    def seconds(self, arm: Arm, seed: int) -> float | None:
        """Return the wall time of a run that has ended, from start to end.

        Offline, that of the data set counts with each run, as each needs it; it was
        generated once. None where it was not noted, as in folders of older versions.
        """
        places = [self._place(arm, seed)]
        if arm.name == OFFLINE:
            places.append(self.folder / _GENERATE)
        took = [seconds.read(place) for place in places]
        known = [one for one in took if one is not None]
        return sum(known) if len(known) == len(took) else None

    def _place(self, arm: Arm, seed: int) -> Path:
        return self.folder / arm.name / f"seed-{seed}"

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
        """Make the data set, or what is missing of it; note the seconds until whole."""
        output, place = self.folder / "offline.zarr", self.folder / _GENERATE
        words = ["--data", str(self.workflow), "--output", str(output), *self.of_study]
        count = f"--data.simulations={self.offline}"
        ended, begun = place / _ENDED, output.exists()
        if not begun:
            ended.unlink(missing_ok=True)
        # What one that was killed, or an older version, took is not known.
        before = seconds.read(place) if begun else 0.0
        whole = ended.is_file()
        with seconds.noted(place, before, add=not whole):
            said = f"data set of {self.offline} simulations"
            self._call(["generate", *words, count], place, said, console)
        ended.write_text(output.name)

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
        # Its own, as a run that was cut off may be alive still, and end meanwhile.
        root = _unused(place)
        words = [
            *("--data", str(arm.data(self.folder))),
            *own,
            *arm.seeded(seed),
            *self._of_training(seed),
            f"--trainer.default_root_dir={root}",
        ]
        with seconds.noted(place):
            self._call(["fit", *words], place, f"{arm.name}, seed {seed}", console)
        ended = next(root.glob(f"*/*/{FILE}"), None)
        outcome = Outcome.read(ended.parent) if ended else None
        if ended is None or outcome is None:
            raise ContestError(f"{root} has no {FILE}, though the run has ended.")
        limited = any("simulations=" in word for word in own)
        if outcome.batches != self.batches and not limited:
            raise ContestError(
                f"{arm.name}, seed {seed}: expected {self.batches} batches, got "
                f"{outcome.batches}: the run was stopped. Type the command again."
            )
        # Not by the run itself: one that was interrupted has an outcome, too.
        (place / _ENDED).write_text(str(ended.parent.relative_to(place)))

    def _call(
        self, words: Sequence[str], place: Path, said: str, console: Console
    ) -> None:
        """Run a command of this package, which says what it does in ``log.txt``."""
        call(words, place / "log.txt", said, console)


def _unused(place: Path) -> Path:
    """Make the first folder of run-1, run-2, ... that is not there yet."""
    numbers = itertools.count(1)
    root = next(p for n in numbers if not (p := place / f"run-{n}").exists())
    root.mkdir(parents=True)
    return root
