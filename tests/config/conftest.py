"""Commands in this room draw no figures to the last pixel, but where a test says so."""

from __future__ import annotations

import pytest

from tests.support.unrendered import without_pixels


@pytest.fixture(autouse=True)
def _no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pixels(monkeypatch)
