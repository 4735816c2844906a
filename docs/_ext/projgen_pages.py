"""What Sphinx takes from the project itself: the gallery's pages, and the reference's contents.

``{gallery}`` lists the exhibits of `projgen.gallery`; each has a page, written to ``docs/gallery``
when a build begins. ``{public} MODULE`` documents all that ``MODULE.__all__`` names. Links to
``../generated/…``, which lead to files on a code host, lead to the gallery's pages here.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.ext.autodoc.mock import mock
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import TypeAliasForwardRef, stringify_signature
from sphinx.util.inspect import signature as python_signature

from projgen import gallery

ROOT = Path(__file__).parents[2]
SECTIONS = (
    ("Chains", "One array, any depth, in Python that Numba compiles.", gallery.CANON),
    ("Levels of any norm", "One level: weights, ragged groups, and norms that chains do not have.",
     gallery.GROUP_CANON),
    ("Gradients", "The way back.", gallery.PULL_CANON),
    ("GPUs", "CUDA C++, which NVRTC compiles.", gallery.CUDA_CANON + gallery.CUDA_PULL_CANON),
)  # fmt: skip
# Nobody calls these classes; what makes them says so.
MADE_ELSEWHERE = {"Projection", "Pullback", "Constraint", "Watch"}


def title(exhibit: Any) -> str:
    """``l1(linf), 1000 × 1000, float32``."""
    spec = getattr(exhibit, "spec", None) or exhibit.compiled().title
    words = [f"`{spec}`", " × ".join(map(str, exhibit.shape)), exhibit.dtype]
    for name in ("in_place", "exact"):
        words += [name.replace("_", " ")] * getattr(exhibit, name, False)
    return ", ".join(words)


def page(exhibit: Any) -> str:
    """The Markdown of an exhibit's page."""
    language = "cuda" if exhibit.name.endswith(".cu") else "python"
    return f"""\
---
nosearch: true
---

# {title(exhibit)}

{exhibit.shows[0].upper()}{exhibit.shows[1:]}. [The gallery](../gallery.md) has the others, and says
how to read them. This is `generated/{exhibit.name}`:

```{{literalinclude}} ../../generated/{exhibit.name}
:language: {language}
```
"""


def write_pages(app: Sphinx) -> None:
    """Make ``docs/gallery`` hold the exhibits' pages, and no others."""
    folder = Path(app.srcdir) / "gallery"
    folder.mkdir(exist_ok=True)
    pages = {f"{exhibit.name}.md": page(exhibit) for _, _, canon in SECTIONS for exhibit in canon}
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text("utf-8") != text:  # else Sphinx need not read it
            path.write_text(text, "utf-8")


class Gallery(SphinxDirective):
    """``{gallery}``: a table of the exhibits for each section, with links to their pages."""

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for heading, text, canon in SECTIONS:
            lines += [f"## {heading}", "", text, "", "| Shows | Kernel |", "|---|---|"]
            for exhibit in canon:
                lines.append(f"| {exhibit.shows} | [{title(exhibit)}](gallery/{exhibit.name}.md) |")
            lines.append("")
        names = [exhibit.name for _, _, canon in SECTIONS for exhibit in canon]
        lines += ["```{toctree}", ":hidden:", "", *(f"gallery/{name}" for name in names), "```"]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class Public(SphinxDirective):
    """``{public} MODULE``: what its ``__all__`` names; ``:also:`` what that leads to.

    Functions come first, then classes, then errors.
    """

    required_arguments = 1
    option_spec = {"also": directives.unchanged}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        lines = ["```{eval-rst}"]
        with mock(self.config.autodoc_mock_imports):
            module = import_module(name)
            found = {public: getattr(module, public) for public in module.__all__}
            for public in sorted(found, key=lambda public: rank(found[public])):
                lines += entry(f"{name}.{public}", found[public])
            for also in self.options.get("also", "").split():
                owner, _, public = also.rpartition(".")
                lines += entry(also, getattr(import_module(owner), public))
        return self.parse_text_to_nodes("\n".join([*lines, "```"]))


def rank(found: object) -> int:
    """Where an object stands in the reference: functions, classes, errors and warnings, data."""
    if inspect.isclass(found):
        return 2 if issubclass(found, BaseException) else 1
    return 0 if callable(found) else 3


def entry(name: str, found: object) -> list[str]:
    """What autodoc is told of an object."""
    if inspect.isclass(found):
        return [f".. autoclass:: {name}", "   :members:", "   :special-members: __call__",
                "   :show-inheritance:" * issubclass(found, BaseException), ""]  # fmt: skip
    return [f".. auto{'function' if callable(found) else 'data'}:: {name}", ""]


def signature(app: Sphinx, what: str, name: str, found: Any, *_: Any) -> tuple[str, str] | None:
    """A class has its ``__init__``'s, whatever it inherits; or none, if users do not call it."""
    if what != "class" or issubclass(found, BaseException):
        return None
    if dataclasses.is_dataclass(found) or found.__name__ in MADE_ELSEWHERE:
        return "", ""
    own = stringify_signature(python_signature(found.__init__, bound_method=True))
    return own.rpartition(" -> ")[0] or own, ""


def keep_property(app: Sphinx, what: str, name: str, found: Any, _: Any, lines: list[str]) -> None:
    """Remember what a property's docstring says: before Napoleon."""
    if what == "property":
        app.env.temp_data[f"projgen {name}"] = list(lines)


def mend(app: Sphinx, what: str, name: str, found: Any, _: Any, lines: list[str]) -> None:
    """Undo what Napoleon makes of a property's docstring: it takes what stands before a colon there
    for a type."""
    if what == "property":
        lines[:] = app.env.temp_data.pop(f"projgen {name}")


def link_pages(app: Sphinx, name: str, source: list[str]) -> None:
    """Let links to generated sources lead to their pages."""
    text = re.sub(r"\]\(\.\./generated/([^)]+\.(?:py|cu))\)", r"](gallery/\1.md)", source[0])
    source[0] = text.replace("](../generated)", "](#chains)")


def setup(app: Sphinx) -> dict[str, Any]:
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as docstrings call them
    TypeAliasForwardRef.__repr__ = lambda alias: alias.name  # which is shown within a tuple[]
    app.add_directive("gallery", Gallery)
    app.add_directive("public", Public)
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", keep_property, priority=400)  # Napoleon has 500
    app.connect("autodoc-process-docstring", mend, priority=600)
    app.connect("source-read", link_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
