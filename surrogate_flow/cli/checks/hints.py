"""What the annotation of an argument says of the class that is wanted there."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any

from jsonargparse.typing import get_registered_type

from surrogate_flow.fields.names import class_at

__all__ = [
    "WRAPPING",
    "bases",
    "calls",
    "class_behind",
    "class_named",
    "dataclass_of",
    "has_path",
    "hints_of",
    "names",
    "path_of",
    "takes",
    "takes_any",
]

# What stands around the arguments of a class in a recipe.
WRAPPING = ("class_path", "init_args", "dict_kwargs")
# Text in the place of these is what it says, and names no class.
_TEXT = (str, bytes, int, float, complex, bool, os.PathLike, enum.Enum)
_VALUES = (*_TEXT, list, tuple, set, frozenset, Mapping, NoneType)


def takes(owner: Callable[..., Any], key: str) -> bool:
    """Whether an argument of that name can be given."""
    return key in inspect.signature(owner).parameters or takes_any(owner)


def takes_any(owner: Callable[..., Any]) -> bool:
    """Whether arguments of any name can be given, as ``**others``."""
    parameters = inspect.signature(owner).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def hints_of(owner: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a class's arguments, or of a function's."""
    try:
        return typing.get_type_hints(
            owner.__init__ if inspect.isclass(owner) else owner
        )
    except (NameError, TypeError, AttributeError):
        # Annotations that cannot be resolved say nothing about what a value must be.
        return {}


def bases(hint: Any) -> list[type]:
    """Return the classes, of which a subclass is wanted.

    None, if text in the place of this type may be anything else than a class's name,
    or if what will do there is no matter of its class.
    """
    found = []
    for option in _options(hint):
        wanted = _built(option)
        if _says_itself(option) or _is_callable(wanted) or _is_protocol(wanted):
            return []
        if inspect.isclass(wanted) and not issubclass(wanted, _VALUES):
            found.append(wanted)
    return found


def calls(hint: Any) -> int | None:
    """Return with how many arguments the class is called, where no object is wanted.

    More than any class takes, if the annotation does not say.
    """
    for option in _options(hint):
        if _is_callable(option):
            given = [*typing.get_args(option), None][0]
            return len(given) if isinstance(given, list) else sys.maxsize
    return None


def dataclass_of(hint: Any) -> type | None:
    """Return the dataclass whose fields may be given without its name, if any."""
    for option in _options(hint):
        if inspect.isclass(option) and dataclasses.is_dataclass(option):
            return option
    return None


def names(hint: Any) -> list[str]:
    """Return the bare names of all classes that have been imported and would do."""
    return sorted(_candidates(hint))


def path_of(name: str, hint: Any) -> str:
    """Return the import path of a class given by its bare name, if it is one."""
    class_ = _candidates(hint).get(name)
    return f"{class_.__module__}.{class_.__qualname__}" if class_ else name


def has_path(name: Any, hint: Any) -> bool:
    """Whether a class can be found by that name; the rest, files too, others read."""
    is_file = str(name).endswith((".yaml", ".yml"))
    return isinstance(name, str) and not is_file and "." in path_of(name, hint)


def class_named(name: Any, hint: Any) -> Any:
    """Return what a recipe names in the place of a class, by its path or barely.

    Raises
    ------
    RecipeError
        If there is none.
    """
    return class_at(path_of(name, hint) if isinstance(name, str) else name)


def class_behind(value: Any, hint: Any, default: Any) -> Callable[..., Any] | None:
    """Return the class whose arguments can be given for an argument, if it has one.

    Parameters
    ----------
    value
        Of the argument in a recipe.
    hint
        Its annotation.
    default
        What it is where a recipe does not give it.

    Raises
    ------
    RecipeError
        If the value names a class that does not exist.
    """
    wanted = tuple(bases(hint))
    if isinstance(value, str) and wanted and has_path(value, hint):
        value = {"class_path": value}
    found: Any = dataclass_of(hint)
    if isinstance(value, Mapping) and "class_path" in value:
        name = value["class_path"]
        found = class_named(name, hint) if has_path(name, hint) else None
    elif not found and wanted and inspect.isclass(default):
        found = None if default is inspect.Parameter.empty else default
    elif not found and isinstance(default, wanted):
        # That of jsonargparse.lazy_instance is one of its own above the real one.
        is_lazy = hasattr(default, "lazy_get_init_args")
        found = type(default).__bases__[-1] if is_lazy else type(default)
    return typing.cast(Callable[..., Any] | None, found)


def _candidates(hint: Any) -> dict[str, type]:
    family = {c for base in bases(hint) for c in (base, *_family(base))}
    found = {c.__name__: c for c in family if not inspect.isabstract(c)}
    # Dask's own base, which is not declared abstract.
    return {name: c for name, c in found.items() if name != "Cluster"}


def _options(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (UnionType, typing.Union)
    return typing.get_args(hint) if union else (hint,)


def _says_itself(option: Any) -> bool:
    """Whether text there is a value: a number, a time, one of some words."""
    if option is Any or typing.get_origin(option) is typing.Literal:
        return True
    return inspect.isclass(option) and (
        issubclass(option, _TEXT) or get_registered_type(option) is not None
    )


def _is_protocol(wanted: Any) -> bool:
    # typing.is_protocol came with Python 3.13.
    return bool(getattr(wanted, "_is_protocol", False))


def _is_callable(option: Any) -> bool:
    return option is Callable or typing.get_origin(option) is Callable


def _built(option: Any) -> Any:
    """Return what a callable returns; of any other type, that type."""
    given = typing.get_args(option)
    return given[-1] if given and _is_callable(option) else option


def _family(base: type) -> set[type]:
    """Return all subclasses that have been imported."""
    children: list[type] = type.__subclasses__(base)
    return {*children, *(c for child in children for c in _family(child))}
