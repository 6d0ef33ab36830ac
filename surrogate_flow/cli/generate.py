"""``surrogate-flow generate``: simulations into a data set, written by the workers."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dask.utils import format_bytes
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.text import Text

from surrogate_flow.cli import plan
from surrogate_flow.cli.signals import interrupted, stop_requested
from surrogate_flow.data.online import OnlineData
from surrogate_flow.ensemble.ensemble import EnsembleStats
from surrogate_flow.ensemble.events import Event, Failed
from surrogate_flow.ensemble.ledger import ended_early
from surrogate_flow.ensemble.study import Study, StudySettings
from surrogate_flow.fields.quantities import counted
from surrogate_flow.report.console import LiveLine, print_lines, the_console
from surrogate_flow.stream import Discard

__all__ = ["Generation", "add_arguments", "generate", "run"]

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2  # between two checks of the study
_EVERY = 5.0  # seconds between two lines where there is no terminal


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command; `help` describes them."""
    plan.add_arguments(parser)
    parser.add_argument("--output", required=True, type=Path)


def run(options: Any) -> None:
    """Write the simulations of a study to a data set on disk."""
    try:
        status = generate(options.data, options.output, the_console())
    except KeyboardInterrupt as error:
        print("Left at once. The same command goes on.", file=sys.stderr)
        status = interrupted(error)
    if status:
        sys.exit(status)


class Generation:
    """Runs the simulations of a study that a data set does not have yet.

    Parameters
    ----------
    data : OnlineData
        Says what is simulated, how it is sampled, and on which cluster; its reservoir
        and its batches do not matter.
    path : Path
        Of the data set.

    Raises
    ------
    ArchiveError
        If it is of another study, or cannot be written.
    """

    def __init__(self, data: OnlineData, path: Path) -> None:
        self.archive, self.planned = data.planned(path)
        self.folder = path.parent / f"{path.stem}_generate"
        self._data = data
        if cut := self.archive.drop_incomplete():
            logger.warning(
                "%s: %d simulations have lost chunks, and run again.", path, len(cut)
            )
        complete = set(self.archive.complete())
        self.missing = [s for s in self.planned if s.number not in complete]
        self._design = data.new_design()
        self._design.skip(complete)
        self._before = len(self.planned) - len(self.missing)
        self._study: Study | None = None
        self._start = time.monotonic()
        self._ended: float | None = None

    def run(self, stopped: Callable[[], bool] = bool) -> EnsembleStats:
        """Simulate what is missing, until all have ended or `stopped` returns True.

        Raises
        ------
        ArchiveError
            If the data set cannot be written any more.
        EnsembleError
            If too many simulations fail, or there is no cluster.
        """
        data = self._data
        study = Study(
            data.solver,
            self._design,
            # Workers write the fields to the disk; only receipts are streamed.
            Discard(),
            cluster=data.cluster,
            faults=data.faults,
            settings=StudySettings(
                data.workflow,
                self.folder,
                cores=data.cores_per_simulation,
                writer=self.archive.writer,
                streams=False,
                inputs=data.inputs,
            ),
            listeners=[self._mark],
        )
        logger.info("Dask dashboard: %s", study.dashboard_link)
        self._study, self._start = study, time.monotonic()
        try:
            with study:
                try:
                    while not study.wait(_POLL_SECONDS) and not stopped():
                        study.check()
                    study.check()
                    return self.progress()
                finally:
                    self._ended = time.monotonic()
                    worked = study.inlet.stats().worked
                    self.archive.spend(worked, study.ledger.early())
        finally:
            self.close()

    def close(self) -> None:
        """Let other processes add to the data set; may be called again."""
        self.archive.release()

    def _mark(self, event: Event) -> None:
        if isinstance(event, Failed):
            self.archive.fail(event.simulation.number)

    def progress(self) -> EnsembleStats:
        """Count simulations by state, those of earlier runs included."""
        if self._study is None:
            return EnsembleStats(self._before, 0, 0, 0, 0)
        progress = self._study.stats()
        return replace(progress, done=progress.done + self._before)

    def line(self) -> Text:
        """Return the progress in one line."""
        p = self.progress()
        steps = 0 if self._study is None else self._study.inlet.stats().steps
        written = steps * self.archive.spec.step_bytes
        until = time.monotonic() if self._ended is None else self._ended
        pace = written / max(until - self._start, 1e-9)
        return Text(
            f"generate | simulations {p.done} of {len(self.planned)} done, "
            f"{p.running} running, {p.failed} failed | {format_bytes(written)} of "
            f"fields written, {format_bytes(int(pace))}/s",
            no_wrap=True,
            overflow="ellipsis",
        )


def generate(data: OnlineData, path: Path, console: Console) -> int:
    """Write a data set and describe it; return the exit status: 0, or of a signal.

    Parameters
    ----------
    data : OnlineData
    path : Path
        Of the data set; simulations that are there are not run again.
    console : rich.console.Console

    Raises
    ------
    ArchiveError, EnsembleError
        As `Generation`.
    """
    generation = Generation(data, path)
    archive, status = generation.archive, 0
    if generation.missing:
        line = LiveLine(generation.line, console, every=_EVERY)

        def over() -> bool:
            line.check()
            return requested.is_set()

        with stop_requested() as requested:
            line.start()
            try:
                ended = generation.run(over)
            finally:
                line.stop()
            line.check()
            status = requested.status
        print_lines(
            console, *(f"Attempts failed, set aside: {at}" for at in ended.set_aside)
        )
        print_lines(console, *filter(None, [ended_early(ended.early)]))
        if failed := ended.failed:
            table = generation.folder / "failures.csv"
            console.print(
                f"{counted(failed, 'simulation')} failed permanently: {table}",
                style="red",
            )
    generation.close()
    numbers = archive.complete()
    complete = len(numbers)
    fields = int(archive.steps()[numbers].sum()) * archive.spec.step_bytes
    of_all = counted(archive.simulations, "simulation")
    print_lines(
        console,
        f"Data set: {archive.path}, {complete} of {of_all}, "
        f"{archive.held_out} of them held out; {format_bytes(archive.size())} on disk, "
        f"{format_bytes(fields)} of fields",
    )
    if complete < len(generation.planned):
        print_lines(
            console, "Type the same command again for the simulations that are missing."
        )
    if complete > archive.held_out:
        print_lines(
            console,
            f"Next: surrogate-flow fit --data {archive.path} --model fully_connected "
            "--trainer.max_epochs 10",
        )
    return status
