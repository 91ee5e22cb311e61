"""``.. face:: metalearn.core``: every name in a module's ``__all__``, from its docstrings.

Names of a package are grouped by the room that defines them, under the first line of that room's
docstring, so that the page follows wherever names move.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("face", Face)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Face(SphinxDirective):
    """A module's docstring and all that it offers."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Read what is written below as reStructuredText that stands in the page."""
        face = self.arguments[0]
        node = nodes.Element()
        lines = StringList(list(reference(import_module(face))), source=face)
        nested_parse_with_titles(self.state, lines, node)
        return node.children


def reference(face: ModuleType) -> Iterator[str]:
    """The page of a face in reStructuredText."""
    yield from (f".. py:module:: {face.__name__}", "", *inspect.getdoc(face).splitlines(), "")
    groups = grouped(face)
    for room, names in groups.items():
        if len(groups) > 1:
            yield from heading(room)
        for name in names:
            yield from described(face, name)


def grouped(face: ModuleType) -> dict[str, list[str]]:
    """``{room: names}``, in the order in which ``__all__`` comes upon the rooms.

    A room is a package right under the face; what lies in files right under it, or elsewhere, is
    the face's own.
    """
    groups: dict[str, list[str]] = {}
    for name in face.__all__:
        home = f"{defining(face, name)}."
        inside = home.removeprefix(f"{face.__name__}.").split(".")
        room = f"{face.__name__}.{inside[0]}" if home.startswith(f"{face.__name__}.") else ""
        is_room = room in sys.modules and hasattr(sys.modules[room], "__path__")
        groups.setdefault(room if is_room else face.__name__, []).append(name)
    return groups


def heading(room: str) -> Iterator[str]:
    """A room's name as a title, and what it says of itself."""
    title = room.rpartition(".")[2]
    said = inspect.getdoc(import_module(room)).splitlines()[0]
    yield from (title, "-" * len(title), "", said, "")


def described(face: ModuleType, name: str) -> Iterator[str]:
    """The directive that shows one name."""
    value = getattr(face, name)
    first = ".".join(defining(face, name).split(".")[:2])
    if first != face.__name__ and name in getattr(sys.modules[first], "__all__", ()):
        kind = "py:class" if inspect.isclass(value) else "py:function"
        yield from (f".. {kind}:: {name}", "", f"   `{first}.{name}`.", "")
    elif inspect.isclass(value):
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        yield from (f".. {kind}:: {face.__name__}.{name}", "   :members:", "")
    elif inspect.isroutine(value):
        yield from (f".. autofunction:: {face.__name__}.{name}", "")
    else:
        doc = documented(defining(face, name)).get(("", name), [])
        shown = str(value).replace("typing.", "")
        yield from (f".. py:data:: {name}", f"   :value: {shown}", "")
        yield from (f"   {line}" for line in [*doc, ""])


def defining(face: ModuleType, name: str) -> str:
    """The module that a name of a face comes from: of a variable, the one that documents it."""
    home = str(getattr(getattr(face, name), "__module__", ""))
    if home.startswith("metalearn"):
        return home
    inside = (module for module in sorted(sys.modules) if module.startswith(face.__name__))
    having = (module for module in inside if name in vars(sys.modules[module]))
    return next((module for module in having if ("", name) in documented(module)), face.__name__)


def documented(module: str) -> dict[tuple[str, str], list[str]]:
    """Docstrings of a module's variables, by (class, name)."""
    return ModuleAnalyzer.for_module(module).find_attr_docs()
