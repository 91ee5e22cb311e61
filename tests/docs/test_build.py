"""The pages build without a warning and have what they promise."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import zlib
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import metalearn
from metalearn.trainers.diagnostics import DIAGNOSTICS
from tests.docs.pages import CONF, ROOT

API = sorted((ROOT / "docs" / "api").glob("*.rst"))
FACES = re.findall(r"^\.\. face:: (\S+)$", "".join(p.read_text() for p in API), flags=re.MULTILINE)
WITHOUT_A_PAGE = {
    f"metalearn.{name}" for name in ("benchmarks", "ledger", "pages", "studies", "tour")
}  # of scripts


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built pages."""
    folder = tmp_path_factory.mktemp("pages")
    options = ["-W", "--keep-going", "-q", "-j", "auto", "-d", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, "docs", str(folder / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def described(built: Path) -> set[str]:
    """Full names that the inventory has a description of."""
    inventory = (built / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(inventory).decode().splitlines()
    return {line.split()[0] for line in lines if line.split()[1].startswith("py:")}


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_is_described(face: str, built: Path) -> None:
    offered = {f"{face}.{name}" for name in import_module(face).__all__}
    assert offered - described(built) == set()


def test_every_face_has_a_page() -> None:
    packages = [module.name for module in iter_modules(metalearn.__path__) if module.ispkg]
    offering = {f"metalearn.{name}" for name in packages}
    offering = {name for name in offering if getattr(import_module(name), "__all__", [])}
    expected = offering - WITHOUT_A_PAGE | {"metalearn", "metalearn.types", "metalearn.errors"}
    assert set(FACES) == expected


def shown(page: Path) -> str:
    """The text of a built page."""
    return html.unescape(re.sub(r"<[^>]*>", "", page.read_text()))


def test_every_setting_is_shown(built: Path) -> None:
    page = shown(built / "settings.html")
    for path in CONF.rglob("*.yaml"):
        own = path.read_text().split("\nhydra:\n")[0].rstrip()
        assert own in page, path.name


def test_every_room_is_shown(built: Path) -> None:
    rooms = re.findall(r"^(\w+)$", shown(built / "architecture.html"), flags=re.MULTILINE)
    files = [*iter_modules(metalearn.__path__), *iter_modules(metalearn.core.__path__)]
    assert {module.name for module in files} - set(rooms) == set()


def test_every_diagnostic_is_shown(built: Path) -> None:
    page = shown(built / "diagnostics.html").replace("’", "'")
    for name, kind in DIAGNOSTICS.items():
        assert not kind.in_training or name in page
        assert (kind.offline_name or name) in page
        assert (kind.__doc__ or "").partition("\n")[0].split(",")[0].strip("`") in page, name


def test_docstrings_are_understood(built: Path) -> None:
    """Nothing of a type that only autodoc knows, and no role that was not understood."""
    for page in (built / "api").glob("*.html"):
        assert not re.search(r"TypeAliasForwardRef|system-message|:py:obj:", page.read_text()), page
