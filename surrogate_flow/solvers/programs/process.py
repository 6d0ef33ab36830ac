"""External programs as solvers: one process for each run, and whatever it starts."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import selectors
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
from surrogate_flow.fields.errors import ArgumentError, MissingFileError
from surrogate_flow.fields.inputs import split_inputs
from surrogate_flow.fields.quantities import counted
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.solvers.programs.blocks import Reception
from surrogate_flow.solvers.programs.channel import VARIABLE, Channel, StreamError
from surrogate_flow.solvers.solver import Ended, Run, Solver
from surrogate_flow.threads import LoudThread

__all__ = ["ProcessError", "ProcessRun", "ProcessSolver", "TooFewSteps"]

logger = logging.getLogger(__name__)

_POLL = 0.02  # seconds between two looks at the files and at the process
_TAIL, _ROOM = 20, 4096  # lines and bytes of what it has printed that an error quotes
_NOT_FOUND = 126, 127  # exit codes of shells and of loaders
_GRACE = 2.0  # seconds between SIGTERM and SIGKILL
_LINGERS = 60.0  # seconds that a program may live on after its last step

# Kills the process group that it is told when the pipe on its stdin closes, which the
# kernel does when the worker dies, however that happens.
_GUARD = 'read group && { read line; kill -s KILL -- "-$group"; }'


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
            except (
                ProcessError,
                MissingFileError,
                StreamError,
                SpecMismatch,
            ) as error:
                # Whole steps that came before it count.
                while (steps := reception.batch(all=True)) is not None:
                    yield steps
                    reception.free(steps.sizes["time"])
                if isinstance(error, StreamError):
                    raise program.failed(str(error)) from error
                raise


def _received(program: _Program, reception: Reception) -> Iterator[xr.Dataset]:
    """Yield the steps that arrive, until the program has ended."""
    times, count, due = np.asarray(reception.spec.times), 0, 0.0
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
            if time.monotonic() > due:
                program.run.check()
                program.check_time()
                due = time.monotonic() + _POLL
            continue
        program.check()
        if reception.stuck:
            raise StreamError(reception.stuck)
        if over or (count >= len(times) and program.lingers()):
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
    of it. What it prints is read all the time, and only its end is kept: errors quote
    the last lines of stderr, or of stdout where stderr is empty.

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
        if timeout is not None and not timeout > 0:
            name = f"{type(self).__name__}: timeout"
            raise ArgumentError(name, "seconds > 0, or none", timeout)
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
            If the program fails or takes too long.
        MissingFileError
            If it is not there, or cannot be executed.
        """
        with (
            contextlib.closing(_channel(run.folder)) as channel,
            contextlib.closing(_Program(self, run, channel)) as program,
        ):
            fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(Run)}
            steps = self.read(ProcessRun(**fields, program=program))
            steps = _last_at_end(steps, self.spec.times[-1], program)
            if self.may_end_early:
                steps = _shorter(steps, run.first_step, program)
            yield from steps

    @final
    def solve(self, parameters: Mapping[str, Any]) -> Iterator[xr.Dataset]:
        """Run the program once, in a temporary folder."""
        numbers, fields = split_inputs(self.spec, parameters)
        with TemporaryDirectory() as folder:
            yield from self.start(Run(numbers, folder=Path(folder), inputs=fields))


