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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from surrogate_flow.cli.hints import (
    EXPECTED,
    bases_of,
    described,
    likely,
    stands_for_others,
    subclasses_of,
)
from surrogate_flow.cli.pages import options_shown
from surrogate_flow.cli.recipes import (
    CONFIG,
    QUOTES,
    SECTIONS,
    SYNONYMS,
    WRAPPING,
    CommandLine,
    pairs,
    read_recipe,
)
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.names import (
    RecipeError,
    class_at,
    class_in,
    closest,
    nearest,
)

__all__ = [
    "Complaint",
    "ParserError",
    "innermost",
    "placed",
    "shielded",
]

_SHIELDED = re.compile(r"⟦(.*?)⟧([\w.]*)(\+?)⟧(.*?)⟦/⟧", re.DOTALL)
_KEY = re.compile(r'Parser key "([\w.]+)"')
_NOISE = re.compile(
    r"Does not validate|Expected a path but|Subtypes:|Errors:|Given value|Parser key"
    r"|Expected a <class 'NoneType'>$"
)
_HIDDEN = {
    *("help", "config", "print_config", "print_shtab", "overrides", "subcommand"),
    "==SUPPRESS==",
}
# Arguments of dask-jobqueue that have other names now.
_OLD = ("extra", "env_extra", "job_extra", "header_skip", "project")


class ParserError(UserError):
    """What a parser refuses.

    Attributes
    ----------
    word : str
        The name or the value that is wrong, by which its place is found.
    place : str
        The argument that it is about, such as ``data.solver.steps``, as far as the
        parsers around it are known.
    passes_on : bool
        Whether the name may be of what a class passes on as keywords.
    """

    def __init__(
        self, text: str, word: str = "", place: str = "", *, passes_on: bool = False
    ) -> None:
        super().__init__(text)
        self.word = word
        self.place = place
        self.passes_on = passes_on


def shielded(error: ParserError) -> str:
    """Return a text that comes through the texts around it unchanged."""
    return f"⟦{error.word}⟧{error.place}{'+' * error.passes_on}⟧{error}⟦/⟧"


def innermost(message: str) -> ParserError | None:
    """Return what an inner parser has complained about, if this is around it."""
    found = _SHIELDED.search(message)
    outer = _KEY.match(message)
    if found is None:
        return None
    word, place, passes_on, text = found.groups()
    if outer:
        place = f"{outer[1]}.{place}".rstrip(".")
    return ParserError(text, word, place, passes_on=bool(passes_on))


def placed(error: ParserError, line: CommandLine) -> str:
    """Return a complaint with its place in front: the option, or file and key."""
    text = str(error)
    for option, value, _ in reversed([*pairs(line.words[1:])] if error.word else []):
        names = option.strip("-+").split(".")
        is_value = option not in line.files and _holds(value or "", error.word)
        if (error.word in names or is_value) and _leads(names, error.place):
            # An option that is unknown stands in the text.
            return text if option in text else f"{option.rstrip('+')}: {text}"
    for option, path in line.files.items() if error.word else ():
        whole = option in CONFIG or _leads(option.strip("-").split("."), error.place)
        if whole and (keys := next(_places(read_recipe(path), error.word), None)):
            place = ".".join(key for key in keys if key not in WRAPPING)
            return f"{path}: {place}: {text}" if place else f"{path}: {text}"
    # A value that the parser shows otherwise than it was typed, such as 1e3.
    for option, _, _ in pairs(line.words[1:]):
        if option not in line.files and option == f"--{error.place}":
            return f"{option}: {text}"
    section, _, key = error.place.partition(".")
    file = line.files.get(f"--{section}")
    return f"{file}: {key}: {text}".replace(": : ", ": ", 1) if file else text


