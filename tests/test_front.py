"""What stands at the package's front: its version, its rooms, how it is cited."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import metalearn

ROOT = Path(__file__).parents[1]


def test_the_version_is_one_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    declared = f'\nversion = "{metalearn.__version__}"\n'
    assert declared in (ROOT / "pyproject.toml").read_text()
    assert citation["version"] == metalearn.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


@pytest.mark.parametrize("room", metalearn._ROOMS)
def test_rooms_are_reached_and_cost_nothing_before(room: str) -> None:
    assert getattr(metalearn, room).__name__ == f"metalearn.{room}"
    assert room in dir(metalearn)


def test_the_import_alone_brings_no_torch() -> None:
    code = "import sys, metalearn; metalearn.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
