"""The command line: finds recipes, checks them, and hands over to Lightning.

Dask starts its workers by importing the main script again; so nothing here imports
torch before `main` runs.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from surrogate_flow.cli import help as short_help
from surrogate_flow.cli.recipes import find_recipe, is_data_set
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.names import RecipeError, class_at, nearest

__all__ = ["main"]

# Raised by this package with a message that says what to do.
_FOR_USERS = (
    UserError,
    ValueError,
    RuntimeError,
    FileNotFoundError,
    ImportError,
    TimeoutError,
)
_KINDS = {"--data": "workflows", "--model": "models"}
_CLUSTER = "--data.cluster"
_STUDIES = ("plan", "generate")  # commands that take no model
_TRAINS = ("fit", "validate", "test")
# Their own options, which no class takes.
_PLAIN = ("--data", "--model", "--trainer", "--config", "--ckpt_path", "--print_config")
_SIMULATES = (*_STUDIES, "compare")
_STORED = "surrogate_flow.StoredData"
# Modules that recipes of version 0.1 name classes by.
_MOVED = {"surrogate_flow.windows": "surrogate_flow.fields"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``surrogate-flow fit | validate | test | predict``, or one of ours.

    These are ``plan``, ``generate`` and ``compare``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["-h"], ["--help"], ["--version"]):
        (short_help.show_version if words[0] == "--version" else short_help.show_help)()
        sys.exit(0)
    # Torch's threads would spin while they wait, on cores that simulations need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for old, new in _MOVED.items():
        sys.modules.setdefault(old, importlib.import_module(new))
    try:
        if asked := _help_of(words):
            from surrogate_flow.cli import option_help

            option_help.show(*asked)
            return
        words = _with_recipes(words)
        from surrogate_flow.cli import lightning as commands
        from surrogate_flow.cli import subcommands as standalone

        if words[:1] == ["predict"] and not commands.uses_lightning(words):
            standalone.predict(words[1:])
        elif words[:1] == ["plan"]:
            standalone.plan(words[1:])
        elif words[:1] == ["generate"]:
            standalone.generate(words[1:])
        elif words[:1] == ["compare"]:
            standalone.compare(words[1:])
        else:
            commands.train(words)
    except Exception as error:
        ours = _ours(error)
        if ours is None:
            raise
        print(f"surrogate-flow: error: {ours}", file=sys.stderr)
        sys.exit(2)


def _help_of(words: Sequence[str]) -> tuple[str, str | None, str | None] | None:
    """Return what help on an option is asked for, with its value and the recipe's."""
    pairs = _pairs(words)
    for option, value, _ in pairs:
        kind, _, rest = option.partition(".")
        if kind in _KINDS and rest.rpartition(".")[2] == "help":
            recipe = next((v for o, v, _ in pairs if o == kind), None)
            return option, value, recipe
    return None


def _with_recipes(words: Sequence[str]) -> list[str]:
    """Replace the names of recipes by their paths, and check all that is spelt."""
    pairs = _pairs(words)
    options = {option for option, _, _ in pairs}
    if options & {"-h", "--help"} or not words or words[0].startswith("-"):
        return list(words)
    if words[0] not in short_help.COMMANDS:
        raise RecipeError(
            f"No command {words[0]!r}. {nearest(words[0], short_help.COMMANDS)}"
        )
    whole = options & {"--config", "-c"}
    found: list[str] = []
    paths: dict[str, str] = {}
    class_path = ""
    given: dict[str, list[tuple[str, str]]] = {kind: [] for kind in _KINDS}
    for option, value, as_one in pairs:
        if option == "--data" and value is not None and is_data_set(value):
            if words[0] in _SIMULATES:
                raise RecipeError(
                    f"{words[0]} simulates: expected a workflow as --data, got the "
                    f"data set {value}. Name a recipe, such as --data heat2d."
                )
            paths[option] = _STORED
            found += [option, _STORED, f"{option}.path", value]
            given[option].append(("path", value))
            continue
        if option in _KINDS and value is not None:
            value = _recipe(option, value)
            paths[option] = value
            if option == "--data" and Path(value).is_file():
                class_path = _class_path_in(value, "cluster")
        elif option == _CLUSTER and value is not None:
            value = _cluster(value)
            named = _class_path(value)
            # YAML without a class is of the one before.
            class_path = named if named or value == "null" else class_path
        elif option in ("--config", "-c") and value is not None:
            if Path(value).is_file():
                class_path = _class_path_in(value, "data", "cluster") or class_path
        elif option.startswith(f"{_CLUSTER}.") and class_path:
            option = _argument(option, class_path)
        # With a plus behind it, an option adds to a list.
        head, _, dotted = option.rstrip("+").partition(".")
        if dotted not in ("", "help") and head in _KINDS and not whole:
            from surrogate_flow.cli.checks import arguments

            arguments.check_option(
                head, dotted, value or "", paths.get(head), given[head]
            )
            given[head].append((dotted, value or ""))
        elif dotted not in ("", "help") and head == "--trainer":
            from surrogate_flow.cli.checks import arguments

            # What stands behind the name is Lightning's to check.
            name = dotted.partition(".")[0]
            arguments.check_option(head, name, "", None)
        elif option.startswith("--") and words[0] in _TRAINS and head not in _PLAIN:
            from surrogate_flow.cli.checks import arguments

            arguments.check_prefix(option)
        if as_one:
            found.append(f"{option}={value}")
        else:
            found += [option] if value is None else [option, value]
    if words[0] != "predict" or options & {"--data", "--model"}:
        for option in ("--data",) if words[0] in _STUDIES else _KINDS:
            if option not in options and not whole:
                raise RecipeError(
                    f"{words[0]} needs {option}, got none. Name a recipe, such as "
                    "--data heat2d --model fully_connected."
                )
    for head, path in paths.items():
        if not whole and "--print_config" not in options:
            from surrogate_flow.cli.checks import arguments

            arguments.check_complete(head, path, given[head])
    if words[0] in ("validate", "test") and not whole | options & {"--ckpt_path"}:
        raise RecipeError(
            f"{words[0]} needs --ckpt_path, got none: a surrogate that was never "
            "trained has nothing to show. A run keeps its own in checkpoints/."
        )
    return found


