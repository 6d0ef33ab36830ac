"""Recipes: YAML files that name a workflow, a model or a cluster.

Nothing here imports torch or a class that a recipe names, so that a misspelt command or
file is refused at once; the parser checks the rest.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from surrogate_flow.fields.names import RecipeError, class_in, closest, nearest
from surrogate_flow.files import NETCDF, no_checkpoint

__all__ = [
    "COMMANDS",
    "CONFIG",
    "FOLDERS",
    "QUOTES",
    "SECTIONS",
    "SYNONYMS",
    "WRAPPING",
    "CommandLine",
    "command_named",
    "find_recipe",
    "given_recipe",
    "is_data_set",
    "pairs",
    "read_recipe",
    "shipped",
]

#: Of each command, what it does.
COMMANDS = {
    "fit": "Train a surrogate while the simulations run.",
    "validate": "Errors of a checkpoint, on held-out simulations.",
    "test": "Errors of a checkpoint, on simulations that are run for it.",
    "predict": "Fields from a checkpoint, without solver and cluster.",
    "export": "A checkpoint as a file for other programs: ONNX, or torch's own.",
    "plan": "A dry run: one simulation, the network, what a cluster is asked for.",
    "generate": "Write the simulations to a data set on disk.",
    "import": "Write simulations that have ended, a file each, to a data set.",
    "inspect": "What stored runs hold, as a recipe that trains on them as they are.",
    "compare": "Train offline and online, and put the errors side by side.",
    "sweep": "Train many models on one ensemble, here or as jobs.",
    "report": "A page of a run, or of several side by side, as one file.",
    "watch": "The live page of a run, from its folder, in a browser.",
    "new": "Write a solver, a network or a program to begin with.",
    "check": "Check a solver, network, sampler or policy of your own.",
    "include": "The folder of the header for programs in C, C++ and Fortran.",
}
#: What other tools call a command or an option, and its last word here.
SYNONYMS = {
    "train": "fit",
    "run": "fit",
    "eval": "validate",
    "epochs": "max_epochs",
    "learning_rate": "lr",
    "gpus": "devices",
    "seed": "seed_everything",
    "resume": "ckpt_path",
    "output_dir": "default_root_dir",
    "validation": "held_out",
    "validation_simulations": "held_out",
}
#: Options that take a recipe, and the folders of the shipped ones.
FOLDERS = {
    "--data": "workflows",
    "--model": "models",
    "--data.cluster": "workflows/clusters",
    "--trainer.logger": "models/loggers",
}
#: What stands around the arguments of a class in a recipe.
WRAPPING = ("class_path", "init_args", "dict_kwargs")
#: The parts of a run, whose options begin with their name.
SECTIONS = ("data", "model", "trainer")
#: Options that take the settings of a whole run.
CONFIG = ("--config", "-c")
_STORED = "surrogate_flow.StoredData"
_OF_CLASS = ("--data.cluster", "--trainer.logger")  # options whose recipe names one
#: What the parser says of words that it cannot take.
QUOTES = "Options begin with --, and a value with blanks needs quotes."
#: Options of the commands that need others than --data and --model.
_NEEDED = {
    **dict.fromkeys(("plan", "generate"), ("--data",)),
    **dict.fromkeys(("validate", "test"), ("--data", "--model", "--ckpt_path")),
    "export": ("--ckpt_path",),
}
_KEPT = "A run keeps its own in runs/<workflow>/<time>/checkpoints/"
#: Options that may stand for a recipe: all else has a default.
_ENOUGH = {"--data": "--data.solver", "--model": "--model.network"}
_SUFFIXES = (".yaml", ".yml", ".zarr")
_Pair = tuple[str, str | None, bool]
_OF_RUNS = rf"--({'|'.join(SECTIONS)})\."  # options of compare for its runs
_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass
class CommandLine:
    """The words of a command, with paths in the place of the names of recipes.

    Attributes
    ----------
    words : list of str
        Command and options, for the parser.
    files : dict of str to Path
        The YAML files among them, by their options.
    """

    words: list[str]
    files: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, words: Sequence[str]) -> CommandLine:
        """Find the recipes, and refuse what can be refused without a parser.

        Raises
        ------
        RecipeError
            If the command, a file, or an option that it cannot do without is missing.
        """
        if not words or words[0].startswith("-"):
            got = repr(words[0]) if words else "nothing"
            raise RecipeError(
                f"Expected a command first, got {got}. It is one of: "
                f"{', '.join(COMMANDS)}; 'surrogate-flow --help' says what each does."
            )
        line = cls([command_named(words[0])])
        passed: list[str] = []
        given = _classes_first([*pairs(words[1:])])
        for at, (option, value, joined) in enumerate(given):
            if line.command != "compare" and not option.startswith("-"):
                before = given[at - 1] if at else ("", None, False)
                _refuse_words(given[at:], *before[:2])
            if line.command == "compare" and re.match(_OF_RUNS, option):
                passed.append(option if value is None else f"{option}={value}")
            else:
                line._add(option, value, joined, given[at + 1 :])
        if passed:
            line.words += ["--overrides", json.dumps(passed)]
        line._require({option for option, _, _ in pairs(words[1:])})
        return line

    @property
    def command(self) -> str:
        """The first word."""
        return self.words[0]

    @property
    def needs_no_workflow(self) -> bool:
        """Whether neither a workflow nor the settings of a run are named."""
        options = {option for option, _, _ in pairs(self.words[1:])}
        return not options & {"--data", "--model", *CONFIG}

    def with_dict_kwargs(self, name: str) -> CommandLine:
        """Return the line with what a cluster's class only passes on to its jobs."""
        option = rf"--data\.cluster\.(init_args\.)?(?={name}(=|\.|$))"
        moved = "--data.cluster.dict_kwargs."
        return replace(self, words=[re.sub(option, moved, w) for w in self.words])

    def without(self, section: str) -> CommandLine:
        """Return the line without the options of a section, such as ``--model``."""
        words = [self.command]
        for option, value, joined in pairs(self.words[1:]):
            if option.partition(".")[0] != section:
                given = [] if value is None else [value]
                words += ["=".join([option, *given])] if joined else [option, *given]
        return replace(self, words=words)

    def _add(
        self, option: str, value: str | None, joined: bool, after: Sequence[_Pair]
    ) -> None:
        if re.match("-[^-].", option):
            option = option.partition("=")[0]
            raise RecipeError(f"unknown option {option!r}. Did you mean '-{option}'?")
        if value is None:
            if re.match(_OF_RUNS, f"{option}."):
                word = "=".join(filter(None, after[0][:2])) if after else ""
                hint = f" If {word} is its value, type {option}='[\"{word}\"]'."
                hint *= bool(word and not re.match(_OF_RUNS, f"{word}."))
                raise RecipeError(f"{option} needs a value, got none.{hint}")
            self.words.append(option)
            return
        if option == "--data" and (files := _files_to_import(value)):
            raise RecipeError(
                f"--data {value}: expected a recipe or a data set, got files. Type "
                f"surrogate-flow inspect '{files}' > mine.yaml, then --data mine.yaml; "
                f"or surrogate-flow import '{files}' --output campaign.zarr, then "
                "--data campaign.zarr."
            )
        if option == "--data" and is_data_set(value):
            if self.command in ("plan", "generate", "compare"):
                raise RecipeError(
                    f"{self.command} simulates: expected a workflow as --data, got the "
                    f"data set {value}. Name a recipe, such as --data heat2d."
                )
            self.words += [option, _STORED, f"{option}.path", value]
            return
        path = Path(value) if option in CONFIG else given_recipe(option, value)
        if path is not None:
            recipe = read_recipe(path, of_class=option in _OF_CLASS)
            if option not in CONFIG and (parts := {*SECTIONS} & {*recipe}):
                raise RecipeError(
                    f"{path}: expected the arguments of {option} alone, got settings "
                    f"of a run ({', '.join(sorted(parts))}). Type surrogate-flow "
                    f"{self.command} --config {path}, or leave them out."
                )
            self.files[option], value = path, str(path)
        elif option == "--ckpt_path" and _names_missing_file(value):
            raise RecipeError(no_checkpoint(value))
        self.words += [f"{option}={value}"] if joined else [option, value]

    def _require(self, options: set[str]) -> None:
        settings = self.command != "compare" and options & {*CONFIG}
        if settings or (self.command == "predict" and self.needs_no_workflow):
            return
        for option in _NEEDED.get(self.command, ("--data", "--model")):
            enough = "" if self.command == "compare" else _ENOUGH.get(option, "")
            if not options & {option, enough, f"{enough}.class_path"}:
                remedy = "Name a recipe, such as --data heat2d --model fully_connected"
                if option == "--ckpt_path":
                    remedy = f"{_KEPT}; 'last' is the newest"
                elif enough:
                    remedy += f", or a class, such as {enough} package.module.Class"
                raise RecipeError(f"{self.command} needs {option}, got none. {remedy}.")


