"""What ``--help`` and ``--version`` print; what classes take jsonargparse prints.

The help of a command is a text (`pages`), which needs no torch and no Lightning.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from surrogate_flow.cli.hints import known_classes
from surrogate_flow.cli.pages import MAIN, PAGES
from surrogate_flow.cli.recipes import (
    COMMANDS,
    FOLDERS,
    command_named,
    given_recipe,
    is_data_set,
    pairs,
    read_recipe,
    shipped,
)

__all__ = ["show"]

# Of an option that takes a class, a recipe that names one.
_RECIPES = {
    "--model.network": "--model fno",
    "--data.solver": "--data heat2d",
    "--data.cluster": "--data.cluster slurm",
}


def show(words: Sequence[str]) -> bool:
    """Print what is asked for, if it is help or the version.

    Raises
    ------
    RecipeError
        If help is asked for on a command or a recipe that does not exist.
    """
    if not words:
        _print_commands()
        return False  # None of them is named, which is a mistake all the same.
    if words[:1] == ["--version"]:
        print(f"surrogate-flow {importlib.metadata.version('surrogate-flow')}")
        return True
    for number, word in enumerate(words):
        option, _, value = word.partition("=")
        if re.fullmatch(r"--(data|model|trainer)(\.\w+)*\.help", option):
            following = [w for w in words[number + 1 :][:1] if not w.startswith("-")]
            given = value or next(iter(following), None)
            _show_options(option.removesuffix(".help"), given, words)
            return True
    # A class's own options are for its parser.
    of_class = words[:1] == ["check"] and not "".join(words[1:2]).startswith("-")
    if of_class or not {"-h", "--help"} & {*words}:
        return False
    if words[0] in ("-h", "--help"):
        _print_commands()
    else:
        print(PAGES[command_named(words[0])], end="")
    return True


def _print_commands() -> None:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    print(MAIN.format(commands="\n".join(lines)), end="")


def _show_options(option: str, given: str | None, words: Sequence[str]) -> None:
    """Print the options of data, model or trainer, or of a class that is part of them.

    Parameters
    ----------
    option : str
        Such as ``--model``, or ``--model.network`` for those of its network.
    given : str, optional
        The class; for data and model also a recipe or a data set. By default that of
        the command line or of its recipes.
    words : sequence of str
        The command line.
    """
    head, *names = option.removeprefix("--").split(".")
    options = {name: value for name, value, _ in pairs(words) if value}
    if given and not names:
        options[option] = given
    recipe = options.get(f"--{head}", "")
    stored = recipe.endswith("StoredData") or (
        head == "data" and recipe != "" and is_data_set(recipe)
    )
    if recipe and not stored:
        given_recipe(f"--{head}", recipe)  # refuses a wrong name before the imports

    import pytorch_lightning as L

    from surrogate_flow.cli.lightning import LightningParser
    from surrogate_flow.data.online import OnlineData
    from surrogate_flow.data.stored import StoredData
    from surrogate_flow.surrogate.surrogate import Surrogate

    owners: dict[str, Any] = {"data": OnlineData, "model": Surrogate}
    owner: Any = StoredData if stored else owners.get(head, L.Trainer)
    described = {"data": "a data set" if stored else "a workflow", "model": "a model"}
    parser = LightningParser(
        prog="surrogate-flow fit",
        allow_abbrev=False,
        description=f"All options of {described.get(head, 'the trainer')}, with their "
        "defaults. Recipes set them, and the command line sets them over.",
    )
    # The spec comes from the data, whatever a command line says.
    parser.add_class_arguments(owner, head, skip={"spec"}, fail_untyped=False)
    inside = [a.dest for a in parser._actions if not a.dest.endswith(".help")]
    group = f"{option.removeprefix('--')}."
    if not names or any(dest.startswith(group) for dest in inside):
        parser.print_help()
        return
    kind = given or _class_of(head, names, options)
    actions = {f"--{action.dest}": action for action in parser._actions}
    takes = getattr(actions.get(option), "extra_help", str)().partition(": ")[2]
    if takes and not kind:
        print("No class is named yet, whose options could be shown. Name one:\n")
        if example := _RECIPES.get(option):
            folder = FOLDERS[example.partition(" ")[0]]
            print(f"  surrogate-flow fit {example} {option}.help")
            print(f"      or one of: {', '.join(shipped(folder))}")
        print(f"  surrogate-flow fit {option}.help CLASS")
        print(f"      one of: {known_classes(option, takes.split(', '))}")
        return
    parser.parse_args([f"{option}.help={kind}" if kind else f"{option}.help"])


def _class_of(head: str, names: Sequence[str], options: Mapping[str, str]) -> str:
    """Return the class of an argument, from its option or a recipe around it."""
    for depth in range(len(names), -1, -1):
        option = ".".join((f"--{head}", *names[:depth]))
        if value := options.get(option):
            recipe = given_recipe(option, value)
            found: Any = read_recipe(recipe) if recipe else yaml.safe_load(value)
            for name in names[depth:]:
                inside = found if isinstance(found, dict) else {}
                found = inside.get("init_args", inside).get(name)
            found = found.get("class_path") if isinstance(found, dict) else found
            if isinstance(found, str):
                return found
    return ""
