"""report.html: what a run was, did and cost, as one file without network."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
from bokeh.document import Document
from bokeh.embed import components
from bokeh.resources import INLINE, Resources

from surrogate_flow.report.html.film import Film

__all__ = ["Block", "Section", "filled", "render"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Block:
    """A part of a section, of one of the kinds that the template knows."""

    kind: str
    text: str = ""
    caption: str = ""
    plots: Sequence[Any] = ()
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
        """Add a plot, or several beside each other, if there is one."""
        plots = plot if isinstance(plot, list) else [plot] * (plot is not None)
        if plots:
            self.add("plot", caption=caption, plots=plots)


def filled(name: str, title: str, fill: Callable[[Section], None]) -> Section:
    """Return a section; what cannot be shown is said, and ends no page."""
    section = Section(name, title, "Nothing is known of this.")
    try:
        fill(section)
    except Exception as error:
        # Of any type, by what a damaged file or another version holds.
        logger.exception("%s cannot be shown.", title)
        section.absent = f"This cannot be shown: {type(error).__name__}: {error}."
        section.blocks.clear()
    return section


def render(
    title: str, headline: str, sections: Sequence[Section], footer: str = ""
) -> str:
    """Return the page; whatever text is given is escaped."""
    blocks = [block for section in sections for block in section.blocks]
    plots = {plot.id: plot for block in blocks for plot in block.plots}
    # Without a document of its own, Bokeh copies callbacks from that of a live page
    # which another thread draws at this moment, and widgets with them.
    own = Document()
    for plot in plots.values():
        own.add_root(plot)
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


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("surrogate_flow", "report/html")
    return jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html.j2")


@functools.cache
def _library() -> str:
    # Of Bokeh's parts the first alone: no widgets, no tables, no formulas.
    resources: Resources = INLINE.clone()
    resources.components = ["bokeh"]
    return str(resources.render_js())