def _classes_first(given: list[_Pair]) -> list[_Pair]:
    """Put what names a recipe or a class before its arguments, which it would reset."""
    for at, (option, value, _) in enumerate(given):
        name = option.removesuffix(".class_path")
        before = [other for other, _, _ in given[:at]]
        mine = [n for n, other in enumerate(before) if other.startswith(f"{name}.")]
        if value is not None and mine and not {name, option} & {*before}:
            given.insert(mine[0], given.pop(at))
    return given


def _refuse_words(given: Sequence[_Pair], option: str, value: str | None) -> None:
    """Refuse words that no option takes, which stand behind that option."""
    plain = itertools.takewhile(lambda pair: not pair[0].startswith("-"), given)
    words = [word for word, _, _ in plain]
    if value and value[0] in "{[":
        whole = " ".join([value, *words])
        raise RecipeError(f"{option}: put quotes around its value: '{whole}'.")
    meant = [
        f"{takes} {word}"
        for word in words
        for takes, folder in FOLDERS.items()
        if word in shipped(folder) or (takes == "--data" and is_data_set(word))
    ]
    remedy = f"Did you mean {' '.join(meant)!r}?" if meant else QUOTES
    raise RecipeError(f"unexpected word {words[0]!r}. {remedy}")


def command_named(name: str) -> str:
    """Return the name of a command, or refuse what is none."""
    if name in COMMANDS:
        return name
    near = nearest(SYNONYMS.get(name, name), COMMANDS)
    raise RecipeError(f"No command {name!r}. {near}")


