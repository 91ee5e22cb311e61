"""``{walk}``: all that ``metalearn tour`` prints, walked while the pages are built."""

from __future__ import annotations

import contextlib
import inspect
import io
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from metalearn.cli.commands import tour as command
from metalearn.tour import chapters, scalar_engine


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("walk", Walk)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Walk(SphinxDirective):
    """A heading and the output of each chapter."""

    def run(self) -> list[nodes.Node]:
        """Walk the whole tour; the page is built anew when a file of the tour changes."""
        self.env.note_dependency(inspect.getfile(command))
        found: list[nodes.Node] = []
        for number, chapter in enumerate(chapters(scalar_engine), start=1):
            self.env.note_dependency(inspect.getfile(inspect.unwrap(_function(chapter.stops[0]))))
            section = nodes.section(ids=[f"chapter-{chapter.name}"])
            section += nodes.title("", f"{number}. {chapter.title}")
            section += nodes.paragraph("", chapter.about)
            section += nodes.literal_block("", _output(chapter.name), language="text")
            found.append(section)
        return found


def _function(stop: Any) -> Any:
    return getattr(stop, "func", stop)  # a partial, where an engine was handed in


def _output(name: str) -> str:
    """What the chapter prints below its heading."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        command.take_tour([name])
    lines = printed.getvalue().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("━━"))
    return "\n".join(lines[begin + 4 : -1]).strip("\n")