def _pairs(words: Sequence[str]) -> list[tuple[str, str | None, bool]]:
    """Split words into options with their values, and whether both were one word."""
    pairs: list[tuple[str, str | None, bool]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if word.startswith("--") and equals:
            pairs.append((option, value, True))
        elif word.startswith("--") and rest and not rest[0].startswith("--"):
            pairs.append((word, rest.pop(0), False))
        else:
            pairs.append((word, None, False))
    return pairs


def _recipe(option: str, value: str) -> str:
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value) and not (
        Path(value).exists() or Path(value).suffix in (".yaml", ".yml")
    ):
        class_at(value)
        return value
    path = find_recipe(_KINDS[option], value)
    from surrogate_flow.cli.checks import arguments

    arguments.check(option, path)
    return str(path)


def _cluster(value: str) -> str:
    """Return the path of a cluster's recipe; a class stays what it is."""
    bare = "." in value and not value.endswith((".yaml", ".yml"))
    if value == "null" or value.startswith("{") or (bare and not Path(value).is_file()):
        return value
    path = find_recipe("workflows/clusters", value)
    from surrogate_flow.cli.checks import arguments

    arguments.check_cluster(path)
    return str(path)


def _class_path(cluster: str) -> str:
    """Return what a cluster's recipe builds; a class stays what it is."""
    if Path(cluster).is_file():
        return _class_path_in(cluster)
    try:
        given = yaml.safe_load(cluster)
    except yaml.YAMLError:
        return ""
    return _class_path_of(given)


def _class_path_in(path: str, *names: str) -> str:
    """Return the class behind a name in a recipe, or in the saved settings of a run."""
    from surrogate_flow.cli.checks import spelling

    settings: Any = spelling.read_recipe(Path(path))
    for name in names:
        inside = settings if isinstance(settings, dict) else {}
        settings = inside.get("init_args", inside)
        settings = settings.get(name) if isinstance(settings, dict) else None
    return _class_path_of(settings)


def _class_path_of(value: Any) -> str:
    found = value.get("class_path") if isinstance(value, dict) else value
    return found if isinstance(found, str) else ""


def _argument(option: str, class_path: str) -> str:
    """Return ``--data.cluster.cores`` as it reaches a class that hands it on."""
    option = option.replace(f"{_CLUSTER}.init_args.", f"{_CLUSTER}.", 1)
    name = option[len(_CLUSTER) + 1 :].partition(".")[0]
    from surrogate_flow.cli.checks import hints
    from surrogate_flow.data.online import OnlineData

    hint = hints.hints_of(OnlineData).get("cluster")
    class_ = hints.class_named(class_path, hint)
    if name in (*inspect.signature(class_).parameters, *hints.WRAPPING):
        return option
    return option.replace(_CLUSTER, f"{_CLUSTER}.dict_kwargs", 1)


def _ours(error: BaseException | None) -> BaseException | None:
    """Return the cause whose message was written here, for users, if there is one.

    For all else, mistakes of ours among them, a traceback helps more.
    """
    package = str(Path(__file__).parents[1])
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        here = frames and frames[-1].filename.startswith(package)
        if here and isinstance(error, _FOR_USERS):
            return error
        error = error.__cause__
    return None
