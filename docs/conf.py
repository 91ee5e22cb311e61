"""How the pages of metalearn are built: ``make docs``."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

from metalearn import types

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "metalearn"
author = "the authors of metalearn"
copyright = author
release = version = version_of("torch-metalearn")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",
    "faces",
    "settings",
    "rooms",
    "diagnostics",
    "walk",
]
highlight_language = "text"
html_theme = "furo"
html_title = "metalearn"
html_copy_source = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"  # a link where there is something to link to, else code
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {
    name: f"metalearn.types.{name}"
    for name in types.__all__
    if not isinstance(getattr(types, name), type)
}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
