"""Mistakes in recipes and on the command line, named before anything is parsed."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

import yaml

from surrogate_flow import solvers
from surrogate_flow.nearest import nearest
from surrogate_flow.recipes import RecipeError, class_at

__all__ = ["check_override", "check_recipe", "read_recipe"]

for _name in solvers.__all__:
    # Those that are loaded go by their bare names, and are among the nearest.
    getattr(solvers, _name)

_WRAPPING = ("class_path", "init_args", "dict_kwargs")


def read_recipe(path: Path) -> dict[str, Any]:
    """Return what a YAML file holds.

    Raises
    ------
    RecipeError
        If it is not YAML, or not a mapping.
    """
    try:
        recipe = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    return _mapping(recipe, str(path))


def check_recipe(path: Path, owner: Callable[..., Any]) -> None:
    """Refuse a recipe that names an unknown key, class or argument.

    Parameters
    ----------
    path : Path
        Of the YAML file.
    owner : type
        The class whose arguments the recipe gives.

    Raises
    ------
    RecipeError
        Naming the file, the place in it, and the nearest valid name.
    """
    recipe = read_recipe(path)
    try:
        if "class_path" in recipe:
            _check_class(recipe, "")
        else:
            _check_arguments(recipe, owner, "")
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def check_override(
    dotted: str, value: str, recipe: Mapping[str, Any], owner: Callable[..., Any]
) -> None:
    """Refuse ``--data.solver.cell`` where the solver takes ``cells``.

    Parameters
    ----------
    dotted : str
        What stands behind ``--data.``.
    value : str
        What it is set to.
    recipe : mapping
        That the override changes.
    owner : type
        The class whose arguments the recipe gives.

    Raises
    ------
    RecipeError
        Naming the option and the nearest valid name.
    """
    here: Any = recipe.get("init_args", recipe)
    place: list[str] = []
    for key in (key for key in dotted.split(".") if key not in _WRAPPING):
        known = inspect.signature(owner).parameters
        if not _takes(owner, key):
            raise RecipeError(
                f"unknown option {'.'.join([*place, key])!r} of {owner.__name__}. "
                f"{nearest(key, known)}"
            )
        place.append(key)
        hint = _hints(owner).get(key)
        here = here.get(key) if isinstance(here, Mapping) else None
        default = known[key].default if key in known else None
        following = _class_of(here, hint, default)
        here = here.get("init_args") if isinstance(here, Mapping) else None
        if following is None:
            break
        owner = following
    else:
        if _wants_class(hint) and value and not Path(value).exists():
            _check_name(value, hint)


def _class_of(value: Any, hint: Any, default: Any) -> Callable[..., Any] | None:
    if isinstance(value, Mapping) and "class_path" in value:
        return typing.cast(Callable[..., Any], class_at(value["class_path"]))
    if isinstance(value, str) and "." in value and _wants_class(hint):
        return typing.cast(Callable[..., Any], class_at(value))
    if dataclasses.is_dataclass(hint) and inspect.isclass(hint):
        return hint
    return default if inspect.isclass(default) and _wants_class(hint) else None


def _check_name(value: str, hint: Any) -> None:
    """Check a class given by its path, or by its bare name."""
    if "." in value:
        class_at(value)
        return
    names = sorted(
        {c.__name__ for base in _bases(hint) for c in _family(base)} - {"Cluster"}
    )
    if names and value not in names and value.isidentifier() and value != "null":
        raise RecipeError(f"no class {value!r}. {nearest(value, names)}")


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RecipeError(
            f"{place}: expected a mapping of names to values, got "
            f"{type(value).__name__} {str(value)[:40]!r}. The shipped recipes show how."
        )
    return value


def _check_class(spec: Mapping[str, Any], place: str) -> None:
    for key in spec:
        if key not in _WRAPPING:
            raise RecipeError(
                f"{place or 'top'}: unknown key {key!r}. {nearest(key, _WRAPPING)}"
            )
    _check_arguments(spec.get("init_args") or {}, class_at(spec["class_path"]), place)


def _check_arguments(arguments: Any, owner: Callable[..., Any], place: str) -> None:
    hints = _hints(owner)
    for key, value in _mapping(arguments, place or "top").items():
        here = f"{place}.{key}" if place else key
        if not _takes(owner, key):
            raise RecipeError(
                f"unknown argument {here!r} of {owner.__name__}. "
                f"{nearest(key, inspect.signature(owner).parameters)}"
            )
        hint = hints.get(key)
        options = [o for o in _options(hint) if dataclasses.is_dataclass(o)]
        if isinstance(value, dict) and "class_path" in value:
            _check_class(value, here)
        elif isinstance(value, dict) and options and inspect.isclass(options[0]):
            _check_arguments(value, options[0], here)
        elif isinstance(value, str) and _wants_class(hint):
            _check_name(value, hint)


def _takes(owner: Callable[..., Any], key: str) -> bool:
    parameters = inspect.signature(owner).parameters
    return key in parameters or any(
        p.kind is p.VAR_KEYWORD for p in parameters.values()
    )


def _hints(owner: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(
            owner.__init__ if inspect.isclass(owner) else owner
        )
    except (NameError, TypeError, AttributeError):
        # Annotations that cannot be resolved say nothing about what a value must be.
        return {}


def _options(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (UnionType, typing.Union)
    return typing.get_args(hint) if union else (hint,)


def _wants_class(hint: Any) -> bool:
    """Whether text in the place of this type can only name a class."""
    return bool(_bases(hint))


def _bases(hint: Any) -> list[type]:
    """Return the classes, of which a subclass is wanted."""
    found = []
    for option in _options(hint):
        wanted = (
            typing.get_args(option)[-1]
            if typing.get_origin(option) is Callable
            else option
        )
        abstract = inspect.isclass(wanted) and inspect.isabstract(wanted)
        if inspect.isclass(wanted) and (abstract or wanted is not option):
            found.append(wanted)
    return found


def _family(base: type) -> set[type]:
    """Return all subclasses that have been imported."""
    children: list[type] = base.__subclasses__()
    return {*children, *(c for child in children for c in _family(child))}
