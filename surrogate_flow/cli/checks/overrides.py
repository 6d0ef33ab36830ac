"""Recipes with what a command line changes in them, and what both leave open."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from surrogate_flow.cli.checks import hints
from surrogate_flow.fields.names import RecipeError

__all__ = ["check_whole", "overridden"]


def overridden(
    recipe: Mapping[str, Any], dotted: str, text: str, owner: Callable[..., Any]
) -> dict[str, Any]:
    """Return a recipe as ``--data.solver.cells '[4, 4]'`` changes it.

    Parameters
    ----------
    recipe : mapping
        Which stays as it is.
    dotted, text : str
        What stands behind ``--data.``, and the value; both are spelt right.
    owner : type
        The class whose arguments the recipe gives.
    """
    whole = copy.deepcopy(dict(recipe))
    here = _arguments(whole) if "class_path" in whole else whole
    *way, last = dotted.split(".")
    inside = last in ("init_args", "dict_kwargs")
    keys = [key for key in (*way, last) if key not in hints.WRAPPING]
    for key in keys if inside else keys[:-1]:
        child = here.get(key)
        if not isinstance(child, dict):
            child = {"class_path": child} if isinstance(child, str) else {}
        here[key] = child
        hint = hints.hints_of(owner).get(key)
        parameter = inspect.signature(owner).parameters.get(key)
        default = parameter.default if parameter else None
        following = hints.class_behind(child, hint, default)
        if following is None:
            return whole
        of_dataclass = hints.dataclass_of(hint) and "class_path" not in child
        here = child if of_dataclass else _arguments(child)
        owner = following
    value = _value(text)
    if inside:
        here.update(value if isinstance(value, dict) else {})
    elif keys:
        hint = hints.hints_of(owner).get(keys[-1])
        here[keys[-1]] = _with_class(value, here.get(keys[-1]), hint)
    return whole


def check_whole(
    recipe: Mapping[str, Any], owner: Callable[..., Any], linked: Collection[str] = ()
) -> None:
    """Refuse a recipe without an argument that some class needs.

    Parameters
    ----------
    recipe : mapping
        With all that a command line gives.
    owner : type
        The class whose arguments the recipe gives.
    linked : collection of str
        Arguments of it that come from elsewhere.

    Raises
    ------
    RecipeError
        Naming the class and the argument.
    """
    given = recipe.get("init_args") or {} if "class_path" in recipe else recipe
    _require(dict.fromkeys(linked) | dict(given), owner, "", 0)


def _require(
    given: Mapping[str, Any], owner: Callable[..., Any], place: str, first: int
) -> None:
    known = [*inspect.signature(owner).parameters.values()][first:]
    for p in known:
        by_name = p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        if by_name and p.default is p.empty and p.name not in given:
            where = f"under {place}, as init_args: " if place else "in the recipe, as "
            raise RecipeError(
                f"{place or 'top'}: {owner.__name__} needs {p.name!r}, which has no "
                f"default, got nothing. Give it {where}{{{p.name}: ...}}, or on the "
                "command line."
            )
    annotations = hints.hints_of(owner)
    for key, value in given.items():
        hint = annotations.get(key)
        here = f"{place}.{key}" if place else key
        if hints.has_path(value, hint):
            value = {"class_path": value} if hints.bases(hint) else value
        if not isinstance(value, dict):
            continue
        called = hints.calls(hint)
        if "class_path" in value and (hints.bases(hint) or called is not None):
            arguments = {**_part(value, "init_args"), **_part(value, "dict_kwargs")}
            if not hints.has_path(value["class_path"], hint):
                continue
            class_ = hints.class_named(value["class_path"], hint)
            # A function is given as it is: its arguments come when it is called.
            if inspect.isclass(class_):
                _require(arguments, class_, here, called or 0)
        elif "class_path" not in value and (dataclass := hints.dataclass_of(hint)):
            _require(value, dataclass, here, 0)


def _part(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = value.get(name)
    return part if isinstance(part, dict) else {}


def _arguments(spec: dict[str, Any]) -> dict[str, Any]:
    spec["init_args"] = found = _part(spec, "init_args")
    return found


def _value(text: str) -> Any:
    try:
        is_file = Path(text).is_file()
        return yaml.safe_load(Path(text).read_text() if is_file else text)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return text


def _with_class(value: Any, before: Any, hint: Any) -> Any:
    """Return a class with those arguments of the one before that it takes too."""
    if isinstance(value, str) and hints.bases(hint):
        value = {"class_path": hints.path_of(value, hint)}
    if not isinstance(value, dict):
        return value
    has_class = isinstance(before, dict) and "class_path" in before
    if "class_path" not in value and has_class and hints.dataclass_of(hint) is None:
        inside = (
            value if not value.keys() & {*hints.WRAPPING} else _part(value, "init_args")
        )
        return {**before, "init_args": {**_part(before, "init_args"), **inside}}
    if not hints.has_path(value.get("class_path"), hint):
        return value
    class_ = hints.class_named(value["class_path"], hint)
    kept = _part(before, "init_args") if isinstance(before, dict) else {}
    kept = {k: v for k, v in kept.items() if hints.takes(class_, k)}
    return {**value, "init_args": {**kept, **_part(value, "init_args")}}
