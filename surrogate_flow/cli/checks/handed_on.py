"""Arguments of classes that take any name, and hand on what they do not know."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from surrogate_flow.cluster.batch.jobqueue import JobQueueCluster
from surrogate_flow.cluster.batch.systems import known_arguments
from surrogate_flow.fields.names import RecipeError, nearest

__all__ = ["check_handed_on"]


def check_handed_on(
    class_: type,
    arguments: Mapping[str, Any],
    handed_on: Mapping[str, Any],
    place: str,
) -> None:
    """Refuse arguments that are not where the class, or what is behind it, takes them.

    Parameters
    ----------
    class_ : type
        With ``**others`` in its signature.
    arguments, handed_on : mapping
        What a recipe has under ``init_args`` and ``dict_kwargs``.
    place : str
        Of the class in the recipe.

    Raises
    ------
    RecipeError
        Naming the argument, with the nearest that is taken or where it belongs.
    """
    others = _others(arguments, class_)
    is_queue = issubclass(class_, JobQueueCluster)
    if not others and not (is_queue and handed_on):
        return
    own = _taken_by_name(class_)
    others = [name for name in others if name not in own]
    behind = known_arguments(class_) if is_queue else frozenset(handed_on)
    for name in (*others, *handed_on):
        if name not in own and name not in behind:
            here = f"{place}.{name}" if place else name
            on = "" if is_queue else " What it hands on goes under dict_kwargs."
            raise RecipeError(
                f"unknown argument {here!r} of {class_.__name__}. "
                f"{nearest(name, sorted({*own, *behind}))}{on}"
            )
    if others:
        moved = {name: arguments[name] for name in others}
        text = yaml.safe_dump(moved, default_flow_style=True, width=10**6).strip()
        raise RecipeError(
            f"{place or 'top'}: {class_.__name__} hands {', '.join(others)} on to its "
            "jobs: expected them under dict_kwargs, got them under init_args. Move "
            f"them: dict_kwargs: {text}"
        )


def _others(arguments: Iterable[str], class_: type) -> list[str]:
    named = inspect.signature(class_).parameters
    return [name for name in arguments if name not in named]


def _taken_by_name(class_: type) -> Collection[str]:
    """Return what jsonargparse takes as init_args, of the classes further up too."""
    keys = ArgumentParser().add_class_arguments(class_, "of", fail_untyped=False)
    return {key.removeprefix("of.").partition(".")[0] for key in keys}
