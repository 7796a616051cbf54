"""Sphinx settings of the pages. `make docs` builds them with warnings as errors."""

from __future__ import annotations

from typing import Any

import marl_flow

project = "marl_flow"
author = "The marl_flow authors"
copyright = "The marl_flow authors"
release = marl_flow.__version__
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build", "images/README.md"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

default_role = "literal"  # docstrings write names in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True

copybutton_prompt_text = "$ "
copybutton_here_doc_delimiter = "EOF"

html_theme = "furo"
html_title = "marl_flow"
html_static_path = ["_static"]
html_css_files = ["pages.css"]


def mark_code(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Makes indented blocks of docstrings, which are code and drawings, literal blocks; elsewhere | is a plain |."""
    marked: list[str] = []
    inside = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not inside and marked and not marked[-1]:
            marked += ["::", ""]
        inside = indented or (inside and not line)
        marked.append(line if inside else line.replace("|", r"\|"))
    lines[:] = marked


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", mark_code)
