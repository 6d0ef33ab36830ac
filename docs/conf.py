"""The site of the documentation: `make docs`, without a network."""

import os
import re
from pathlib import Path
from typing import Any

project = html_title = "surrogate_flow"
html_show_copyright = False
root = Path(__file__).parents[1]

extensions = ["myst_nb", "numpydoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode"]
templates_path = ["_templates"]
exclude_patterns = ["ci", "_templates"]
html_theme = "furo"
# Tests run the notebook; `make docs NOTEBOOK=force` does, too, and shows its pictures.
nb_execution_mode = os.environ.get("NOTEBOOK", "off")
nb_execution_timeout = 600
nb_execution_in_temp = nb_execution_raise_on_error = True
nb_output_stderr = "remove"
# Equations are plain characters, here and in docstrings: a terminal shows them, and no
# page needs a script of another machine that would draw them.
myst_enable_extensions = ["colon_fence"]
nb_ipywidgets_js: dict[str, Any] = {}
myst_heading_anchors = 3
numpydoc_show_class_members = False
autodoc_default_options = {"members": True}
autodoc_member_order = "groupwise"
autodoc_typehints = "none"
autodoc_preserve_defaults = True


def _link_pages(app: Any, name: str, source: list[str]) -> None:
    """Pages are named in backticks, so that a clone is read without the site."""
    text = source[0]
    for file in ("README", "CHANGELOG", "CONTRIBUTING"):
        whole = (root / f"{file}.md").read_text("utf-8").replace("](docs/", "](")
        text = text.replace(f"{{{{{file}}}}}", whole)
    source[0] = re.sub(r"`docs/(\w+)\.(md|ipynb)`", r"[\1](\1.\2)", text)


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("source-read", _link_pages)
