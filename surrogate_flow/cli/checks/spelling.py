"""Mistakes in recipes and on the command line, named before anything is parsed."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from surrogate_flow import solvers
from surrogate_flow.cli.checks import hints
from surrogate_flow.cli.checks.handed_on import check_handed_on
from surrogate_flow.fields.names import RecipeError, class_at, nearest

__all__ = ["check_override", "check_recipe", "read_recipe"]

for _name in solvers.__all__:
    # Those that are loaded go by their bare names, and are among the nearest.
    getattr(solvers, _name)

_MANY = 40  # names of classes; of more only the nearest are shown


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


def check_recipe(
    path: Path, owner: Callable[..., Any], argument: str | None = None
) -> None:
    """Refuse a recipe that names an unknown key, class or argument.

    Parameters
    ----------
    path : Path
        Of the YAML file.
    owner : type
        The class whose arguments the recipe gives.
    argument : str, optional
        The one of them that it is the recipe of; then it has to name its class.

    Raises
    ------
    RecipeError
        Naming the file, the place in it, and the nearest valid name.
    """
    recipe = read_recipe(path)
    try:
        if argument and "class_path" not in recipe:
            raise RecipeError(
                "expected class_path, and its arguments in init_args, got "
                f"{', '.join(recipe) or 'nothing'}. The shipped recipes show how."
            )
        if "class_path" in recipe:
            hint = hints.hints_of(owner).get(argument) if argument else None
            _check_class(recipe, "", hint)
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
    keys = dotted.split(".")
    for key in (names := [key for key in keys if key not in hints.WRAPPING]):
        known = inspect.signature(owner).parameters
        if not hints.takes(owner, key):
            raise RecipeError(
                f"unknown option {'.'.join([*place, key])!r} of {owner.__name__}. "
                f"{nearest(key, known)}"
            )
        place.append(key)
        hint = hints.hints_of(owner).get(key)
        here = here.get(key) if isinstance(here, Mapping) else None
        if len(place) == len(names) and keys[-1] not in ("init_args", "dict_kwargs"):
            _check_value(value, hint)
        default = known[key].default if key in known else None
        following, given = hints.class_behind(here, hint, default), here
        here = here.get("init_args") if isinstance(here, Mapping) else None
        if following is None:
            has_none = default is None or default is inspect.Parameter.empty
            has_none = has_none and given is None
            if len(place) < len(names) and has_none and hints.bases(hint):
                option = ".".join(place)
                raise RecipeError(
                    f"{option} has no class yet, whose {names[len(place)]!r} could be "
                    f"set. Name one before, as {option}."
                )
            return
        owner = following


def _check_value(text: str, hint: Any) -> None:
    """Check what a command line sets in the place of a class."""
    if not hints.bases(hint) or Path(text).is_file():
        return
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return
    if isinstance(value, dict) and "class_path" in value:
        _check_class(value, "", hint)
    elif isinstance(value, str):
        _check_name(value, hint)


def _check_name(value: str, hint: Any) -> None:
    """Check a class given by its path, or by its bare name."""
    if value.endswith((".yaml", ".yml")):
        return
    if "." in value:
        _check_kind(class_at(value), hint)
        return
    names = hints.names(hint)
    if names and value not in names and value.isidentifier():
        if len(names) > _MANY:
            # Such as all layers of torch.
            names = difflib.get_close_matches(value, names, n=5)
        raise RecipeError(
            f"no class {value!r}. {nearest(value, names) if names else ''} Any other "
            "goes by its import path, such as package.module.Class."
        )


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RecipeError(
            f"{place}: expected a mapping of names to values, got "
            f"{type(value).__name__} {str(value)[:40]!r}. The shipped recipes show how."
        )
    return value


def _check_kind(class_: Any, hint: Any) -> None:
    """Check that a class is of the kind that is wanted, and that it can be built."""
    wanted = hints.bases(hint)
    if not wanted or not inspect.isclass(class_):
        return
    kinds = " or ".join(base.__name__ for base in wanted)
    is_function = any("__call__" in vars(c) for c in class_.__mro__)
    if not issubclass(class_, tuple(wanted)) and not (
        is_function and hints.calls(hint) is not None
    ):
        raise RecipeError(
            f"expected a subclass of {kinds}, got {class_.__name__}. Derive it: class "
            f"{class_.__name__}({wanted[0].__name__})."
        )
    if inspect.isabstract(class_):
        missing = sorted(getattr(class_, "__abstractmethods__", ()))
        raise RecipeError(
            f"{class_.__name__} has no {', '.join(missing)} yet, and so "
            f"cannot be built. Expected all that {kinds} asks for: name a class that "
            "has it, or write it."
        )


def _check_class(spec: Mapping[str, Any], place: str, hint: Any) -> None:
    for key in spec:
        if key not in hints.WRAPPING:
            raise RecipeError(
                f"{place or 'top'}: unknown key {key!r}. {nearest(key, hints.WRAPPING)}"
            )
    try:
        name = spec["class_path"]
        if isinstance(name, str) and "." not in name:
            _check_name(name, hint)
            if place and not hints.has_path(name, hint) and not hints.bases(hint):
                return
        class_ = hints.class_named(name, hint)
        _check_kind(class_, hint)
    except RecipeError as error:
        raise RecipeError(f"{place}: {error}" if place else str(error)) from error
    arguments = spec.get("init_args") or {}
    _check_arguments(arguments, class_, place)
    if inspect.isclass(class_) and hints.takes_any(class_):
        handed_on = _mapping(spec.get("dict_kwargs") or {}, f"{place or 'top'}")
        check_handed_on(class_, arguments, handed_on, place)


def _check_arguments(arguments: Any, owner: Callable[..., Any], place: str) -> None:
    known = hints.hints_of(owner)
    for key, value in _mapping(arguments, place or "top").items():
        here = f"{place}.{key}" if place else key
        if not hints.takes(owner, key):
            raise RecipeError(
                f"unknown argument {here!r} of {owner.__name__}. "
                f"{nearest(key, inspect.signature(owner).parameters)}"
            )
        hint = known.get(key)
        dataclass = hints.dataclass_of(hint)
        if isinstance(value, dict) and "class_path" in value:
            _check_class(value, here, hint)
        elif isinstance(value, dict) and dataclass:
            _check_arguments(value, dataclass, here)
        elif isinstance(value, str) and hints.bases(hint):
            _check_name(value, hint)
