"""``{rooms}``: the layers that import-linter holds, with what each room says of itself.

One table for each contract of layers in ``pyproject.toml``: a row a layer, the uppermost first.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("rooms", Rooms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Rooms(SphinxDirective):
    """The layers of every contract, as tables."""

    def run(self) -> list[nodes.Node]:
        """A sentence and a table for each container of a contract."""
        self.env.note_dependency(str(PYPROJECT))
        shown: list[nodes.Node] = []
        for contract in contracts():
            for container in contract["containers"]:
                lines = list(table(container, contract["layers"]))
                shown += self.parse_text_to_nodes("\n".join(lines))
        return shown


def contracts() -> list[dict[str, Any]]:
    """The contracts of layers."""
    with PYPROJECT.open("rb") as file:
        given = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    return [contract for contract in given if contract["type"] == "layers"]


def table(container: str, layers: list[str]) -> Iterator[str]:
    """The rooms of a container in Markdown: layer, name, first line of the docstring."""
    yield from (f"| | `{container}.` | |", "| --- | --- | --- |")
    for number, layer in enumerate(layers):
        for room in (part.strip(" ()") for part in layer.replace(":", "|").split("|")):
            above = str(len(layers) - number)
            yield f"| {above} | `{room}` | {first_line(f'{container}.{room}')} |"
    yield ""


def first_line(module: str) -> str:
    """The first line of a module's docstring; reStructuredText's code as Markdown's."""
    doc = inspect.getdoc(import_module(module)) or ""
    return doc.splitlines()[0].replace("``", "`").replace("|", "\\|") if doc else ""
