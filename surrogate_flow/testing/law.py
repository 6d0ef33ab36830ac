"""A law: one sentence that holds, or is broken with what was expected and got."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from surrogate_flow.fields.errors import UserError, line_of

__all__ = ["LawBroken", "Laws"]


class LawBroken(UserError, AssertionError):
    """An object breaks a law that a study relies on.

    Attributes
    ----------
    kept : list of str
        The laws that were tried before, and hold.
    """

    status = 1
    kept: list[str] = []  # noqa: RUF012 - replaced, never changed


class Laws(list[str]):
    """The laws that an object keeps, in the order in which they were tried.

    Attributes
    ----------
    pace : float
        Steps a second, of a solver that was set up; 0 where none was measured.
    cast : str
        Which variables of a solver come in another type than they are kept in.
    """

    pace = 0.0
    cast = ""

    @contextmanager
    def law(self, sentence: str) -> Iterator[None]:
        """Try one law: note it at the end of the block, unless that raises.

        Raises
        ------
        LawBroken
            With the sentence, and the message of what the block raises, SystemExit too.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            said = str(error).strip() or type(error).__name__
            if not isinstance(error, AssertionError | UserError):
                said = f"{type(error).__name__}: {said}{line_of(error)}"
            broken = LawBroken(f"Broken law: {sentence}.\n{said}")
            broken.kept = list(self)
            raise broken from error
        self.append(sentence)
