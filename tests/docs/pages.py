"""README and the pages under ``docs``, as text: what they show, name and link to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from metalearn.cli.config_files import config_folder

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONF = config_folder()

_FENCED = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1$", flags=re.DOTALL | re.MULTILINE)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """What stands between fences of a language; ``""`` is that of commands."""
    return [text for _, said, text in _FENCED.findall(page.read_text()) if said == language]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCED.sub("", page.read_text())


def code_spans(page: Path) -> list[str]:
    """What stands between backticks, in one line each."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: Path) -> Iterator[str]:
    """Every command of a page, in blocks and prose, as one of scripts; placeholders are named."""
    lines = [line.strip() for block in blocks(page, "") for line in block.splitlines()]
    for line in lines + code_spans(page):
        line = re.sub(r"^(?:python -m )?metalearn (\w+)", r"python scripts/\1.py", line)
        if line.startswith("python scripts/"):
            yield re.sub(r"<[^>]*>", "mine", line)


def anchors(page: Path) -> set[str]:
    """Headings as they are linked to: lower case, spaces as hyphens, without punctuation."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in headings}


def links(page: Path) -> list[str]:
    """Targets of links and pictures that are not on the web."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not re.match(r"https?://", target)]
