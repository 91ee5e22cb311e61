"""What the page on many processes shows for clusters composes, and a shell can read it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import ROOT, blocks
from tests.support.commands import Outcome

PAGE = ROOT / "docs" / "many-processes.md"
NAMES = re.findall(r"`mine/hydra/launcher/(\w+)\.yaml`", PAGE.read_text())


def test_every_file_has_a_name() -> None:
    assert len(NAMES) == len(blocks(PAGE, "yaml")) == 2


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_a_launcher_composes(number: int, run: Callable[..., Outcome], tmp_path: Path) -> None:
    text = blocks(PAGE, "yaml")[number]
    (kind,) = yaml.safe_load(text)["defaults"]
    plugin = {"submitit_slurm": "hydra_submitit_launcher", "ray": "hydra_ray_launcher"}[kind]
    pytest.importorskip(f"hydra_plugins.{plugin}", reason="the launcher is not installed")
    place = tmp_path / "mine" / "hydra" / "launcher" / f"{NAMES[number]}.yaml"
    place.parent.mkdir(parents=True)
    place.write_text(text)
    words = ["--config-dir", "mine", f"hydra/launcher={NAMES[number]}"]
    outcome = run("train", *words, "--cfg", "hydra")
    assert outcome.code == 0, outcome.err
    found = yaml.safe_load(outcome.out)["hydra"]["launcher"]
    wanted = {key: value for key, value in yaml.safe_load(text).items() if key != "defaults"}
    assert {key: found[key] for key in wanted} == wanted and found["_target_"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_scripts_can_be_read() -> None:
    assert len(blocks(PAGE, "sh")) == 2
    for text in blocks(PAGE, "sh"):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
