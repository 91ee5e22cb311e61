"""Python that README and the pages show runs as it stands there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metalearn.trainers.diagnostics import DIAGNOSTICS
from tests.docs.pages import PAGES, blocks, name

SHOWN = list(
    {
        block: pytest.param(page, block, id=f"{name(page)}-{number}")
        for page in reversed(PAGES)
        for number, block in enumerate(blocks(page, "python"))
    }.values()
)  # what stands in README and on a page runs once


@pytest.fixture
def _diagnostics() -> Iterator[None]:
    """What a page registers is not there for other tests."""
    before = dict(DIAGNOSTICS)
    yield
    DIAGNOSTICS.clear()
    DIAGNOSTICS.update(before)


@pytest.mark.usefixtures("_diagnostics")
@pytest.mark.parametrize(("page", "block"), SHOWN)
def test_python_runs(
    page: Path, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, name(page), "exec"), {})


def test_python_is_shown() -> None:
    shown = {page.name for page in PAGES if blocks(page, "python")}
    assert {"README.md", "few-shot.md", "ensembles.md", "per-sample.md", "diagnostics.md"} <= shown
