"""Runs every variant of a comparison with every seed, one after the other."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from surrogate_flow.cli.compare.process import run_command
from surrogate_flow.cli.compare.variant import OFFLINE, Overrides, Variant
from surrogate_flow.cli.lightning import build
from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields import Window
from surrogate_flow.fields.errors import UserError, user_error
from surrogate_flow.fields.names import RecipeError
from surrogate_flow.files import DirectoryLock, own_folder
from surrogate_flow.report.console import print_lines
from surrogate_flow.report.folder.run_folder import OUTCOME, RunSummary
from surrogate_flow.reservoir import Store
from surrogate_flow.reservoir.layout import require_reachable

__all__ = ["Comparison", "ComparisonError"]

logger = logging.getLogger(__name__)

_CURVE = 20  # validations of a run
_NOTE = "comparison.json"  # what the runs of a folder share
_DONE = "done.json"  # the folder and the seconds of a run that has ended by itself


class ComparisonError(UserError, RuntimeError):
    """A comparison cannot go on."""


@dataclass(frozen=True)
class Comparison:
    """variants x seeds -> runs with the same number of optimizer steps each.

    Every run is a process of its own, with its output in ``log.txt`` of its folder. A
    run that has ended is not repeated.

    Parameters
    ----------
    folder : Path
        Of the comparison.
    variants : sequence of Variant
    seeds : int
        0, 1, ...: of the weights, and of the order of the samples. The simulations are
        the same for all.
    workflow : Path
        Recipe of the study that makes the data set.
    model : str
        Recipe of the model.
    batches : int
        Steps of the optimizer of each run; online ones may end before, with their data.
    offline : int
        Simulations of the data set, the held-out ones not counted.
    overrides : Overrides
        Options for the runs.
    """

    folder: Path
    variants: Sequence[Variant]
    seeds: int
    workflow: Path
    model: str
    batches: int
    offline: int
    overrides: Overrides = field(default_factory=Overrides)

    def run(self, console: Console) -> None:
        """Run what has not ended yet, after all of it was checked.

        Raises
        ------
        RecipeError
            If a variant cannot run; nothing has been written then.
        ComparisonError, RunError
            If a run fails, with the end of its output; or if the folder holds runs of
            another comparison, or another process compares in it.
        """
        self._require_same()
        missing = self._missing()
        for variant, seed in missing:
            # Seeds differ in nothing that could be refused.
            if seed == missing[0][1]:
                self._dry_run(variant, seed)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ComparisonError(
                f"{self.folder} cannot be written as a folder ({error}). Name another "
                "one with --output."
            ) from error
        lock = DirectoryLock(self.folder)
        if lock.holder:
            raise ComparisonError(
                f"{self.folder} is in use by another comparison: {lock.holder}. "
                "Nothing was changed in it. Wait until that has ended, or end it, and "
                "type this again; or name another folder with --output."
            )
        if not lock.acquired:
            logger.warning("%s cannot be locked: compare once at a time.", self.folder)
        try:
            # Another process may have been there until now.
            self._require_same()
            self._run(self._missing(), console)
        finally:
            lock.release(remove=True)

    def run_folder(self, variant: Variant, seed: int) -> Path | None:
        """Return the folder of a run that has ended by itself."""
        place = self._place(variant, seed)
        done = _read(place / _DONE)
        folder = place / done["folder"] if done else place
        return folder if done and (folder / OUTCOME).is_file() else None

    def seconds(self, variant: Variant, seed: int) -> float | None:
        """Return the wall time of a run that has ended, from start to end.

        Offline, that of the data set counts with each run, as each needs it; it was
        generated once. None where it is not known: the generation was interrupted.
        """
        places = [self._place(variant, seed)]
        if variant.name == OFFLINE:
            places.append(self.folder / "generate")
        known = [done["seconds"] for p in places if (done := _read(p / _DONE))]
        return sum(known) if len(known) == len(places) else None

    def _missing(self) -> list[tuple[Variant, int]]:
        """Return what has not ended, in the order in which it is to run.

        Seed by seed, so that a machine that gets slower does so for all variants.
        Offline last: online runs fail sooner if something is wrong.
        """
        return [
            (variant, seed)
            for seed in range(self.seeds)
            for variant in sorted(self.variants, key=lambda v: v.name == OFFLINE)
            if self.run_folder(variant, seed) is None
        ]

    def _run(self, missing: Sequence[tuple[Variant, int]], console: Console) -> None:
        mine = importlib.metadata.version("surrogate-flow")
        noted = _read(self.folder / _NOTE) or {"versions": []}
        versions = noted.get("versions", ["(version not noted)"])
        if missing and (others := [v for v in versions if v != mine]):
            print_lines(
                console,
                f"Warning: {self.folder} holds runs of surrogate-flow "
                f"{', '.join(others)}; this is {mine}. What differs between variants "
                "may be the version: name another folder with --output to compare "
                "with this one alone.",
            )
        note = {**self._shared(), "versions": [*dict.fromkeys([*versions, mine])]}
        generated = False
        for variant, seed in missing:
            if variant.name == OFFLINE and not generated:
                self._generate(console)
                generated = True
            self._fit(variant, seed, console)
            (self.folder / _NOTE).write_text(json.dumps(note, indent=1), "utf-8")

    def _place(self, variant: Variant, seed: int) -> Path:
        return self.folder / variant.name / f"seed-{seed}"

    def _shared(self) -> dict[str, Any]:
        """Return what runs of one comparison share; variants and seeds may be added."""
        return {
            "workflow": self.workflow.read_text("utf-8"),
            "model": Path(self.model).read_text("utf-8"),
            "batches": self.batches,
            "offline": self.offline,
            "words": self.overrides.fit,
            "of_study": self.overrides.study,
            "reservoir": self.overrides.reservoir,
        }

    def _require_same(self) -> None:
        """Refuse a folder in which something else was compared."""
        theirs = _read(self.folder / _NOTE)
        for name, value in json.loads(json.dumps(self._shared())).items():
            if theirs is not None and theirs.get(name) != value:
                was = f"{theirs.get(name)!r}, now it is {value!r}"
                if name in ("workflow", "model"):
                    was = "another recipe"
                raise ComparisonError(
                    f"{self.folder} holds runs of another comparison: {name} was {was}."
                    " Name another folder with --output, or remove this one."
                )

    def _generate(self, console: Console) -> None:
        """Make the data set, or what is missing of it."""
        place, output = self.folder / "generate", self.folder / "offline.zarr"
        fresh = not output.exists()
        words = ["--data", str(self.workflow), "--output", str(output)]
        words += [*self.overrides.study, f"--data.simulations={self.offline}"]
        title = f"data set of {self.offline} simulations"
        start = time.monotonic()
        run_command(["generate", *words], place / "log.txt", title, console)
        if fresh:
            _note_done(place, place, time.monotonic() - start)

    def _training(self, seed: int) -> list[str]:
        """Return the arguments of a fit that are the same for all variants."""
        return [
            *("--model", self.model),
            f"--seed_everything={seed}",
            f"--trainer.max_steps={self.batches}",
            f"--trainer.val_check_interval={max(1, self.batches // _CURVE)}",
            *self.overrides.fit,
        ]

    def _dry_run(self, variant: Variant, seed: int) -> None:
        """Build all that a run is made of, and refuse what the run would refuse."""
        offline, study = variant.name == OFFLINE, self.workflow
        words = [*self.overrides.study, *self._training(seed)]
        words.append("--seed_everything=false")
        with own_folder("compare-") as folder:
            if offline:
                words.append(f"--data.simulations={self.offline}")
            else:
                study = variant.data(folder)
                words += variant.with_seed(seed)
            try:
                data, model = build(["fit", f"--data={study}", *words])
                if not offline and isinstance(data, OnlineData):
                    _check_reservoir(data, model.window)
            except UserError as error:
                text, given = str(user_error(error) or error), self.overrides.fit
                if given and not any(w.partition("=")[0] in text for w in given):
                    text += f" Options given: {' '.join(given)}."
                raise RecipeError(
                    f"{variant.name}, before anything has run: {text}"
                ) from error

    def _fit(self, variant: Variant, seed: int, console: Console) -> None:
        place, title = self._place(variant, seed), f"{variant.name}, seed {seed}"
        offline = variant.name == OFFLINE
        own = self.overrides.data_set if offline else self.overrides.study
        # A new one: a run whose comparison was killed may still write into the last.
        numbers = itertools.count(1)
        root = next(p for n in numbers if not (p := place / f"run-{n}").exists())
        root.mkdir(parents=True)
        words = ["--data", str(variant.data(self.folder)), *own]
        words += [*variant.with_seed(seed), *self._training(seed)]
        words.append(f"--trainer.default_root_dir={root}")
        start = time.monotonic()
        run_command(["fit", *words], place / "log.txt", title, console)
        seconds = time.monotonic() - start
        ended = next(root.glob(f"*/*/{OUTCOME}"), root / OUTCOME)
        summary = RunSummary.read(ended.parent)
        if summary is None:
            raise ComparisonError(f"{root} has no {OUTCOME}, though the run has ended.")
        limited = any("simulations=" in word for word in own)
        if summary.batches != self.batches and not limited:
            raise ComparisonError(
                title,
                f"{self.batches} batches",
                summary.batches,
                "The run was stopped: type the command again.",
            )
        # Noted here: a run that was interrupted has a summary, too.
        _note_done(place, ended.parent, seconds)


def _check_reservoir(data: OnlineData, window: Window) -> None:
    ValidationSet.of_rank(Ranks(), data.spec, window, data.batch_size, data.held_out)
    Store(data.spec, window, data.batch_size, data.reservoir)
    require_reachable(data.reservoir, data.spec, window, data.simulations)


def _note_done(place: Path, folder: Path, seconds: float) -> None:
    done = {"folder": str(folder.relative_to(place)), "seconds": seconds}
    (place / _DONE).write_text(json.dumps(done), "utf-8")


def _read(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else None
