"""What recipes and a command line give, checked against the classes that take it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as L

from surrogate_flow.cli.checks import overrides, spelling
from surrogate_flow.data.online import OnlineData
from surrogate_flow.fields.names import RecipeError, class_at
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = [
    "check",
    "check_cluster",
    "check_complete",
    "check_option",
    "check_prefix",
]

_OWNERS = {"--data": OnlineData, "--model": Surrogate, "--trainer": L.Trainer}
_LINKED = {"--data": (), "--model": ("spec",)}


def check(option: str, path: Path) -> None:
    """Refuse a recipe with a mistake in it, naming the nearest valid word."""
    spelling.check_recipe(path, _OWNERS[option])


def check_cluster(path: Path) -> None:
    """Refuse the recipe of a cluster with a mistake in it."""
    spelling.check_recipe(path, OnlineData, "cluster")


def check_option(
    option: str,
    dotted: str,
    value: str,
    path: str | None,
    earlier: Sequence[tuple[str, str]] = (),
) -> None:
    """Refuse a dotted override that names no argument.

    Parameters
    ----------
    option, dotted, value : str
        Of ``--data.solver.cells [4, 4]``.
    path : str, optional
        Of the recipe, or of the class that stands in its place.
    earlier : sequence of (str, str)
        What else was set before, of which classes change what is known.
    """
    recipe, owner = _settings(option, path, earlier)
    try:
        spelling.check_override(dotted, value, recipe, owner)
    except RecipeError as error:
        raise RecipeError(f"{option}.{dotted}: {error}") from error


def check_complete(option: str, path: str, given: Sequence[tuple[str, str]]) -> None:
    """Refuse a recipe with its overrides that leave out what some class needs."""
    recipe, owner = _settings(option, path, given)
    try:
        overrides.check_whole(recipe, owner, _LINKED[option])
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def check_prefix(option: str) -> None:
    """Refuse ``--simulations``, an argument without ``--data.`` in front of it."""
    name = option.removeprefix("--").partition(".")[0]
    for owner, class_ in _OWNERS.items():
        if name in inspect.signature(class_).parameters:
            raise RecipeError(
                f"unknown option {option!r}. Did you mean "
                f"'{owner}.{option.removeprefix('--')}'?"
            )


def _settings(
    option: str, path: str | None, given: Sequence[tuple[str, str]]
) -> tuple[dict[str, Any], Any]:
    is_file = path is not None and Path(path).is_file()
    recipe = spelling.read_recipe(Path(path)) if is_file and path else {}
    class_path = recipe.get("class_path", None if is_file else path)
    owner = class_at(class_path) if class_path else _OWNERS[option]
    for dotted, value in given:
        recipe = overrides.overridden(recipe, dotted, value, owner)
    return recipe, owner
