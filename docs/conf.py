"""Sphinx: `make docs` builds the site into `build/docs`, warnings as errors."""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import generate  # noqa: E402

import cdm_jax  # noqa: E402

project = "cdm_jax"
author = "the cdm_jax contributors"
copyright = f"{author}, Apache-2.0"
release = cdm_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
# Tables and figures in results/ and the pages in generated/ are included by others.
exclude_patterns = ["generated", "results"]
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "code"  # `name` in docstrings
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "special-members": "__call__",
    "ignore-module-all": True,
}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "cdm_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False


def setup(app):
    """Writes the pages that are made from the code before Sphinx reads any."""
    app.connect("builder-inited", lambda app: generate.write_pages(HERE))
    app.connect("autodoc-process-docstring", show_as_typed)


def show_as_typed(app, what, name, thing, options, lines):
    """Makes code of what the text of a module indents, such as a command; reST would quote it."""
    for number, line in reversed(list(enumerate(lines)) if what == "module" else []):
        before = next((text for text in reversed(lines[:number]) if text.strip()), "")
        begins = line.startswith("  ") and not lines[number - 1].strip()
        if begins and not before.startswith("  ") and not before.endswith("::"):
            lines[number:number] = ["::", ""]
