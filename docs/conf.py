"""The documentation site: `make docs`."""

import sys
from pathlib import Path

import tgdpo

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "tgdpo"
release = version = tgdpo.__version__
html_title = f"tgdpo {release}"
copyright = "the tgdpo authors, Apache-2.0"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_line",
]
exclude_patterns = ["_build"]

# Headings are link targets under the names that GitHub gives them.
myst_heading_anchors = 4
# Indented blocks are commands, formulas or listings.
highlight_language = "text"
# They are kept without outputs; tests run them.
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
# `x` in a docstring is code.
default_role = "literal"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {"navigation_with_keys": True}
pygments_dark_style = "github-dark"
html_show_sphinx = False
html_copy_source = False
