"""Errors that a user can correct, shown in one or two sentences without a traceback."""

from __future__ import annotations

import re
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "ArgumentError",
    "MissingFileError",
    "MissingPackageError",
    "UserError",
    "in_a_line",
    "kind_of",
    "line_at",
    "line_in",
    "line_of",
    "raised_by_user",
    "require_kind",
    "user_error",
    "users_frames",
]


_PACKAGE = str(Path(__file__).parents[1])
# Two full stops, where a message of others ends a sentence of ours.
_TWICE = re.compile(r"(?<!\.)\.\.(?=\s|$)")
_DIFFERS = re.compile(r"\S*[\d/\\]\S*")


class UserError(Exception):
    """What is wrong, what was expected, what was got, and what to do about it.

    The command line shows these without a traceback, what a user's code raises with
    its line, and all other exceptions, which are defects of this package, with one.

    Parameters
    ----------
    what : str
        The argument, file or simulation, and what is wrong with it.
    expected, got : object, optional
        Shown as text, where there is a comparison to make.
    remedy : str, optional
        What the user can type, or where to look.

    Examples
    --------
    >>> print(UserError("data.batch_size", "at least 1", 0, "Raise it."))
    data.batch_size: expected at least 1, got 0. Raise it.
    >>> print(UserError("load failed: ValueError: no such file.."))
    load failed: ValueError: no such file.
    """

    #: Of the command that ends with it.
    status = 2

    def __init__(
        self,
        what: str,
        expected: object = None,
        got: object = None,
        remedy: str = "",
    ) -> None:
        text = what
        if expected is not None:
            text = f"{what.rstrip('.:')}: expected {expected}, got {got}."
        super().__init__(_TWICE.sub(".", f"{text} {remedy}".rstrip()))

    def __reduce__(self) -> tuple[type[UserError], tuple[str]]:
        # Rebuilt from its text: workers send these errors to the trainer.
        return type(self), (str(self),)


class ArgumentError(UserError, ValueError):
    """An argument that its user has chosen is invalid."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that its user has named does not exist."""


class MissingPackageError(UserError, ImportError):
    """A package that an argument needs is not installed."""


def require_kind(what: str, value: object, kind: type, example: str) -> None:
    """Refuse an argument that is no object of a class, such as the class itself.

    Raises
    ------
    ArgumentError
        With an example of one.
    """
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else None
        got = got or (repr(value) if isinstance(value, str) else type(value).__name__)
        raise ArgumentError(what, f"a {kind.__name__}, such as {example}", got)


def user_error(error: BaseException | None) -> UserError | None:
    """Return the error for users that an exception is, or was raised from."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def line_of(error: BaseException) -> str:
    """Return the last line of the user's own code on the way to an error, if any."""
    return line_in(traceback.extract_tb(error.__traceback__))


def raised_by_user(error: BaseException | None) -> UserError | None:
    """Return what code of the user's has raised; what ours has is a defect."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__ if error else None)
    ours = [i for i, f in enumerate(frames, 1) if f.filename.startswith(_PACKAGE)]
    if not (line := line_in(frames[max(ours, default=0) :])):
        return None
    said = f"{type(error).__name__}: {error}."
    if isinstance(error, SystemExit):
        said = (
            f"{error!r}: raise an error instead, or put what ends the process under "
            "if __name__ == '__main__'."
        )
    return UserError(f"{said} {line.strip()}")


def kind_of(message: str) -> str:
    """Return a message without numbers and paths, which differ where the reason is one.

    Examples
    --------
    >>> kind_of("no convergence at t=0.5 in /tmp/17")
    'no convergence at ... in ...'
    """
    return _DIFFERS.sub("...", message)


def in_a_line(message: str, longest: int | None = None) -> str:
    """Return the lines of a message as one; the first and the last of a `longest` one.

    Examples
    --------
    >>> in_a_line("x failed. Its stderr ends:\\nat t = 0.5\\nresidual too large")
    'x failed. Its stderr ends: at t = 0.5 | residual too large'
    >>> in_a_line("x failed. Its stderr ends:\\nat t = 0.5\\nresidual too large", 40)
    'x failed. Its ... residual too large'
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    whole = " | ".join(lines).replace(": | ", ": ")
    if longest is None or len(whole) <= longest:
        return whole
    last = f" {lines[-1][-longest // 2 :]}" if len(lines) > 1 else ""
    return textwrap.shorten(lines[0], longest - len(last), placeholder=" ...") + last


def line_at(generator: object) -> str:
    """Return the line of the user's own code at which a generator waits, if any."""
    while (inner := getattr(generator, "gi_yieldfrom", None)) is not None:
        generator = inner
    frame = getattr(generator, "gi_frame", None)
    return "" if frame is None else line_in(traceback.extract_stack(frame, limit=1))


def line_in(frames: Sequence[traceback.FrameSummary]) -> str:
    """Return the last line of the user's own code in a stack, outermost first."""
    for f in users_frames(frames)[-1:]:
        return f"\nAt {f.filename}:{f.lineno}, in {f.name}: {f.line}"
    return ""


def users_frames(
    frames: Sequence[traceback.FrameSummary],
) -> list[traceback.FrameSummary]:
    """Return those of a stack that are in the user's own code."""

    def own(name: str) -> bool:
        installed = "site-packages" in name or "/lib/python" in name
        installed = installed or name.endswith(".pyx")
        return not installed and not name.startswith((_PACKAGE, "<"))

    return [frame for frame in frames if own(frame.filename)]
