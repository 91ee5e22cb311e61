"""What a wheel holds is enough to train: the code, its settings, the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT, TINY

SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what ``pip install --target`` makes of a wheel of this checkout."""
    place = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        (place / "source").mkdir(exist_ok=True)
        shutil.copy(ROOT / name, place / "source" / name)
    for name in ("metalearn", "conf"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, place / "source" / name, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist", "./source"]
    subprocess.run([*pip, *build], cwd=place, check=True)
    (wheel,) = (place / "dist").glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", "site", wheel],
        cwd=place,
        check=True,
    )
    return place / "site"


def command(site: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, site / "bin" / "metalearn", *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_settings_are_inside(installed: Path) -> None:
    def yamls(folder: Path) -> dict[str, str]:
        paths = folder.rglob("*.yaml")
        return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}

    assert yamls(installed / "metalearn" / "conf") == yamls(ROOT / "conf")
    assert (installed / "metalearn" / "py.typed").is_file()
    assert not (installed / "conf").exists() and not (installed / "tests").exists()


def test_an_empty_folder_is_enough(installed: Path, tmp_path: Path) -> None:
    assert "walk through the mathematics" in command(installed, tmp_path)
    assert "all of them equal where they must be" in command(installed, tmp_path, "tour", "engine")
    out = command(installed, tmp_path, "train", *TINY)
    (folder,) = (tmp_path / "outputs").iterdir()
    assert f"run folder: {folder}" in out and (folder / "results.json").is_file()
    assert "after 3 inner steps" in command(installed, tmp_path, "evaluate", f"run={folder}")


NET = """
import torch

class Net(torch.nn.Sequential):
    def __init__(self, input_shape, outputs, width=4):
        layers = torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.Linear(width, outputs)
        super().__init__(*layers)
"""


def test_a_class_of_the_current_folder_is_found(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine_here.py").write_text(NET)
    own = ["trainer=per_sample", "model._target_=mine_here.Net", "model.width=3", "trainer.steps=1"]
    out = command(installed, tmp_path, "train", *own, "trainer.progress=false")
    (folder,) = (tmp_path / "outputs").iterdir()
    assert f"run folder: {folder}" in out
    assert "width: 3" in (folder / "config.yaml").read_text()
