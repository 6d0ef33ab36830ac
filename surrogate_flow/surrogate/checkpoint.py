"""Checkpoints: data, never code, and what differs when one does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from surrogate_flow.fields.names import first_difference, with_present_names

__all__ = ["FORMAT", "KEY", "read", "require_same"]

KEY = "surrogate"  # of the surrogate's recipe, within Lightning's checkpoint
FORMAT = 1


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the recipe of a surrogate and the state of its tensors.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is cut off, holds code, or was written by something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"No checkpoint {str(path)!r} in {Path.cwd()}. A run keeps its own in "
            "runs/<workflow>/<time>/checkpoints/."
        )
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # What is damaged makes the reader fail in a dozen ways.
        raise ValueError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}). It is "
            "cut off, or holds more than data, which is never executed."
        ) from error
    recipe = recipe_of(saved, str(path))
    if not isinstance(saved.get("state_dict"), dict):
        raise ValueError(f"{path}: expected the state of a network, got none.")
    return recipe, saved["state_dict"]


def recipe_of(saved: Any, place: str) -> dict[str, Any]:
    """Return the recipe within a loaded checkpoint.

    Raises
    ------
    ValueError
        If there is none, or it is of another format.
    """
    recipe = saved.get(KEY) if isinstance(saved, dict) else None
    if not isinstance(recipe, dict) or recipe.get("format") != FORMAT:
        got = recipe.get("format") if isinstance(recipe, dict) else "no such entry"
        raise ValueError(
            f"{place}: expected a surrogate of format {FORMAT}, got {got}. It was "
            "written by another program, or by another version of this one."
        )
    return cast(dict[str, Any], with_present_names(recipe))


def require_same(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose recipe is not mine.

    Raises
    ------
    ValueError
        Naming the first difference, and both values.
    """
    theirs = recipe_of(saved, "The checkpoint")
    for key, value in mine.items():
        if theirs.get(key) != value:
            raise ValueError(
                f"The checkpoint is of another {key}: expected "
                f"{first_difference(value, theirs.get(key))}. Use the recipes that "
                "it was trained with (config.yaml in its run's folder)."
            )