def _last_at_end(
    steps: Iterator[xr.Dataset], end: float, program: _Program
) -> Iterator[xr.Dataset]:
    """Yield steps, the last of them once the program has ended well.

    A simulation with all of its steps is complete, and its program may fail yet.
    """
    held = None
    try:
        for dataset in steps:
            if held is not None:  # One more is refused by what takes them.
                yield held
                held = None
            axis = dataset.variables.get("time")
            last = np.ravel([] if axis is None else axis.values)[-1:]
            if (abs(last - end) <= 1e-6 * abs(end)).any():
                held = dataset.isel(time=slice(-1, None)).copy(deep=True)
                dataset = dataset.isel(time=slice(-1))
                if not dataset.sizes["time"]:
                    continue
            yield dataset
        program.finish()
        if held is not None:
            yield held
    finally:
        if isinstance(steps, Generator):
            steps.close()


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
    """A process, the end of what it prints, and its deadline."""

    def __init__(self, solver: ProcessSolver, run: Run, channel: Channel) -> None:
        self.run, self.channel = run, channel
        self._name = type(solver).__name__
        self._deadline = time.monotonic() + (solver.timeout or float("inf"))
        self._timeout, self._complete = solver.timeout, 0.0
        command = list(map(str, solver.command(run)))
        self._first = command[0]
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        try:
            self.process = self._start(command, solver.environment(run))
        except BaseException:
            self._end_guard()
            raise
        assert self._guard.stdin is not None
        self._guard.stdin.write(b"%d\n" % self.process.pid)
        self._pipes = {"stderr": self.process.stderr, "stdout": self.process.stdout}
        self._printed = dict.fromkeys(self._pipes, b"")
        self._reader = LoudThread(self._drain, "output")
        self._reader.start()

    def _start(
        self, command: list[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        variables = {**os.environ, **environment, VARIABLE: self.channel.address}
        try:
            return subprocess.Popen(
                command,
                cwd=self.run.folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                # A process group of its own, which is ended as one.
                start_new_session=True,
            )
        except OSError as error:
            missing = str(error.filename) == self._first
            raise (MissingFileError if missing else ProcessError)(
                f"{self._name}: {self._first!r} cannot be started ({error}). Install "
                "it where the workers run, on their PATH."
            ) from error

    def _end_guard(self) -> None:
        self._guard.kill()
        self._guard.wait()
        assert self._guard.stdin is not None
        self._guard.stdin.close()

    def _drain(self) -> None:
        with selectors.DefaultSelector() as selector:
            for name, pipe in self._pipes.items():
                assert pipe is not None
                selector.register(pipe, selectors.EVENT_READ, name)
            while selector.get_map():
                for key, _ in selector.select():
                    if some := os.read(key.fd, 1 << 16):
                        end = (self._printed[key.data] + some)[-_ROOM:]
                        self._printed[key.data] = end
                    else:
                        selector.unregister(key.fileobj)

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
            if self.lingers():
                logger.warning(
                    "%s: %r lives on %g s after its last step, simulation %s, and is "
                    "ended.",
                    *(self._name, self._first, _LINGERS, self.run.simulation),
                )
                return
            time.sleep(_POLL)
        self.check()

    def lingers(self) -> bool:
        """Whether it has not ended for long; call it when all steps have come."""
        now = time.monotonic()
        self._complete = self._complete or now
        return now - self._complete > _LINGERS

    def failed(self, what: str) -> ProcessError | MissingFileError:
        """Return how it ended, if it does so in a moment; if not badly, what it did."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE)
        try:
            self.check()
        except (ProcessError, MissingFileError) as error:
            return error
        return self.error(what)

    def error(
        self, what: str, kind: type[ProcessError] | None = None
    ) -> ProcessError | MissingFileError:
        """Return an error that quotes what it has printed."""
        if self.process.poll() is not None:
            # What it started may hold the pipe open: no longer than a moment.
            self._reader.join(_GRACE)
        quoted = " Its stderr and stdout are empty."
        for name, printed in self._printed.items():
            lines = printed.decode("utf-8", "replace").strip().splitlines()[-_TAIL:]
            if lines:
                silent = "stderr is empty, its " * (name == "stdout")
                quoted = f" Its {silent}{name} ends:\n" + "\n".join(lines)
                break
        missing = self.process.returncode in _NOT_FOUND
        regular = " If a run may end early, set may_end_early: true."
        return (MissingFileError if missing else kind or ProcessError)(
            f"{self._name}: {self._first!r} {what}, simulation {self.run.simulation}."
            f"{regular * (kind is TooFewSteps)}{quoted}"
        )

    def _outside(self) -> Iterator[int]:
        """Yield what it has started that has left its group, where there is /proc."""
        mark = f"{VARIABLE}={self.channel.address}".encode()
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir("/proc"):
                if name.isdigit() and int(name) > self.process.pid:
                    with contextlib.suppress(OSError):
                        environ = Path("/proc", name, "environ").read_bytes()
                        if mark in environ.split(b"\0"):
                            yield int(name)

    def close(self) -> None:
        """End the process and all that it has started."""
        group = self.process.pid
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
            if self.process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_GRACE)
            # Also what outlived the leader of the group.
            os.killpg(group, signal.SIGKILL)
        self.process.wait()
        for process in self._outside():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._end_guard()
        self._reader.join(_GRACE)
        for pipe in self._pipes.values():
            if pipe is not None and not self._reader.is_alive():
                pipe.close()
