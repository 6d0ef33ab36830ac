"""A command of this package as a process of its own, with its words in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from surrogate_flow.cli.compare.errors import ContestError

__all__ = ["call"]

_POLL = 0.5  # seconds between two looks at what a run says
_END = 600.0  # seconds for a run to validate, save and end, with its jobs
_TAIL = 20  # lines of a run that failed


def call(words: Sequence[str], log: Path, said: str, console: Console) -> None:
    """Run a command; show the last thing that it says.

    Parameters
    ----------
    words : sequence of str
        Of the command, such as ``fit``, and its arguments.
    log : Path
        Takes what it says; its folder is made.
    said : str
        What runs, in words.
    console : rich.console.Console

    Raises
    ------
    ContestError
        If it fails, with the end of what it said.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
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
