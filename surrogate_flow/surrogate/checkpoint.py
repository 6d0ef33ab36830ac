"""Checkpoints: data, never code."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from surrogate_flow.fields.errors import ArgumentError, MissingFileError
from surrogate_flow.fields.names import (
    RecipeError,
    first_difference,
    public_path,
    subclass_at,
    with_present_names,
)
from surrogate_flow.fields.spec import FieldSpec, of_fields
from surrogate_flow.fields.window import ROLLOUT, SINGLE, Window
from surrogate_flow.files import no_checkpoint
from surrogate_flow.surrogate.conditions import Conditions

__all__ = [
    "FORMAT",
    "KEY",
    "SAME_RECIPES",
    "arguments",
    "batch_of",
    "plain_recipe",
    "plain_window",
    "read",
    "require_same",
    "require_tensors",
    "rows_of",
]

KEY = "surrogate"  # of the surrogate's recipe, within Lightning's checkpoint
FORMAT = 1
SAME_RECIPES = "Use the recipes of that run (config.yaml in its folder)."
_ENTRIES = {"spec", "network", "window", "normalisation"}


def read(
    path: str | Path, *, resumes: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the recipe of a surrogate, with its error, and the state of its tensors.

    Where training `resumes`, weights alone are refused.
    """
    if not Path(path).is_file():
        raise MissingFileError(no_checkpoint(path))
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises a dozen types for a damaged file.
        raise ArgumentError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}). It is "
            "cut off, or holds more than data, which is never executed."
        ) from error
    recipe = _recipe_in(saved, str(path))
    if not isinstance(saved.get("state_dict"), dict):
        raise ArgumentError(f"{path}: expected the state of a network, got none.")
    if resumes and not {"loops", "optimizer_states"} <= saved.keys():
        raise ArgumentError(
            f"{path}: has the weights alone, with which predict, validate and test go "
            "on, but no fit. Name the last.ckpt of a run."
        )
    return {**recipe, "error": _error_in(saved)}, saved["state_dict"]


def rows_of(surrogate: Any) -> list[tuple[str, str]]:
    """Return window, conditions, network, error and device of a surrogate."""
    network, error = surrogate.network, "not known"
    weights = sum(w.numel() for w in network.parameters() if not is_lazy(w))
    if surrogate.error is not None:
        of = "rollouts" if surrogate.error_name == ROLLOUT else "single predictions"
        of = f" of {of}" if surrogate.window.inputs else ""
        error = f"{surrogate.error:.2%}, relative L2{of}"
    return [
        ("window", str(surrogate.window)),
        ("conditions", surrogate.conditions.in_words(surrogate.spec)),
        ("network", f"{type(network).__name__}, {weights:,} weights"),
        ("validation error", error),
        ("device", str(surrogate.device)),
    ]


def batch_of(path: Path) -> int | None:
    """Return after how many batches a checkpoint was written; None if it is damaged."""
    with contextlib.suppress(Exception):  # torch raises a dozen types
        # Mapped: of what may be gigabytes, nothing else is read.
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return int(saved["global_step"])
    return None


