"""``{diagnostics}``: every diagnostic by its names, with what its class says of itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from metalearn.trainers.diagnostics import DIAGNOSTICS, Diagnostic


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("diagnostics", Diagnostics)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Diagnostics(SphinxDirective):
    """The table of diagnostics, and how each is read."""

    def run(self) -> list[nodes.Node]:
        """A row for each; the page is built anew when one of their files changes."""
        for kind in DIAGNOSTICS.values():
            self.env.note_dependency(inspect.getfile(kind))
        return self.parse_text_to_nodes("\n".join([*table(), "", *readings()]))


def table() -> Iterator[str]:
    """Names, what is looked at and the first line of the docstring, in Markdown."""
    yield from ("| `trainer.diagnostics=` | `what=` | of | |", "| --- | --- | --- | --- |")
    for kind in DIAGNOSTICS.values():
        training = f"`{kind.name}`" if kind.in_training else ""
        yield f"| {training} | `{kind.offline_name or kind.name}` | {of(kind)} | {first(kind)} |"


def readings() -> Iterator[str]:
    """What the numbers of each mean and which would be alarming, as a list in Markdown."""
    for kind in DIAGNOSTICS.values():
        if kind.reading:
            yield f"- `{kind.offline_name or kind.name}`: {kind.reading}"


def of(kind: type[Diagnostic]) -> str:
    """What a diagnostic looks at."""
    return ", ".join(f"{name}s" if name in UNITS else UNITLESS[name] for name in kind.kinds)


def first(kind: type[Diagnostic]) -> str:
    """The first line of a class's docstring, as Markdown."""
    line = (inspect.getdoc(kind) or "").partition("\n")[0]
    return line.replace("``", "`").replace("|", "\\|")


UNITS = ("sample", "shot", "task", "member")
UNITLESS = {"predictive": "predictions", "loss": "the loss"}
