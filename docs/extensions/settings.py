"""``{settings} trainer``: the YAML files of a group of settings, as they stand in ``conf``.

The argument is a group (``trainer``), of which every choice is shown, or a command (``train``),
without what it says to Hydra.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from metalearn.cli.config_files import config_folder

CONF = config_folder()


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Settings(SphinxDirective):
    """Settings and their values, with the comments that explain them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A block for each file; the page is built anew when one of them changes."""
        blocks: list[nodes.Node] = []
        for path in files(self.arguments[0]):
            self.env.note_dependency(str(path))
            text = own_settings(path.read_text())
            if path.parent != CONF:
                blocks.append(nodes.paragraph("", "", nodes.literal("", choice(path))))
            blocks.append(nodes.literal_block(text, text, language="yaml"))
        if not blocks:
            raise self.error(f"conf has no settings called {self.arguments[0]}")
        return blocks


def files(name: str) -> Iterator[Path]:
    """The YAML of a command, or of every choice of a group."""
    if (CONF / f"{name}.yaml").is_file():
        yield CONF / f"{name}.yaml"
    yield from sorted((CONF / name).glob("*.yaml"))


def choice(path: Path) -> str:
    """What to write on the command line for this file."""
    return f"{path.parent.name}={path.stem}"


def own_settings(text: str) -> str:
    """A command's YAML up to where it speaks to Hydra."""
    return text.split("\nhydra:\n")[0].rstrip()