def _error_in(saved: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return name and value of the weights' validation error, where it was noted."""
    for state in (saved.get("callbacks") or {}).values():
        monitor = state.get("monitor") if isinstance(state, dict) else None
        if monitor in (ROLLOUT, SINGLE) and state.get("current_score") is not None:
            return monitor, float(state["current_score"])
    return None


def require_same(
    mine: Mapping[str, Any], saved: Mapping[str, Any], place: str = "The checkpoint"
) -> None:
    """Refuse a checkpoint whose recipe differs, with the first difference."""
    theirs = _recipe_in(saved, place)
    for key, value in mine.items():
        other = theirs.get(key)
        if key == "spec":
            value, other = of_fields(value), of_fields(other or value)
        if key == "conditions" and other != value:
            raise ArgumentError(
                f"{place} is of other conditions: {first_difference(other, value)}. "
                f"Add --model.conditions '[{', '.join(map(str, other or []))}]', in "
                f"Python conditions={other}."
            )
        if other != value:
            raise ArgumentError(
                f"{place} is of another {key}: {first_difference(other, value)}. "
                f"{SAME_RECIPES}"
            )


def _recipe_in(saved: Any, place: str) -> dict[str, Any]:
    """Return the recipe in a loaded checkpoint."""
    recipe = saved.get(KEY) if isinstance(saved, dict) else None
    if not isinstance(recipe, dict) or recipe.get("format") != FORMAT:
        got = recipe.get("format") if isinstance(recipe, dict) else "no such entry"
        raise ArgumentError(
            f"{place}: expected a surrogate of format {FORMAT}, got {got}. It was "
            "written by another program, or by another version of this one."
        )
    # Those of version 0.1 have no such entry.
    present: dict[str, Any] = {"predicts": "field", **with_present_names(recipe)}
    if lacking := _ENTRIES - present.keys():
        raise ArgumentError(f"{place}: is damaged: it has no {sorted(lacking)[0]}.")
    if "conditions" not in present:  # of version 0.1
        every = Conditions.all_of(FieldSpec.from_plain(present["spec"]))
        present["conditions"] = [*every.names]
    return present


def require_tensors(
    expected: Mapping[str, torch.Tensor], state: Mapping[str, Any], place: str
) -> None:
    """Refuse tensors that are not those of the network, by the first that differs."""
    for name in sorted({*expected, *state}):
        if name in expected and is_lazy(expected[name]):
            continue
        shapes = [
            list(tensor.shape) if isinstance(tensor, torch.Tensor) else "none"
            for tensor in (expected.get(name), state.get(name))
        ]
        if shapes[0] != shapes[1]:
            raise ArgumentError(
                f"{place}: its tensor {name} is not the network's: it has "
                f"{shapes[1]}, asked for is {shapes[0]}. It is damaged, or the "
                "network's class has changed since."
            )


def arguments(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a surrogate that a recipe has as plain values."""
    network = subclass_at(recipe["network"]["class_path"], nn.Module)
    window = subclass_at(recipe["window"]["class_path"], Window)
    return {
        "spec": FieldSpec.from_plain(recipe["spec"]),
        "network": functools.partial(network, **recipe["network"]["init_args"]),
        "window": window(**recipe["window"]["init_args"]),
        "conditions": recipe["conditions"],
        "normalisation": recipe["normalisation"],
        "predicts": recipe["predicts"],
    }


def plain_recipe(factory: Any) -> dict[str, Any]:
    """Return a class, or a partial with plain keywords, as class_path and init_args.

    Examples
    --------
    >>> from functools import partial
    >>> from surrogate_flow.nn import FullyConnected
    >>> plain_recipe(partial(FullyConnected, widths=[8]))["init_args"]
    {'widths': [8]}
    """
    keywords: dict[str, Any] = {}
    if isinstance(factory, functools.partial):
        # jsonargparse binds the class as first argument of a constructor function.
        keywords, factory = factory.keywords, [factory.func, *factory.args][-1]
    if not inspect.isclass(factory):
        raise RecipeError(
            "Surrogate: network: expected a class, or functools.partial of a class "
            f"with keywords, such as partial(FullyConnected, widths=[64]), got "
            f"{str(factory).splitlines()[0]}. Nothing else can be rebuilt from a "
            "checkpoint."
        )
    name = factory.__name__
    arguments = {key: _plain(v, f"{name}.{key}") for key, v in keywords.items()}
    return {"class_path": public_path(factory), "init_args": arguments}


def plain_window(window: Window) -> dict[str, Any]:
    """Return a window as class_path and init_args."""
    if not dataclasses.is_dataclass(window):
        raise ArgumentError(
            f"window: expected a dataclass of plain values, got {type(window).__name__}"
            ". Put @dataclass(frozen=True) before the class, as Autoregressive has it."
        )
    arguments = dataclasses.asdict(window)
    return plain_recipe(functools.partial(type(window), **arguments))


def _plain(value: Any, place: str) -> Any:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v, place) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{place}.{k}") for k, v in value.items()}
    raise RecipeError(
        f"{place}: expected numbers, text, lists or mappings, got "
        f"{type(value).__name__}. A checkpoint holds data, never code: give the "
        "network a name, which it looks up itself."
    )
