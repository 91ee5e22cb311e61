"""Python that README and the pages show runs as it stands there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metalearn.trainers import LEARNERS
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
def _tables() -> Iterator[None]:
    """What a page registers is not there for other tests."""
    tables: list[dict[str, Any]] = [DIAGNOSTICS, LEARNERS]
    before = [dict(table) for table in tables]
    yield
    for table, held in zip(tables, before):
        table.clear()
        table.update(held)


@pytest.mark.usefixtures("_tables")
@pytest.mark.parametrize(("page", "block"), SHOWN)
def test_python_runs(
    page: Path, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, name(page), "exec"), {})


def test_python_is_shown() -> None:
    shown = {page.name for page in PAGES if blocks(page, "python")}
    assert {
        "README.md",
        "few-shot.md",
        "ensembles.md",
        "per-sample.md",
        "diagnostics.md",
        "your-own.md",
    } <= shown