def _leads(names: list[str], place: str) -> bool:
    """Whether an option may be what is wrong at a place: is it, around it or in it."""
    there = place.split(".") if place else []
    own = [name for name in names if name not in WRAPPING][: len(there)]
    return own == there[: len(own)]


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
                error.place = self._key
                return error
        lines = [line.strip(" -") for line in self.message.splitlines()]
        said = [line for line in lines if line and not _NOISE.match(line)]
        return ParserError(" ".join(said[:2]) or self.message, place=self._key)

    @property
    def _key(self) -> str:
        """The argument that the message is about, or nothing."""
        found = _KEY.match(self.message)
        return found[1] if found else ""

    @property
    def _hint(self) -> Any:
        """The type of that argument."""
        actions = {action.dest: action for action in self.parser._actions}
        return getattr(actions.get(self._key), "_typehint", None)

    def _unknown(self, found: re.Match[str]) -> ParserError:
        """Name the argument of a class, or of a dataclass within it, that was meant."""
        word = found["name"].removeprefix("--")
        if self.owner is None:
            return self._unknown_option(f"--{word}")
        group = found.groupdict().get("group")
        word = f"{group}.{word}" if group else word
        prefix, _, name = word.partition("=")[0].rpartition(".")
        if not prefix and stands_for_others(self.owner):
            return ParserError(
                f"no class is named yet, whose {name!r} could be set: name one before "
                "it.",
                name,
            )
        from surrogate_flow.cluster.batch.systems import known_arguments

        kind = prefix or self.owner.__name__
        jobs = not prefix and hasattr(self.owner, "job_cls")  # a dask-jobqueue class
        names = sorted(known_arguments(self.owner)) if jobs else self._known(prefix)
        wrapped = None if prefix else getattr(self.owner, "cluster_class", None)
        valid = likely(name, names)
        if isinstance(wrapped, type):  # the owner is a batch system of ours
            theirs = known_arguments(wrapped) - {*names, *_OLD}
            near = closest(name, [*names, *theirs])
            if near and near[0] in theirs:
                valid = f"Did you mean '--data.cluster.options.{near[0]}'?"
        text = f"unknown argument {name!r} of {kind}. {valid}"
        if jobs and name in names:
            text = (
                f"{kind} passes {name!r} on to its jobs: move it, "
                f"dict_kwargs: {{{name}: ...}}."
            )
        taken = inspect.signature(self.owner).parameters.values()
        passes_on = wrapped is None and any(p.kind == p.VAR_KEYWORD for p in taken)
        return ParserError(text, name, passes_on=passes_on)

    def _unrecognized(self, found: re.Match[str]) -> ParserError:
        if found["name"].startswith("-"):
            return self._unknown(found)
        return ParserError(f"unexpected word {found['name']!r}. {QUOTES}")

    def _unknown_option(self, word: str) -> ParserError:
        """Name the option that was meant, perhaps one without its section in front."""
        option = word.partition("=")[0]
        typed, _, rest = option.removeprefix("--").partition(".")
        section = SYNONYMS.get(typed, typed).replace("-", "_")
        if section in SECTIONS and rest:
            name = rest.partition(".")[0]
            valid = likely(name, self._known(section))
            return ParserError(f"unknown argument {name!r} of {section}. {valid}", name)
        inside = f"{section}.{rest}".rstrip(".")
        meant = [
            f"--{head}.{inside}"
            for head in SECTIONS
            if section in (*self._known(head), *self._of_default(head))
        ] or [o for o in options_shown() if o.endswith(f".{inside}")]
        if meant:
            return ParserError(
                f"unknown option {option!r}. Did you mean {meant[0]!r}?", typed
            )
        valid = nearest(f"--{section}", [f"--{name}" for name in self._known()])
        return ParserError(f"unknown option {option!r}. {valid}", typed)

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

    def _bare_name(self, found: re.Match[str]) -> ParserError | None:
        if re.search(r"Expected a <class '(int|float)'>", self.message):
            return None  # A number is what is typed there.
        name = found["name"]
        valid = sorted(
            {n for base in bases_of(self._hint) for n in subclasses_of(base)}
        )
        near = f" {nearest(name, valid)}" if valid else ""
        if name.lower() == "none":
            near = f" null leaves it out.{near}"
        return ParserError(
            f"no class {name!r}.{near} Any other goes by its import path, such as "
            "package.module.Class.",
            name,
        )

    def _no_recipe(self, found: re.Match[str]) -> ParserError:
        text = f"not valid YAML: {found['said']}"
        if found["path"].endswith(".py"):
            text = (
                f"expected a class path such as {class_in(Path(found['path']))}, "
                "got a file of Python."
            )
        return ParserError(text, found["path"])

    def _no_path(self, found: re.Match[str]) -> ParserError:
        path = found["path"]
        is_file = path.endswith(".py")
        like = class_in(Path(path)) if is_file else "package.module.Class"
        return ParserError(f"expected a class path such as {like}, got {path!r}.", path)

    def _no_callable(self, found: re.Match[str]) -> ParserError | None:
        for base in bases_of(self._hint):
            path = re.findall(r"[\w.]+", found["value"])[-1]
            return ParserError(
                f"expected a subclass of {base.__name__}, or a function with the "
                f"annotation -> {base.__name__}, got {path}.",
                path,
            )
        return None

    def _no_subclass(self, found: re.Match[str]) -> ParserError:
        path = found["path"] or self._class_path() or "another class"
        name, base = path.rpartition(".")[2], found["base"]
        return ParserError(
            f"expected a subclass of {base}, got {name}. Derive it: class "
            f"{name}({base}).",
            path,
        )

    def _abstract(self, found: re.Match[str]) -> ParserError:
        path = found["path"] or self._class_path() or ""
        kind = class_at(path)
        if kind in bases_of(self._hint):
            valid = ", ".join(sorted(subclasses_of(kind)))
            return ParserError(
                "no class is named yet, whose arguments could be set: name one before "
                f"them. Valid names: {valid}.",
                self._key,
            )
        missing = ", ".join(sorted(getattr(kind, "__abstractmethods__", ())))
        return ParserError(
            f"{kind.__name__} has no {missing} yet, and so cannot be built. Name a "
            "class that has all that its base asks for, or write it.",
            path,
        )

    def _wrong_type(self, found: re.Match[str]) -> ParserError | None:
        value = found["value"].strip()
        expected = described(self.message, self._hint)
        if expected == "null":
            return None  # What else would do is said otherwise.
        text = f"expected {expected}, got {value!r}."
        if expected == "a mapping":
            text += " Put quotes around it, and a blank behind each colon: '{a: 1}'."
        return ParserError(text, value)

    def _out_of_range(self, found: re.Match[str]) -> ParserError:
        value, expected = found["value"], f"expected a number {found['rule']}".rstrip()
        return ParserError(f"{expected}, got {value}.", value)

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
    r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.-]+)'": (
        Complaint._unknown
    ),
    r"[Oo]ption '(?P<name>[\w.-]+)'(?: is not accepted|$)": Complaint._unknown,
    r"unrecognized arguments: (?P<name>\S+)": Complaint._unrecognized,
    r"the following arguments are required: (?P<name>.+)": Complaint._required,
    r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'|No module named": (
        Complaint._not_importable
    ),
    r"Invalid content in sub-config file (?P<path>.+?): (?P<said>.+)": (
        Complaint._no_recipe
    ),
    r"Expected a dot import path string: (?P<name>.+)": Complaint._bare_name,
    r"(?:Unexpected import path format|Config file loop detected): (?P<path>\S+)": (
        Complaint._no_path
    ),
    r"Import path (?:(?P<path>[\w.]+) )?does not correspond to a subclass of "
    r"(?P<base>\w+)": Complaint._no_subclass,
    r"Expected an instantiatable class, but (?:(?P<path>[\w.]+) )?is abstract": (
        Complaint._abstract
    ),
    r"NestedArg\(key='\w+', val='(?P<module>[\w.]+)\.(?P<name>\w+)'": (
        Complaint._not_importable
    ),
    r"expects a function or a callable class(?s:.+?)Got value: (?P<value>.+)": (
        Complaint._no_callable
    ),
    rf"{EXPECTED}(?s:.+?)G(?:ot|iven) value: (?P<value>.*)": Complaint._wrong_type,
    r"Not of type \w+: (?P<value>.+?) does not conform to restriction v(?P<rule>.+)": (
        Complaint._out_of_range
    ),
    r"Not of type \w+: (?P<rule>)[^\n']+'(?P<value>.+)'": Complaint._out_of_range,
}
