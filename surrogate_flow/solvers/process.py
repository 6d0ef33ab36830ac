"""External programs as solvers: one process for each run, and whatever it starts."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import numpy as np
import xarray as xr

from surrogate_flow.fields.encoder import SpecMismatch
from surrogate_flow.fields.quantities import counted
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.solvers.channel import VARIABLE, Channel, Reception, StreamError
from surrogate_flow.solvers.solver import Ended, Run, Solver
from surrogate_flow.threads import LoudThread

__all__ = ["ProcessError", "ProcessRun", "ProcessSolver", "TooFewSteps"]

_POLL = 0.02  # seconds between two looks at the files and at the process
_TAIL = 20  # lines of stderr that an error quotes
_GRACE = 2.0  # seconds between SIGTERM and SIGKILL

# Kills a process group when the pipe on its stdin closes, which the kernel does when
# the worker dies, however that happens.
_GUARD = 'read line; kill -s KILL -- "-$1"'


class ProcessError(RuntimeError):
    """A program has failed, took too long, or has ended without all of its steps."""


class TooFewSteps(ProcessError):
    """A program has ended with exit code 0, and before its last step."""


@dataclass(frozen=True)
class ProcessRun(Run):
    """A run whose program has been started in `folder`."""

    program: _Program | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the program has ended, with exit code 0."""
        assert self.program is not None, "ProcessSolver sets it"
        return self.program.process.poll() == 0

    def check(self) -> None:
        """Raise `Stopped`, or `ProcessError` if the program has failed."""
        assert self.program is not None, "ProcessSolver sets it"
        self.program.run.check()
        self.program.check()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`, such as ``path.exists``; raises as `check` does."""
        assert self.program is not None, "ProcessSolver sets it"
        while not ready():
            ended = self.program.process.poll() is not None
            self.check()
            # What it wrote just before its end counts.
            if ended and not ready():
                what = "ended before it wrote all steps"
                raise self.program.error(what, TooFewSteps)
            time.sleep(_POLL)

    def stream(self, spec: FieldSpec) -> Iterator[xr.Dataset]:
        """Yield the steps that the program sends by the calls of `surrogate_flow.h`.

        Raises
        ------
        ProcessError
            If it fails, ends without all of them, or sends something else.
        SpecMismatch
            If they are not as the spec says.
        """
        assert self.program is not None, "ProcessSolver sets it"
        program = self.program
        with contextlib.ExitStack() as resources:
            reception = Reception(program.channel, spec, self.simulation)
            resources.callback(reception.close)
            # Its end is looked for every 20 ms where there is no such descriptor.
            with contextlib.suppress(AttributeError, OSError):
                ending = os.pidfd_open(program.process.pid)
                resources.callback(os.close, ending)
                reception.wake_by(ending)
            try:
                yield from _received(program, reception)
            except (ProcessError, StreamError, SpecMismatch) as error:
                # Whole steps that came before it count.
                while (steps := reception.batch(all=True)) is not None:
                    yield steps
                    reception.free(steps.sizes["time"])
                if isinstance(error, StreamError):
                    raise program.failed(str(error)) from error
                raise


def _received(program: _Program, reception: Reception) -> Iterator[xr.Dataset]:
    """Yield the steps that arrive, until the program has ended."""
    times, count = np.asarray(reception.spec.times), 0
    # Until it has ended: a second program may connect when the first has closed.
    while True:
        ended = program.process.poll() is not None
        came = reception.receive(_POLL)
        over = ended and not came
        while (steps := reception.batch(all=over or reception.ended)) is not None:
            if not count:
                # It may begin where an earlier attempt has ended.
                count = int(np.abs(times - steps["time"].values[0]).argmin())
            count += steps.sizes["time"]
            yield steps
            reception.free(steps.sizes["time"])
            came = True  # There is room for more.
        if came:
            program.run.check()
            program.check_time()
            continue
        program.check()
        if reception.stuck:
            raise StreamError(reception.stuck)
        if over:
            break
    if count < len(times):
        what = f"has sent {count} of {counted(len(times), 'step')}"
        if reception.lacking:
            raise StreamError(f"{what}{reception.lacking}")
        program.check()
        raise program.error(what, TooFewSteps)


class ProcessSolver(Solver):
    """parameters -> program -> files -> steps: one process for each run.

    A subclass defines the command and reads, step by step, what it writes into
    `run.folder`, its working directory, which is removed after the run. The program and
    all that it starts are ended with the run, whatever ends that: the last step, an
    error, the end of the study, or the death of the worker.

    Parameters
    ----------
    timeout : float, optional
        Seconds that a run of the program may take; without end by default.

    Notes
    -----
    The program writes a file under another name and renames it, or `read` may find half
    of it. Its stderr is drained all the time; errors quote the last lines.

    Examples
    --------
    >>> class Steps(ProcessSolver):
    ...     spec = ...  # as of any solver
    ...     def command(self, run):
    ...         return ["my-program", "--rate", str(run.parameters["rate"])]
    ...     def read(self, run):
    ...         for k in range(self.spec.steps):
    ...             path = run.folder / f"step_{k}.nc"
    ...             run.wait(path.exists)
    ...             yield xr.load_dataset(path)
    """

    timeout: float | None = None
    #: Whether a program that ends with exit code 0 before its last step has not failed.
    may_end_early: bool = False

    def __init__(self, timeout: float | None = None) -> None:
        self.timeout = timeout

    @abstractmethod
    def command(self, run: Run) -> Sequence[str]:
        """Return the command line; input files may be written into `run.folder`."""

    @abstractmethod
    def read(self, run: ProcessRun) -> Iterator[xr.Dataset]:
        """Yield the steps as the program writes them, as `Solver.solve` does."""

    def environment(self, run: Run) -> Mapping[str, str]:
        """Return variables to set for the program, beside those of the worker."""
        return {"OMP_NUM_THREADS": str(run.cores)}

    @final
    def start(self, run: Run) -> Iterator[xr.Dataset]:
        """Run the program and yield what `read` yields.

        Raises
        ------
        ProcessError
            If the program cannot be started, fails or takes too long.
        """
        with (
            contextlib.closing(_channel(run.folder)) as channel,
            contextlib.closing(_Program(self, run, channel)) as program,
        ):
            fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(Run)}
            steps = self.read(ProcessRun(**fields, program=program))
            if self.may_end_early:
                steps = _shorter(steps, run.first_step, program)
            yield from steps
            program.finish()

    @final
    def solve(self, parameters: Mapping[str, Any]) -> Iterator[xr.Dataset]:
        """Run the program once, in a temporary folder."""
        given = {v.name for v in self.spec.inputs}
        numbers = {k: v for k, v in parameters.items() if k not in given}
        fields = {k: v for k, v in parameters.items() if k in given}
        with TemporaryDirectory() as folder:
            yield from self.start(Run(numbers, folder=Path(folder), inputs=fields))


def _shorter(
    steps: Iterator[xr.Dataset], first: int, program: _Program
) -> Iterator[xr.Dataset]:
    """Yield steps, of which there may be fewer than usual, one at least.

    Then the program must end with exit code 0.
    """
    some = first > 0
    try:
        for dataset in steps:
            some = True
            yield dataset
    except TooFewSteps as error:
        if not some:
            raise
        program.finish()
        raise Ended("its program has ended") from error
    finally:
        if isinstance(steps, Generator):
            steps.close()


def _channel(folder: Path) -> Channel:
    try:
        return Channel(folder)
    except OSError as error:
        raise ProcessError(
            f"No socket can be made in {folder} ({error}). Set Dask's option "
            "temporary-directory to a folder on a local disk."
        ) from error


class _Program:
    """A process, the tail of its stderr, and its deadline."""

    def __init__(self, solver: ProcessSolver, run: Run, channel: Channel) -> None:
        self.run, self.channel = run, channel
        self._name = type(solver).__name__
        self._deadline = time.monotonic() + (solver.timeout or float("inf"))
        self._timeout = solver.timeout
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL)
        command = list(map(str, solver.command(run)))
        self._first = command[0]
        try:
            self.process = subprocess.Popen(
                command,
                cwd=run.folder,
                env={
                    **os.environ,
                    **solver.environment(run),
                    VARIABLE: channel.address,
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                # A process group of its own, which is ended as one.
                start_new_session=True,
            )
        except OSError as error:
            raise ProcessError(
                f"{self._name}: {self._first!r} cannot be started ({error}). Install "
                "it where the workers run, on their PATH."
            ) from error
        try:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", str(self.process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise
        self._reader = LoudThread(self._drain, "stderr")
        self._reader.start()

    def _drain(self) -> None:
        assert self.process.stderr is not None
        self._tail.extend(self.process.stderr)

    def check(self) -> None:
        """Raise if it has failed or takes too long."""
        self._reader.check()
        code = self.process.poll()
        if code:
            names = {s.value: s.name for s in signal.Signals}
            ended = f"was ended by {names.get(-code, f'signal {-code}')}"
            raise self.error(ended if code < 0 else f"ended with exit code {code}")
        self.check_time()

    def check_time(self) -> None:
        """Raise if it takes too long."""
        if self.process.poll() is None and time.monotonic() > self._deadline:
            raise self.error(f"took longer than {self._timeout:g} s (timeout)")

    def finish(self) -> None:
        """Wait for the end of a program whose steps have all been read."""
        while self.process.poll() is None:
            self.run.check()
            self.check()
            time.sleep(_POLL)
        self.check()

    def failed(self, what: str) -> ProcessError:
        """Return how it ended, if it does so in a moment; if not badly, what it did."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE)
        try:
            self.check()
        except ProcessError as error:
            return error
        return self.error(what)

    def error(self, what: str, kind: type[ProcessError] | None = None) -> ProcessError:
        """Return an error that quotes stderr."""
        kind = kind or ProcessError
        if self.process.poll() is not None:
            # What it started may hold the pipe open: no longer than a moment.
            self._reader.join(_GRACE)
        tail = "".join(self._tail).strip()
        quoted = f" Its stderr ends:\n{tail}" if tail else " Its stderr is empty."
        regular = " If a run may end early, set may_end_early: true."
        return kind(
            f"{self._name}: {self._first!r} {what}, simulation {self.run.simulation}."
            f"{regular * (kind is TooFewSteps)}{quoted}"
        )

    def close(self) -> None:
        """End the process and all of its group."""
        group = self.process.pid
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
            if self.process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_GRACE)
            # Also what outlived the leader of the group.
            os.killpg(group, signal.SIGKILL)
        self.process.wait()
        self._guard.kill()
        self._guard.wait()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._reader.join(_GRACE)
        assert self.process.stderr is not None
        if not self._reader.is_alive():
            self.process.stderr.close()
