"""The command line: finds recipes, checks them, and hands over to Lightning.

Dask starts its workers by importing the main script again; so nothing here imports
torch before `main` runs.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from surrogate_flow.recipes import find_recipe

__all__ = ["main"]

_KINDS = {"--data": "workflows", "--model": "models"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``surrogate-flow fit | validate | test | predict``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        words = _with_recipes(words)
        from surrogate_flow import commands

        if words[:1] == ["predict"] and not commands.uses_lightning(words):
            commands.predict(words[1:])
        else:
            commands.train(words)
    except Exception as error:
        ours = _ours(error)
        if ours is None:
            raise
        print(f"surrogate-flow: error: {ours}", file=sys.stderr)
        sys.exit(2)


def _with_recipes(words: Sequence[str]) -> list[str]:
    """Replace the bare names of shipped recipes by their paths."""
    found = []
    previous = ""
    for word in words:
        option, equals, value = word.partition("=")
        if option in _KINDS and equals:
            word = f"{option}={_recipe(option, value)}"
        elif previous in _KINDS and not word.startswith("-"):
            word = _recipe(previous, word)
        found.append(word)
        previous = word
    return found


def _recipe(option: str, value: str) -> str:
    is_class_path = "." in value and Path(value).suffix not in (".yaml", ".yml")
    if is_class_path and not Path(value).exists():
        return value
    path = find_recipe(_KINDS[option], value)
    from surrogate_flow import commands

    commands.check(option, path)
    return str(path)


def _ours(error: BaseException | None) -> BaseException | None:
    """Return the cause whose message was written here, for users, if there is one.

    For all else a traceback helps more.
    """
    package = str(Path(__file__).parent)
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if frames and frames[-1].filename.startswith(package):
            return error
        error = error.__cause__
    return None
