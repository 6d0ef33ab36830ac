"""Numbers and settings in words, for people; what is not known is said so."""

from __future__ import annotations

import importlib.util
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["arguments", "flattened", "number", "percent", "python_path", "seconds"]
__all__ += ["skill"]


def percent(value: float | None, spread: float | None = None) -> str:
    """Return a share in words, and what it varies by, to the same decimal place.

    Examples
    --------
    >>> percent(0.0552), percent(float("nan")), percent(None)
    ('5.52 %', 'not a number', 'not known')
    >>> percent(0.26, 0.0514)
    '26.0 % ± 5.1 %'
    """
    if value is None or not math.isfinite(value):
        return number(value)
    if not spread or not math.isfinite(spread) or not value:
        return f"{100 * value:.3g} %"
    places = max(0, 2 - math.floor(math.log10(abs(100 * value))))
    return f"{100 * value:.{places}f} % ± {100 * spread:.{places}f} %"


def number(value: float | None, units: str = "", digits: int = 4) -> str:
    """Return a number with its units, in words where there is none.

    Examples
    --------
    >>> number(60800), number(0.25, "K"), number(None)
    ('60,800', '0.25 K', 'not known')
    """
    if value is None:
        return "not known"
    if not math.isfinite(value):
        return "not a number"
    whole = float(value).is_integer() and abs(value) >= 10**digits / 10
    text = f"{value:,.0f}" if whole else f"{value:.{digits}g}"
    return f"{text} {units}" if units not in ("", "1") else text


def skill(value: float | None) -> str:
    """Return a skill in three digits, or in those that tell it from 1.

    Examples
    --------
    >>> skill(0.8764), skill(0.99962), skill(1.0), skill(None)
    ('0.876', '0.9996', '1', 'not known')
    """
    digits = 3
    while value is not None and value < 1 and float(f"{value:.{digits}g}") == 1:
        digits += 1
    return number(value, digits=digits)


def seconds(value: float | None) -> str:
    """Return a time in the unit that suits it.

    Examples
    --------
    >>> seconds(0.0021), seconds(9.28), seconds(600), seconds(90_000)
    ('2.1 ms', '9.28 s', '10 min', '25 h')
    """
    if value is None or not math.isfinite(value):
        return number(value)
    for size, units in ((3600 * 3, "h"), (180, "min"), (0.1, "s")):
        if value >= size:
            return f"{value / {'h': 3600, 'min': 60, 's': 1}[units]:.3g} {units}"
    return f"{1000 * value:.3g} ms"


def arguments(settings: Any) -> Mapping[str, Any]:
    """Return the options of what settings describe, by its class or without.

    Examples
    --------
    >>> arguments({"class_path": "A", "init_args": {"width": 4}}), arguments(None)
    ({'width': 4}, {})
    """
    if not isinstance(settings, Mapping):
        return {}
    inside = settings.get("init_args")
    return inside if isinstance(inside, Mapping) else settings


def flattened(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested settings by their options.

    Examples
    --------
    >>> flattened({"model": {"network": {"width": 4}}})
    {'model.network.width': 4}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            inside = before if name == "init_args" else f"{before}{name}."
            flat.update(flattened(value, inside))
        else:
            flat[f"{before}{name}".removesuffix(".class_path")] = value
    return flat


def python_path(settings: Any) -> str:
    """Return what stands before a command, so that Python finds the user's modules."""
    folders = [Path(f) for f in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    needed = []
    for module in sorted({*_modules(settings)} - {"surrogate_flow", "__main__"}):
        names = module, f"{module}.py"
        found = [str(f) for f in folders if any((f / name).exists() for name in names)]
        if found or importlib.util.find_spec(module) is None:
            needed.append(found[0] if found else f"FOLDER_OF_{module}")
    path = shlex.quote(os.pathsep.join(dict.fromkeys(needed)))
    return f"PYTHONPATH={path} " if needed else ""


def _modules(settings: Any) -> Iterator[str]:
    """Yield the packages of the classes that settings name."""
    if isinstance(settings, Mapping):
        if isinstance(path := settings.get("class_path"), str):
            yield path.partition(".")[0]
        for value in settings.values():
            yield from _modules(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _modules(value)
