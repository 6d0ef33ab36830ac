"""Names: the nearest valid one, import paths of classes, and changed names."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import itertools
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surrogate_flow.fields.errors import UserError, line_of

__all__ = [
    "RecipeError",
    "apart",
    "class_at",
    "class_in",
    "closest",
    "first_difference",
    "nearest",
    "public_path",
    "subclass_at",
    "with_present_names",
]

_SHOWN = 80  # characters of a value

# Written in files of version 0.1 -> the public path of the same class today.
_MOVED = {
    f"surrogate_flow.{old}": f"surrogate_flow.{new}"
    for old, new in {
        "scheduler.ExistingScheduler": "ExistingScheduler",
        "windows.Autoregressive": "Autoregressive",
        "windows.Direct": "Direct",
        "nn.fno.FNO": "nn.FNO",
        "nn.fully_connected.FullyConnected": "nn.FullyConnected",
        "nn.message_passing.MessagePassingSolver": "nn.MessagePassingSolver",
        "nn.on_grid.OnGrid": "nn.OnGrid",
        "nn.unet.UNet": "nn.UNet",
        "sampling.halton.Halton": "sampling.Halton",
        "sampling.latin_hypercube.LatinHypercube": "sampling.LatinHypercube",
        "sampling.sobol.Sobol": "sampling.Sobol",
        "sampling.uniform.Uniform": "sampling.Uniform",
        "solvers.combined1d.Combined1D": "solvers.Combined1D",
        "solvers.gray_scott.GrayScott2D": "solvers.GrayScott2D",
        "solvers.heat2d.Heat2D": "solvers.Heat2D",
        "solvers.heat_plate.HeatPlate": "solvers.HeatPlate",
        "solvers.lorenz.Lorenz": "solvers.Lorenz",
        "solvers.navier_stokes2d.NavierStokes2D": "solvers.NavierStokes2D",
    }.items()
}


def nearest(name: str, valid: Iterable[str], here: Iterable[str] = ()) -> str:
    """Return the valid names as text, with the one closest to `name` as a question.

    Then those of files in this folder. Of more than 40 names only the nearest are
    shown. Case does not matter.
    """
    names, files = list(valid), list(here)
    close = closest(name, [*names, *files])
    names, files = (
        some
        if len(some) <= 40
        else [n for n in close if n in some] or _containing(name, some) or some[:5]
        for some in (names, files)
    )
    hint = f"Did you mean {close[0]!r}? " if close else ""
    also = f", and in this folder: {', '.join(files)}" * bool(files)
    return f"{hint}Valid names: {', '.join(names) or 'none'}{also}."


def _containing(name: str, valid: Iterable[str]) -> list[str]:
    return [n for n in valid if name.lower() in n.lower()][:5]


def closest(name: str, valid: Iterable[str]) -> list[str]:
    """Return up to five of the valid names, the one most like `name` first."""
    lower = {valid.lower(): valid for valid in valid}
    found = difflib.get_close_matches(name.lower(), lower, n=5, cutoff=0.5)
    return [lower[match] for match in found]


def public_path(kind: type) -> str:
    """Return the shortest import path of a class, by which files name it.

    That of a class which its package exports has no module, so that its file may move.

    Examples
    --------
    >>> from surrogate_flow.solvers import Heat2D
    >>> public_path(Heat2D)
    'surrogate_flow.solvers.Heat2D'
    """
    name = kind.__qualname__
    parts = kind.__module__.split(".")
    packages = (".".join(parts[:length]) for length in range(1, len(parts)))
    for package in packages:
        if getattr(sys.modules.get(package), name, None) is kind:
            return f"{package}.{name}"
    return f"{kind.__module__}.{name}"


def with_present_names(value: Any) -> Any:
    """Return plain values of a file with the present names of its classes."""
    if isinstance(value, str):
        return _MOVED.get(value, value)
    if isinstance(value, Mapping):
        return {key: with_present_names(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_present_names(v) for v in value]
    return value


class RecipeError(UserError, ValueError):
    """A recipe is missing, or names something that does not exist."""


def class_at(class_path: str, what: str = "class_path") -> Any:
    """Return the object of an import path, which is the value of `what`.

    Raises
    ------
    RecipeError
        If there is none, with the nearest.
    """
    file = Path(f"{str(class_path).removesuffix('.py')}.py")
    is_path = isinstance(class_path, str) and "." in class_path
    if not is_path or (class_path.endswith(".py") and file.is_file()):
        known = class_in(file) if file.is_file() else "package.module.Class"
        raise RecipeError(what, f"one such as {known!r}", repr(class_path))
    module_name, _, name = with_present_names(class_path).rpartition(".")
    first = module_name.partition(".")[0]
    # While a recipe is read this is its own folder.
    folder = Path.cwd()
    there = (folder / f"{first}.py").is_file() or (folder / first).is_dir()
    prefix = f"type PYTHONPATH={folder} before the command"
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # of any type: the module is the user's
        remedy = line_of(error).strip()
        said = str(error) if isinstance(error, ImportError | SyntaxError) else ""
        if isinstance(error, ModuleNotFoundError) and not remedy:
            remedy = "Expected a module installed in this environment or on PYTHONPATH."
            if there and error.name == first:
                remedy = f"It is in {folder}: {prefix}."
        elif isinstance(error, ModuleNotFoundError):
            remedy += f". Install {error.name!r}, or correct its name."
        raise RecipeError(
            f"{what} {class_path!r}: cannot import {module_name!r} "
            f"({said or repr(error)}). {remedy}"
        ) from error
    try:
        return getattr(module, name)
    except AttributeError:
        file = Path(getattr(module, "__file__", None) or "the standard library")
        if there and folder not in file.resolve().parents:
            raise RecipeError(
                f"{what} {class_path!r}: {module_name!r} was imported from {file}, and "
                f"not from {folder}: {prefix}, or rename yours."
            ) from None
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__.startswith(module_name)
        ]
        raise RecipeError(
            f"{what} {class_path!r}: {module_name!r} has no {name!r}. "
            f"{nearest(name, names)}"
        ) from None


def class_in(file: Path) -> str:
    """Return the import path of a class in a file, which is not run."""
    try:
        body = ast.parse(file.read_text("utf-8")).body
    except (SyntaxError, ValueError, OSError):
        body = []
    names = [node.name for node in body if isinstance(node, ast.ClassDef)]
    return f"{file.stem}.{(names or ['MyClass'])[-1]}"


def subclass_at(class_path: str, base: type, what: str = "class_path") -> Any:
    """Return the subclass of `base` at an import path, as `class_at` does."""
    kind = class_at(class_path, what)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise RecipeError(
            f"{what} {class_path!r}: expected a subclass of {public_path(base)}, "
            f"got {kind!r}."
        )
    return kind


def first_difference(has: Any, asked: Any, place: str = "") -> str:
    """Return where what is there first differs from what is asked for, and how.

    Examples
    --------
    >>> first_difference({"cells": [8, 8]}, {"cells": [8, 9]})
    'it has cells[1] = 8, asked for is 9'
    """
    if isinstance(has, dict) and isinstance(asked, dict):
        for key in {**has, **asked}:
            a, b = has.get(key), asked.get(key)
            if a != b:
                return first_difference(a, b, f"{place}.{key}")
    name = place.lstrip(".")
    if isinstance(has, list) and isinstance(asked, list):
        if len(has) == len(asked):
            for i, (a, b) in enumerate(zip(has, asked, strict=True)):
                if a != b:
                    return first_difference(a, b, f"{place}[{i}]")
        elif len(str([has, asked])) > 2 * _SHOWN:
            of = name and f" of {name}"
            return f"it has {len(has)} values{of}, asked for are {len(asked)}"
    show = repr if str(has) == str(asked) else str
    texts = show(has), show(asked)
    # Of long texts, from a bit before the place where they differ.
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts))  # noqa: B905
    first = max(0, len(list(same)) - _SHOWN // 2)
    a, b = (f"{'...' * (first > 0)}{text[first:][:_SHOWN]}" for text in texts)
    return f"it has {name and f'{name} = '}{a}, asked for is {b}"


def apart(
    names: Sequence[str], own: Collection[str], suffix: str = "_parameter"
) -> list[str]:
    """Return names for a file that has names of its own; a suffix keeps them apart.

    Examples
    --------
    >>> apart(["left", "simulation"], {"simulation", "loss"})
    ['left', 'simulation_parameter']
    """
    free = []
    for name in names:
        other = name
        while other in own or (other != name and other in names):
            other += suffix
        free.append(other)
    return free