def pairs(words: Sequence[str]) -> Iterator[_Pair]:
    """Split words into options with their values, and whether both were one word."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if word.startswith("--") and equals:
            yield option, value, True
        elif word.startswith("-") and rest and not rest[0].startswith("--"):
            yield word, rest.pop(0), False
        else:
            yield word, None, False


def given_recipe(option: str, value: str) -> Path | None:
    """Return the recipe that an option is given, if it is one and not a class or YAML.

    Raises
    ------
    RecipeError
        If there is no such file and no such name.
    """
    if option not in FOLDERS or value == "null" or value.lstrip().startswith("{"):
        return None
    path = Path(value)
    is_yaml = path.suffix in (".yaml", ".yml")
    if option == "--trainer.logger" and value not in shipped(FOLDERS[option]):
        # Also a class of Lightning by its bare name, true, false, or a list.
        return path if is_yaml else None
    if path.suffix == ".py" and path.is_file():
        takes = _ENOUGH.get(option, option)
        raise RecipeError(
            f"{option}: expected a recipe or a class path, got the file {value}. "
            f"Name its class: {takes} {class_in(path)}."
        )
    typo = any(closest(value, [file.name]) for file in _files(Path()))
    typo = typo and bool(closest(path.suffix, _SUFFIXES))
    if _CLASS_PATH.fullmatch(value) and not (path.exists() or is_yaml or typo):
        return None
    return find_recipe(FOLDERS[option], value)


def _files(folder: Path) -> list[Path]:
    """Return what may be recipes and data sets in a folder."""
    return [path for path in sorted(folder.glob("*.*")) if path.suffix in _SUFFIXES]


def _names_missing_file(value: str) -> bool:
    return ("/" in value or value.endswith(".ckpt")) and not Path(value).is_file()


def shipped(kind: str) -> dict[str, Path]:
    """Return the recipes beside the package (a checkout) or of its wheel."""
    root = Path(__file__).resolve().parents[2]
    if (root / "setup.cfg").is_file():
        return {path.stem: path for path in sorted((root / kind).glob("*.yaml"))}
    installed = importlib.metadata.files("surrogate-flow") or []
    return {
        file.stem: Path(str(file.locate()))
        for file in installed
        if file.suffix == ".yaml" and file.parent.name == Path(kind).name
    }


def find_recipe(kind: str, name: str) -> Path:
    """Return the path of a recipe, given as one or by the name of one in that folder.

    Such as ``"workflows/heat2d.yaml"``, or ``"heat2d"`` of the folder ``"workflows"``.

    Raises
    ------
    RecipeError
        If there is no such file and no such name.
    """
    path, recipes = Path(name), shipped(kind)
    # First: a program, say, may bear the name of what it solves.
    if name in recipes:
        return recipes[name]
    if path.is_file():
        return path
    own = [file.name for file in _files(Path()) if kind == FOLDERS["--data"]]
    raise RecipeError(
        f"No recipe {name!r}: there is no such file in {Path.cwd()}, and none of that "
        f"name is shipped in {kind}. {nearest(path.name, recipes, own)} Give a "
        "path to your own YAML file, or one of these names."
    )


def is_data_set(name: str) -> bool:
    """Whether ``--data`` names a data set on disk, and no workflow.

    A folder does, by its path or with a data set in it; by its bare name alone only
    where no shipped workflow has that name.
    """
    path = Path(name)
    if path.suffix == ".zarr":
        return True
    sure = "/" in name or (path / "zarr.json").is_file()
    return path.is_dir() and (sure or name not in shipped("workflows"))


def _files_to_import(name: str) -> str:
    """Return a pattern of the files that simulations have left, if it is given them."""
    path = Path(name)
    if path.suffix in NETCDF:
        return name
    if path.is_dir() and path.suffix != ".zarr" and not (path / "zarr.json").is_file():
        suffixes = {file.suffix for file in path.iterdir()} & {*NETCDF}
        return f"{path}/*{min(suffixes)}" if suffixes else ""
    return ""


def read_recipe(path: Path, *, of_class: bool = False) -> dict[str, Any]:
    """Return what a YAML file holds: a mapping, with each class in its form.

    With `of_class` it has to name a class, as the recipe of a cluster does.

    Raises
    ------
    RecipeError
        If there is no such file, or it holds something else.
    """
    try:
        recipe = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"No file {str(path)!r} in {Path.cwd()}.") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise RecipeError(f"{path}: not valid YAML: {said}") from error
    try:
        recipe = _mapping(recipe)
        if of_class and "class_path" not in recipe:
            raise RecipeError(
                "expected class_path, and its arguments in init_args, got "
                f"{', '.join(recipe) or 'nothing'}. The shipped recipes show how."
            )
        _require_form(recipe)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    return recipe


def _require_form(value: Any, place: str = "") -> None:
    """Refuse a class that is not written ``class_path, init_args, dict_kwargs``."""
    if isinstance(value, list):
        for item in value:
            _require_form(item, place)
    if not isinstance(value, Mapping):
        return
    where = f"{place}: " if place else ""
    if "class_path" in value:
        if unknown := [key for key in value if key not in WRAPPING]:
            near = nearest(str(unknown[0]), WRAPPING)
            raise RecipeError(f"{where}unknown key {unknown[0]!r}. {near}")
        if not isinstance(value["class_path"], str):
            raise RecipeError(
                f"{where}class_path: expected 'package.module.Class', got "
                f"{value['class_path']!r}."
            )
        for key in WRAPPING[1:]:
            _mapping(value.get(key) or {}, where)
    for key, child in value.items():
        here = place if key in WRAPPING else f"{place}.{key}".lstrip(".")
        _require_form(child, here)


def _mapping(value: Any, where: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    raise RecipeError(
        f"{where}expected a mapping of names to values, got {type(value).__name__} "
        f"{str(value)[:40]!r}. The shipped recipes show how."
    )
