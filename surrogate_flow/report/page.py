"""report.html: what a run was, did and cost, as one file without network."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from bokeh.embed import components
from bokeh.resources import INLINE, Resources

from surrogate_flow.files import write_atomically
from surrogate_flow.report.film import Film

__all__ = ["Block", "Section", "number", "percent", "render", "seconds", "write"]


@dataclass(frozen=True)
class Block:
    """A part of a section, of one of the kinds that the template knows."""

    kind: str
    text: str = ""
    caption: str = ""
    plot: Any = None
    film: Film | None = None
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


@dataclass
class Section:
    """A heading and what is below it, or why nothing is."""

    name: str
    title: str
    absent: str = ""
    blocks: list[Block] = field(default_factory=list)

    def add(self, kind: str, text: str = "", caption: str = "", **more: Any) -> None:
        """Add a block."""
        self.blocks.append(Block(kind, text, caption, **more))

    def plot(self, plot: Any, caption: str) -> None:
        """Add a plot, if there is one."""
        if plot is not None:
            self.add("plot", caption=caption, plot=plot)


def render(
    title: str, headline: str, sections: Sequence[Section], footer: str = ""
) -> str:
    """Return the page; whatever text is given is escaped."""
    plots: dict[str, Any] = {}
    for section in sections:
        for at, block in enumerate(section.blocks):
            if block.plot is not None:
                key = f"{section.name}{at}"
                plots[key] = block.plot
                section.blocks[at] = Block("plot", key, block.caption, block.plot)
    script, divisions = components(plots) if plots else ("", {})
    return _template().render(
        title=title,
        headline=headline,
        sections=sections,
        footer=footer,
        plots=divisions,
        script=script,
        library=_library() if plots else "",
    )


def write(path: Path, page: str) -> None:
    """Write a page, whole or not at all."""
    with write_atomically(path) as part:
        part.write_text(page, "utf-8")


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("surrogate_flow", "report")
    return jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html.j2")


@functools.cache
def _library() -> str:
    # Of Bokeh's parts the first alone: no widgets, no tables, no formulas.
    resources: Resources = INLINE.clone()
    resources.components = ["bokeh"]
    return resources.render_js()


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


def listed(names: Iterable[str]) -> str:
    """Return names in words."""
    return ", ".join(names) or "none"


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
