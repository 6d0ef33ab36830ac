"""One command of this package in a process of its own, with its output in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from surrogate_flow.fields.errors import UserError
from surrogate_flow.files import last_lines
from surrogate_flow.report.console import print_lines

__all__ = ["RunError", "run_command", "running"]

_POLL_SECONDS = 0.5  # between updates of the status line
_TAIL = 20  # lines of the log in an error


class RunError(UserError, RuntimeError):
    """A command has failed."""


def run_command(words: Sequence[str], log: Path, title: str, console: Console) -> None:
    """Run a command of this package, and show the last line of its output meanwhile.

    Parameters
    ----------
    words : sequence of str
        The command, such as ``fit``, and its arguments.
    log : Path
        Takes the output; its folder is made.
    title : str
        What runs.
    console : rich.console.Console

    Raises
    ------
    RunError
        If it fails, with the end of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "surrogate_flow", *words]
    with (
        console.status(title) as status,
        running(command, log, title, console) as process,
    ):
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
            newest = "".join(last_lines(log, 1))
            status.update(f"{title}: {newest}"[: console.width - 4])
    if process.returncode:
        said = "\n".join(last_lines(log, _TAIL))
        raise RunError(
            f"{title}: the run failed (exit status {process.returncode}). "
            f"{log} ends with:\n{said}"
        )
    print_lines(console, f"{title}: done")


@contextlib.contextmanager
def running(
    command: Sequence[str],
    log: Path,
    title: str,
    console: Console,
    *,
    end_seconds: float = 600.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process; on an early exit interrupt it, and kill it if it does not end.

    Parameters
    ----------
    command : sequence of str
    log : Path
    title : str
    console : rich.console.Console
    end_seconds : float
        For a run to validate, save and end, with its jobs.
    """
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            # Ctrl-C at a terminal reaches it once, from here.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            _interrupt(process, f"{title} ({log})", console, end_seconds)


def _interrupt(
    process: subprocess.Popen[bytes], title: str, console: Console, seconds: float
) -> None:
    process.send_signal(signal.SIGINT)
    print_lines(
        console,
        f"{title}: validates, saves and ends, within {seconds:g} s. Ctrl-C kills it.",
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        print_lines(
            console,
            f"{title}: did not end within {seconds:g} s, and was killed. Usual causes: "
            "a long validation, or a solver that hangs; the log says which. Type the "
            "same command again, with fewer --data.held_out or with "
            "--data.faults.step_timeout if need be.",
        )
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
