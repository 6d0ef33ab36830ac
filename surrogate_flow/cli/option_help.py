"""Help on the options of a workflow, of a model, and of the classes that they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from surrogate_flow.cli.recipes import find_recipe, is_data_set
from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.stored import StoredData
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["show"]

_KINDS = {"data": "workflows", "model": "models"}
_CLASSES = ("surrogate_flow.OnlineData", "surrogate_flow.StoredData")


def show(option: str, value: str | None, recipe: str | None) -> None:
    """Print what an option such as ``--data.solver.help`` asks for.

    Parameters
    ----------
    option : str
        ``--data.help``, ``--model.help``, or with the name of an argument in between
        that is a class of its own.
    value : str, optional
        A class; or a recipe or data set, in place of `recipe`.
    recipe : str, optional
        What was given as ``--data`` or ``--model``, of which the class is then taken.

    Raises
    ------
    RecipeError
        If there is no such recipe.
    """
    kind, *names, _ = option.removeprefix("--").split(".")
    parser = ArgumentParser(prog="surrogate-flow fit", allow_abbrev=False)
    if not names:
        recipe = value or recipe
    stored = kind == "data" and recipe is not None and is_data_set(recipe)
    owner: Any = Surrogate if kind == "model" else OnlineData
    if stored or (recipe or "").rpartition(".")[2] == StoredData.__name__:
        owner = StoredData
    # The spec comes from the data, whatever a command line says.
    parser.add_class_arguments(owner, kind, skip={"spec"})
    if not names:
        if value is not None and not stored and "." not in value:
            find_recipe(_KINDS[kind], value)
        parser.print_help()
        parser.exit()
    if value is None and recipe not in (None, *_CLASSES) and not stored:
        value = _class_in(find_recipe(_KINDS[kind], str(recipe)), names)
    parser.parse_args([option if value is None else f"{option}={value}"])


def _class_in(path: Path, names: Sequence[str]) -> str | None:
    """Return the class that a recipe has for an argument, if any."""
    settings: Any = yaml.safe_load(path.read_text())
    for name in names:
        inside = settings if isinstance(settings, dict) else {}
        settings = inside.get("init_args", inside).get(name)
    found = settings.get("class_path") if isinstance(settings, dict) else settings
    return found if isinstance(found, str) else None
