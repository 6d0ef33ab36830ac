"""Arguments in the words of a user: their types, classes, and the names meant."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

from surrogate_flow.cli.pages import options_shown
from surrogate_flow.cli.recipes import SYNONYMS
from surrogate_flow.fields.names import nearest

__all__ = [
    "EXPECTED",
    "bases_of",
    "described",
    "known_classes",
    "likely",
    "stands_for_others",
    "subclasses_of",
]

#: How jsonargparse begins a type, but for a path or a class that stands beside a type.
EXPECTED = r"Expected an? (?!path but|dot import)"
_WORDS = {"NoneType": "null", "bool": "true or false", "dict": "a mapping"}
_LISTS = ("tuple", "list", "set", "sequence", "iterable", "Sequence", "Iterable")
_EXAMPLES = {"int": "1234", "float": ("0.5", "1.0", "1.5", "2.0"), "str": "abcd"}

# Of an argument, the classes that its help names; of any other the first ones.
_SHOWN = {
    "network": re.compile(r"surrogate_flow\.nn\.\w+$"),
    "loss": re.compile(r"torch\.nn\.\w+Loss$"),
}


def described(message: str, hint: Any) -> str:
    """Return the types that a message expects as a user would write their values."""
    types, choices = [], dict[str, str]()
    for found in re.findall(rf"{EXPECTED}(.+?)(?:\. Got value|$)", message, re.M):
        text = re.sub(r"<class '([\w.]+)'>", r"\1", found)
        text = re.sub(r"\b(?:\w+\.)+(\w)", r"\1", text)
        if literal := re.fullmatch(r"Literal\[(.*)\]", text):
            for choice in literal[1].split(", "):
                choices.setdefault(choice.strip("'"), choice)
        elif text.partition(" ")[0] in _LISTS:
            types.append(_list_described(hint))
        else:
            types.append(_WORDS.get(text, text))
    if choices:
        types.insert(0, f"one of {', '.join(choices.values())}")
    return " or ".join(dict.fromkeys(types))


def _list_described(hint: Any) -> str:
    """Return how a list is written, from the type of an argument."""
    origin = getattr(typing.get_origin(hint), "__name__", "").lower()
    inside = [kind for kind in typing.get_args(hint) if kind is not ...]
    if origin not in _LISTS:
        return next((t for t in map(_list_described, inside) if "[" in t), "a list")
    # Of several types the first, such as that of a number beside that of a tensor.
    kinds = typing.get_args(inside[0]) or inside[:1] if inside else ()
    name = getattr(kinds[0], "__name__", "") if kinds else ""
    if not (example := _EXAMPLES.get(name)):
        return "a list"
    count = len(inside) if origin == "tuple" and ... not in typing.get_args(hint) else 0
    of = f"{count} {name}" if count else name
    return f"a list of {of}, such as [{', '.join(example[: count or 2])}]"


def bases_of(hint: Any) -> list[type]:
    """Return the classes in a type; of a callable, those that it returns."""
    if inspect.isclass(hint) and not typing.get_args(hint):
        return [] if hint.__module__ == "builtins" else [hint]
    inside = typing.get_args(hint)
    if typing.get_origin(hint) is typing.get_origin(Callable[..., Any]):
        inside = inside[-1:]
    return [base for option in inside for base in bases_of(option)]


def subclasses_of(base: type) -> list[str]:
    """Return the names of all that have been imported and can be built."""
    hidden = stands_for_others(base) or base.__name__.startswith("_")
    own = [] if hidden else [base.__name__]
    children: list[type] = type.__subclasses__(base)
    return own + [name for child in children for name in subclasses_of(child)]


def known_classes(argument: str, paths: Sequence[str]) -> str:
    """Return the classes that an argument takes as text, not hundreds of them."""
    pattern = _SHOWN.get(argument.rpartition(".")[2], re.compile(""))
    shown = [path for path in paths if pattern.match(path)][:20]
    more = len(paths) - len(shown)
    others = f"{more} others and " if more else ""
    return (
        f"{', '.join(shown)}; {others}any other by its import path, such as "
        "package.module.Class"
    )


def stands_for_others(kind: Any) -> bool:
    """Whether a class is only there to be derived from."""
    # That of Dask is not declared abstract.
    name = f"{kind.__module__}.{kind.__name__}"
    return inspect.isabstract(kind) or name == "distributed.deploy.cluster.Cluster"


def likely(name: str, valid: Sequence[str]) -> str:
    """Return the nearest name, or the option that another tool's name stands for."""
    known = SYNONYMS.get(name)
    if known is None or known in valid:
        return nearest(known or name, valid)
    others = [option for option in options_shown() if option.endswith(f".{known}")]
    return f"Did you mean {others[0]!r}?" if others else nearest(name, valid)
