"""Numbers and settings in words, for people; what is not known is said so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["counted_large", "flattened", "number", "percent", "seconds"]


def counted_large(count: int, noun: str, plural: str = "") -> str:
    """Return a number of things, with commas.

    Examples
    --------
    >>> counted_large(1900, "batch", "batches")
    '1,900 batches'
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def percent(value: float | None) -> str:
    """Return a share in words.

    Examples
    --------
    >>> percent(0.0552), percent(float("nan")), percent(None)
    ('5.52 %', 'not a number', 'not known')
    """
    if value is None:
        return "not known"
    return f"{100 * value:.3g} %" if math.isfinite(value) else "not a number"


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
