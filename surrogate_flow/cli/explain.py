"""A complaint of jsonargparse in one line: where, what, and the nearest valid name.

jsonargparse parses the arguments of each class with a parser of their own, and wraps
the complaint of an inner parser into that of the outer one. The inner parser knows the
valid names, so it writes the sentence (`Complaint`), which the outermost one finds in
the text around it (`innermost`). The patterns are those of jsonargparse 4.49 to 4.53;
of a text that none of them knows only the noise is left out.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

from jsonargparse import ArgumentParser

from surrogate_flow.cli.recipes import (
    SECTIONS,
    WRAPPING,
    CommandLine,
    pairs,
    read_recipe,
)
from surrogate_flow.cluster.batch.systems import known_arguments
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.names import RecipeError, class_at, nearest

__all__ = ["Complaint", "ParserError", "innermost", "placed", "shielded"]

_SHIELDED = re.compile(r"⟦(.*?)⟧(\+?)⟧(.*?)⟦/⟧", re.DOTALL)
_NOISE = re.compile(
    r"Does not validate|Expected a path but|Subtypes:|Errors:|Given value|Parser key"
    r"|Expected a <class 'NoneType'>$"
)
_HIDDEN = {
    *("help", "config", "print_config", "print_shtab", "overrides", "subcommand"),
    "==SUPPRESS==",
}


class ParserError(UserError):
    """What a parser refuses.

    Attributes
    ----------
    word : str
        The name or the value that is wrong, by which its place is found.
    section : str
        The option that it is under, such as ``data``; empty if that is not known.
    passes_on : bool
        Whether the name may be of what a class passes on as keywords.
    """

    def __init__(
        self, text: str, word: str = "", section: str = "", *, passes_on: bool = False
    ) -> None:
        super().__init__(text)
        self.word = word
        self.section = section
        self.passes_on = passes_on


def shielded(error: ParserError) -> str:
    """Return a text that comes through the texts around it unchanged."""
    return f"⟦{error.word}⟧{'+' * error.passes_on}⟧{error}⟦/⟧"


def innermost(message: str) -> ParserError | None:
    """Return what an inner parser has complained about, if this is around it."""
    found = _SHIELDED.search(message)
    section = re.match(r'Parser key "(\w+)', message)
    if found is None:
        return None
    word, passes_on, text = found.groups()
    place = section[1] if section else ""
    return ParserError(text, word, place, passes_on=bool(passes_on))


def placed(error: ParserError, line: CommandLine) -> str:
    """Return a complaint with its place in front: the option, or file and key."""
    text = str(error)
    for option, value, _ in reversed([*pairs(line.words[1:])] if error.word else []):
        is_name = error.word in option.lstrip("-").split(".")
        is_value = option not in line.files and _holds(value or "", error.word)
        if is_name or is_value:
            # An option that is unknown stands in the text.
            return text if option in text else f"{option.rstrip('+')}: {text}"
    for path in line.files.values() if error.word else ():
        if keys := next(_places(read_recipe(path), error.word), None):
            place = ".".join(key for key in keys if key not in WRAPPING)
            return f"{path}: {place}: {text}" if place else f"{path}: {text}"
    file = line.files.get(f"--{error.section}")
    return f"{file}: {text}" if file else text


def _holds(value: object, word: str) -> bool:
    """Whether a value is, or names, what is wrong."""
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", str(value)))


def _places(value: Any, word: str) -> Iterator[tuple[str, ...]]:
    """Yield the keys that lead to a name or value in a recipe, outermost first."""
    if isinstance(value, list):
        for child in value:
            yield from _places(child, word)
    elif isinstance(value, Mapping):
        for key, child in value.items():
            is_value = not isinstance(child, (list, dict)) and _holds(child, word)
            if key == word or is_value:
                yield (key,)
            for place in _places(child, word):
                yield (key, *place)


@dataclass(frozen=True)
class Complaint:
    """What a parser says is wrong.

    Attributes
    ----------
    message : str
    parser : ArgumentParser
    owner : class or function, optional
        Whose arguments it parses; those of a command by default.
    """

    message: str
    parser: ArgumentParser
    owner: Any = None

    def explained(self) -> ParserError:
        """Return it in one sentence or two."""
        for pattern, explain in _PATTERNS.items():
            found = re.search(pattern, self.message)
            if found and (error := explain(self, found)):
                return error
        lines = [line.strip(" -") for line in self.message.splitlines()]
        said = [line for line in lines if line and not _NOISE.match(line)]
        return ParserError(" ".join(said[:2]) or self.message)

    def _unknown(self, found: re.Match[str]) -> ParserError:
        """Name the argument of a class, or of a dataclass within it, that was meant."""
        word = found["name"].removeprefix("--")
        if self.owner is None:
            return self._unknown_option(f"--{word}")
        group = found.groupdict().get("group")
        word = f"{group}.{word}" if group else word
        prefix, _, name = word.partition("=")[0].rpartition(".")
        if not prefix and _stands_for_others(self.owner):
            return ParserError(
                f"no class is named yet, whose {name!r} could be set: name one before "
                "it.",
                name,
            )
        kind = prefix or self.owner.__name__
        jobs = not prefix and hasattr(self.owner, "job_cls")  # a dask-jobqueue class
        names = sorted(known_arguments(self.owner)) if jobs else self._known(prefix)
        text = f"unknown argument {name!r} of {kind}. {nearest(name, names)}"
        if jobs and name in names:
            text = (
                f"{kind} passes {name!r} on to its jobs: move it, "
                f"dict_kwargs: {{{name}: ...}}."
            )
        return ParserError(text, name, passes_on=_takes_any(self.owner))

    def _unrecognized(self, found: re.Match[str]) -> ParserError:
        if found["name"].startswith("-"):
            return self._unknown(found)
        return ParserError(
            f"unexpected word {found['name']!r}. Options begin with --, and a value "
            "with blanks needs quotes."
        )

    def _unknown_option(self, word: str) -> ParserError:
        """Name the option that was meant, perhaps one without its section in front."""
        option = word.partition("=")[0]
        section, _, rest = option.removeprefix("--").partition(".")
        if section in SECTIONS and rest:
            name = rest.partition(".")[0]
            valid = nearest(name, self._known(section))
            return ParserError(f"unknown argument {name!r} of {section}. {valid}", name)
        for head in SECTIONS:
            if section in (*self._known(head), *self._of_default(head)):
                meant = f"--{head}.{option.removeprefix('--')}"
                return ParserError(
                    f"unknown option {option!r}. Did you mean {meant!r}?", section
                )
        valid = nearest(f"--{section}", [f"--{name}" for name in self._known()])
        return ParserError(f"unknown option {option!r}. {valid}", section)

    def _required(self, found: re.Match[str]) -> ParserError:
        name = found["name"].partition(",")[0].strip()
        if self.owner is not None:
            kind = self.owner.__name__
            return ParserError(
                f"{kind} needs {name!r}, which has no default, got nothing. Give it in "
                f"the recipe, as init_args: {{{name}: ...}}, or on the command line.",
                kind,
            )
        command = (self.parser.prog or "").rpartition(" ")[2]
        option = name.removeprefix("--").removeprefix(f"{command}.")
        return ParserError(
            f"{command} needs --{option}, which has no default, got nothing."
        )

    def _not_importable(self, found: re.Match[str]) -> ParserError | None:
        path = f"{found['module']}.{found['name']}"
        if found["module"] is None:
            path = self._class_path()
        try:
            if path:
                class_at(path)
        except RecipeError as error:
            return ParserError(str(error), path)
        return None

    def _class_path(self) -> str:
        """Return the class that the message is about."""
        paths = r"class_path'?[ :=]+'([\w.]+)'|(?:Given|Got) value: ([\w.]+)"
        found = re.search(paths, self.message)
        return (found[1] or found[2]) if found else ""

    def _bare_name(self, found: re.Match[str]) -> ParserError:
        name, key = found["name"], re.search(r'Parser key "([\w.]+)"', self.message)
        actions = {action.dest: action for action in self.parser._actions}
        hint = getattr(actions.get(key[1]), "_typehint", None) if key else None
        valid = sorted({n for base in _bases(hint) for n in _subclasses(base)})
        near = f" {nearest(name, valid)}" if valid else ""
        return ParserError(
            f"no class {name!r}.{near} Any other goes by its import path, such as "
            "package.module.Class.",
            name,
        )

    def _no_subclass(self, found: re.Match[str]) -> ParserError:
        path = found["path"] or self._class_path() or "another class"
        name, base = path.rpartition(".")[2], found["base"]
        return ParserError(
            f"expected a subclass of {base}, got {name}. Derive it: class "
            f"{name}({base}).",
            path,
        )

    def _abstract(self, found: re.Match[str]) -> ParserError:
        kind = class_at(found["path"])
        missing = ", ".join(sorted(getattr(kind, "__abstractmethods__", ())))
        return ParserError(
            f"{kind.__name__} has no {missing} yet, and so cannot be built. Name a "
            "class that has all that its base asks for, or write it.",
            found["path"],
        )

    def _wrong_type(self, found: re.Match[str]) -> ParserError:
        wanted = re.findall(r"Expected an? (.+?)(?:\. Got value|$)", self.message, re.M)
        types = " or ".join(dict.fromkeys(map(_described, wanted)))
        value = found["value"].strip()
        return ParserError(f"expected {types}, got {value!r}.", value)

    def _out_of_range(self, found: re.Match[str]) -> ParserError:
        value = found["value"]
        return ParserError(
            f"expected a number {found['rule'].strip()}, got {value}.", value
        )

    def _known(self, prefix: str = "") -> list[str]:
        """Return the names of arguments, or of those in a group, in their order."""
        dests = [a.dest for a in self.parser._actions if a.dest not in _HIDDEN]
        head = f"{prefix}." if prefix else ""
        inside = [dest.removeprefix(head) for dest in dests if dest.startswith(head)]
        return list(dict.fromkeys(dest.partition(".")[0] for dest in inside))

    def _of_default(self, section: str) -> list[str]:
        """Return the arguments of the class that is built where none is named."""
        default = self.parser.get_defaults().get(section)
        path = default.get("class_path") if hasattr(default, "get") else None
        return list(inspect.signature(class_at(path)).parameters) if path else []


# What jsonargparse says, the most telling first.
_PATTERNS: dict[str, Callable[[Complaint, re.Match[str]], ParserError | None]] = {
    r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.]+)'": (
        Complaint._unknown
    ),
    r"[Oo]ption '(?P<name>[\w.]+)'(?: is not accepted|$)": Complaint._unknown,
    r"unrecognized arguments: (?P<name>\S+)": Complaint._unrecognized,
    r"the following arguments are required: (?P<name>.+)": Complaint._required,
    r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'|No module named": (
        Complaint._not_importable
    ),
    r"Expected a dot import path string: (?P<name>\S+)": Complaint._bare_name,
    r"Import path (?:(?P<path>[\w.]+) )?does not correspond to a subclass of "
    r"(?P<base>\w+)": Complaint._no_subclass,
    r"Expected an instantiatable class, but (?P<path>[\w.]+) is abstract": (
        Complaint._abstract
    ),
    r"Expected an? .+\. Got value: (?P<value>.+)": Complaint._wrong_type,
    r"Not of type \w+: (?P<value>.+?) does not conform to restriction v(?P<rule>.+)": (
        Complaint._out_of_range
    ),
}


def _takes_any(owner: Any) -> bool:
    """Whether a class takes keywords of any name."""
    parameters = inspect.signature(owner).parameters.values()
    return any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters)


def _described(text: str) -> str:
    """Return a type of Python as a user would write it."""
    if choices := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return f"one of {choices[1]}"
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    return re.sub(r"\b(?:\w+\.)+(\w)", r"\1", text).replace("NoneType", "null")


def _bases(hint: Any) -> list[type]:
    """Return the classes in a type; of a callable, those that it returns."""
    if inspect.isclass(hint) and not typing.get_args(hint):
        return [] if hint is NoneType else [hint]
    inside = typing.get_args(hint)
    if typing.get_origin(hint) is typing.get_origin(Callable[..., Any]):
        inside = inside[-1:]
    return [base for option in inside for base in _bases(option)]


def _subclasses(base: type) -> list[str]:
    """Return the names of all that have been imported and can be built."""
    own = [] if _stands_for_others(base) else [base.__name__]
    children: list[type] = type.__subclasses__(base)
    return own + [name for child in children for name in _subclasses(child)]


def _stands_for_others(kind: Any) -> bool:
    """Whether a class is only there to be derived from."""
    # That of Dask is not declared abstract.
    name = f"{kind.__module__}.{kind.__name__}"
    return inspect.isabstract(kind) or name == "distributed.deploy.cluster.Cluster"
