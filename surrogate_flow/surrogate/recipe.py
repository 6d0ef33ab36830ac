"""A class, or a partial of one, as plain values."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from surrogate_flow.fields.names import RecipeError, public_path

__all__ = ["plain_recipe"]


_PLAIN = (str, int, float, bool, type(None))


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
