"""How Sphinx builds the guide: ``python -m sphinx -W docs build/docs``. It needs no network."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

import projgen  # noqa: E402

project = "projgen"
author = "The projgen authors"
copyright = author
release = version = projgen.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "projgen_pages",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_ext", "_static", "experiment/*.md"]

# Markdown is what code hosts render too, so that nothing is taken beyond it but directives.
myst_heading_anchors = 3  # `page.md#a-heading`, as code hosts have them

# Docstrings are Google's, and single backticks in them name objects or arguments.
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes as a list
napoleon_attr_annotations = False
strip_signature_backslash = True  # so that Napoleon keeps the underscore of `classes_`
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_type_aliases = {"Array": "ndarray"}  # no more of what it stands for
# Docstrings need none of them installed; and so pages are the same wherever they are built.
autodoc_mock_imports = ["torch", "torch_pruning", "sklearn", "scipy"]
python_use_unqualified_type_names = True
maximum_signature_line_length = 80

html_theme = "furo"  # with the fonts of the reader's system
html_title = "projgen"
html_static_path = ["_static"]
html_css_files = ["guide.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = "$ "  # of console blocks, only commands are copied
copybutton_line_continuation_character = "\\"
