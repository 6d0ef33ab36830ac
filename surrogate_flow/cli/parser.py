"""The parser of all commands; nothing here imports torch or Lightning."""

from __future__ import annotations

import re
from argparse import Action, ArgumentError
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import (
    ArgumentParser,
    DefaultHelpFormatter,
    _typehints,
    get_loader,
    set_loader,
)
from yaml import YAMLError

from surrogate_flow.cli import explain
from surrogate_flow.cli.hints import known_classes
from surrogate_flow.cli.recipes import WRAPPING, CommandLine
from surrogate_flow.fields.errors import UserError, raised_by_user
from surrogate_flow.fields.names import class_at, with_present_names

__all__ = ["Parser", "parse"]

# Files of version 0.1 name classes by paths that have changed.
_load_yaml = get_loader("yaml")


def _load(text: str) -> Any:
    """Read YAML; jsonargparse hands a null on to a class within a class as ``None``."""
    return None if text == "None" else with_present_names(_load_yaml(text))


set_loader("yaml", _load, (YAMLError,))


def _discard(_: Any, before: Any, named: Any) -> None:
    """Leave another class its own defaults; jsonargparse keeps all that it would take.

    A capacity that is right for one policy, or a rate for one optimizer, would silently
    be that of the next.
    """
    paths = (before or {}).get("class_path"), named["class_path"]
    if paths[0] in (None, paths[1]) or class_at(paths[0]) is class_at(paths[1]):
        return
    for key in WRAPPING[1:]:
        before.pop(key, None)


class _HelpFormatter(DefaultHelpFormatter):
    def _get_help_string(self, action: Action) -> str:
        """Name the classes that matter, of hundreds."""
        text = super()._get_help_string(action)
        return re.sub(
            r"(?<=known subclasses: )[\w., ]+",
            lambda found: known_classes(action.dest, found[0].split(", ")),
            text,
        )


class Parser(ArgumentParser):
    """jsonargparse's parser, whose errors are one line each.

    Attributes
    ----------
    owner : class or function, optional
        Whose arguments it parses, if jsonargparse has made it for one.
    """

    owner: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _HelpFormatter, **kwargs})

    def add_class_arguments(
        self, theclass: Any, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Remember whose arguments these are."""
        self.owner = self.owner if nested_key else theclass
        added = super().add_class_arguments(theclass, nested_key, *args, **kwargs)
        return list(added)

    def add_function_arguments(
        self, function: Any, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Remember whose arguments these are."""
        self.owner = self.owner if nested_key else function
        added = super().add_function_arguments(function, nested_key, *args, **kwargs)
        return list(added)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong, in words for users.

        Raises
        ------
        ParserError
            An inner parser raises argparse's error, whose text the outer one finds.
        """
        error = explain.innermost(message)
        parser = getattr(ex, "subcommand_parser", None) or self
        theirs = None if "No module named" in message else raised_by_user(ex)
        error = error or (explain.ParserError(str(theirs)) if theirs else None)
        error = error or explain.Complaint(message, parser, self.owner).explained()
        if self.owner is None:
            raise error from ex
        raise ArgumentError(None, explain.shielded(error)) from ex


def parse(line: CommandLine, act: Callable[[list[str]], Any]) -> Any:
    """Act on the words of a command line; explain what the parser refuses in them.

    Raises
    ------
    UserError
        If something in it is wrong.
    """
    theirs = _typehints.discard_init_args_on_class_path_change
    try:
        _typehints.discard_init_args_on_class_path_change = _discard
        return act(line.words)
    except explain.ParserError as error:
        again = line.with_dict_kwargs(error.word) if error.passes_on else line
        if again == line:
            raise UserError(explain.placed(error, line)) from error
    finally:
        _typehints.discard_init_args_on_class_path_change = theirs
    return parse(again, act)
