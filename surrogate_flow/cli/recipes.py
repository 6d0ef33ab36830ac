"""Recipes: YAML files that name a workflow or a model, and classes as plain values.

A recipe names classes by their import path; the class path is the registry. What it
gets wrong is said here, before anything starts, with the nearest valid name.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path

from surrogate_flow.fields.names import RecipeError, nearest

__all__ = ["find_recipe", "is_data_set"]


def _shipped(kind: str) -> dict[str, Path]:
    """Return the recipes beside the package (a checkout) or of its wheel."""
    root = Path(__file__).resolve().parents[2]
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
