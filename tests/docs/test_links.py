"""Links of README and of the pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, code_spans, links, name

README, *DOCS = PAGES


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_rooms_and_files_that_are_named_exist(page: Path) -> None:
    for span in code_spans(page):
        if re.fullmatch(r"(core|trainers|cli|conf|docs|scripts|tests)/[\w/.]+", span):
            assert (ROOT / span).exists() or (ROOT / "metalearn" / span).exists(), span


def test_readme_leads_to_every_page() -> None:
    named = {(ROOT / link.partition("#")[0]).resolve() for link in links(README)}
    own = {ROOT / "docs" / f"{page}.md" for page in ("index", "changelog")}
    assert set(DOCS) - own <= named


def test_anchors_are_those_of_headings(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One, two: `three`\n\n```\n# no heading\n```\n\n## A-b c\n")
    assert anchors(page) == {"one-two-three", "a-b-c"}
