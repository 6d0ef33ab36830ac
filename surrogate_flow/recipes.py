"""Recipes: YAML files that name a workflow or a model, and classes as plain values.

A recipe names classes by their import path; the class path is the registry. What it
gets wrong is said here, before anything starts, with the nearest valid name.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surrogate_flow.nearest import nearest, public_path, with_present_names

__all__ = ["RecipeError", "class_at", "find_recipe", "is_data_set", "plain_recipe"]

_PLAIN = (str, int, float, bool, type(None))


class RecipeError(ValueError):
    """A recipe is missing, or names something that does not exist."""


def _shipped(kind: str) -> dict[str, Path]:
    """Return the recipes beside the package (a checkout) or of its wheel."""
    root = Path(__file__).resolve().parent.parent
    beside = root / kind
    if (root / "setup.cfg").is_file():
        return {path.stem: path for path in sorted(beside.glob("*.yaml"))}
    installed = importlib.metadata.files("surrogate-flow") or []
    return {
        file.stem: Path(str(file.locate()))
        for file in installed
        if file.suffix == ".yaml" and file.parent.name == Path(kind).name
    }


def find_recipe(kind: str, name: str) -> Path:
    """Return the path of a recipe, given as one or by the name of a shipped one.

    Parameters
    ----------
    kind : {"workflows", "workflows/clusters", "models"}
        The folder that holds the shipped ones.
    name : str
        Such as ``"workflows/heat2d.yaml"`` or ``"heat2d"``; a bare name is that of a
        shipped one before that of a file.

    Raises
    ------
    RecipeError
        If there is no such file and no such name.
    """
    path = Path(name)
    shipped = _shipped(kind)
    # First: a program, say, may bear the name of what it solves.
    if name in shipped:
        return shipped[name]
    if path.is_file():
        return path
    raise RecipeError(
        f"No recipe {name!r}: there is no such file in {Path.cwd()}, and none of that "
        f"name is shipped in {kind}. {nearest(path.stem, shipped)} Give a path to your "
        "own YAML file, or one of these names."
    )


def is_data_set(name: str) -> bool:
    """Whether ``--data`` names a data set on disk, and no workflow.

    A folder does, by its path or with a data set in it; by its bare name alone only
    where no shipped workflow has that name.
    """
    path = Path(name)
    if path.suffix == ".zarr":
        return True
    sure = "/" in name or (path / "zarr.json").is_file()
    return path.is_dir() and (sure or name not in _shipped("workflows"))


def class_at(class_path: str) -> Any:
    """Import what a class path names.

    Raises
    ------
    RecipeError
        If the module or the name does not exist, with the nearest name that does.
    """
    if not isinstance(class_path, str) or "." not in class_path:
        raise RecipeError(
            f"class_path: expected 'package.module.Class', got {class_path!r}."
        )
    module_name, _, name = with_present_names(class_path).rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        first = module_name.partition(".")[0]
        beside = Path(f"{first}.py").is_file() or Path(first).is_dir()
        remedy = f" {first} is in this folder: put PYTHONPATH=. in front of the command"
        raise RecipeError(
            f"class_path {class_path!r}: cannot import {module_name!r} ({error}). "
            "Expected 'package.module.Class', installed in this environment or on "
            f"PYTHONPATH.{f'{remedy}.' if beside else ''}"
        ) from error
    try:
        return getattr(module, name)
    except AttributeError:
        names = getattr(module, "__all__", None) or [
            n for n, v in vars(module).items() if inspect.isclass(v)
        ]
        raise RecipeError(
            f"class_path {class_path!r}: {module_name!r} has no {name!r}. "
            f"{nearest(name, names)}"
        ) from None


def plain_recipe(factory: Any) -> dict[str, Any]:
    """Return a class, or a partial of one, as ``{"class_path", "init_args"}``.

    Examples
    --------
    >>> from functools import partial
    >>> from surrogate_flow.nn import FullyConnected
    >>> plain_recipe(partial(FullyConnected, widths=[8]))["init_args"]
    {'widths': [8]}

    Raises
    ------
    RecipeError
        If an argument is not plain: a checkpoint holds data, never code.
    """
    keywords: dict[str, Any] = {}
    if isinstance(factory, functools.partial):
        # jsonargparse binds the class as the first argument of its own constructor
        # function.
        inner = [factory.func, *factory.args]
        keywords, factory = factory.keywords, inner[-1]
    if not inspect.isclass(factory):
        raise RecipeError(
            f"Expected a class, or functools.partial of a class with keywords, got "
            f"{factory!r}. Anything else could not be rebuilt from a checkpoint."
        )
    return {
        "class_path": public_path(factory),
        "init_args": {
            k: _plain(v, f"{factory.__name__}.{k}") for k, v in keywords.items()
        },
    }


def _plain(value: Any, place: str) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v, place) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{place}.{k}") for k, v in value.items()}
    raise RecipeError(
        f"{place}: expected numbers, text, lists or mappings, got "
        f"{type(value).__name__}. A checkpoint holds data, never code: give the "
        "argument as a name that the network looks up itself."
    )
