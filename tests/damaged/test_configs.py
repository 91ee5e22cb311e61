"""A damaged ``config.yaml`` is one sentence, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from metalearn.cli import load_learner
from metalearn.cli.config_version import CONFIG_VERSION
from metalearn.cli.run_config import saved_config
from metalearn.errors import DataError, SettingError
from tests.damaged.test_checkpoints import RUNS, contents
from tests.saved_runs.double import copy_of
from tests.support.commands import Outcome
from tests.support.damage import CONFIGS


def damaged(name: str, folder: Path) -> Path:
    copy_of(RUNS["meta_sinusoid"], folder)
    path = folder / "config.yaml"
    content = CONFIGS[name](path.read_text())
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_a_damaged_configuration_is_a_sentence(name: str, tmp_path: Path) -> None:
    folder = damaged(name, tmp_path / "run")
    before = contents(folder)
    with pytest.raises((DataError, SettingError)) as caught:
        load_learner(folder)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500 + len(str(folder)), text
    assert "config.yaml" in text or "=" in text, text
    assert contents(folder) == before


@pytest.mark.parametrize("name", list(CONFIGS)[::9])
def test_commands_say_so(name: str, tmp_path: Path, run: Callable[..., Outcome]) -> None:
    folder = damaged(name, tmp_path / "run")
    before = contents(folder)
    for script, setting in (("train", "resume"), ("evaluate", "run"), ("diagnose", "run")):
        outcome = run(script, f"{setting}={folder}")
        assert outcome.code == 2, (script, outcome.out, outcome.err)
        assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert contents(folder) == before


@pytest.mark.campaign
@pytest.mark.parametrize("name", CONFIGS)
def test_every_command_says_so(name: str, tmp_path: Path, run: Callable[..., Outcome]) -> None:
    test_commands_say_so(name, tmp_path, run)


def test_a_configuration_that_is_a_folder(tmp_path: Path, run: Callable[..., Outcome]) -> None:
    folder = copy_of(RUNS["meta_sinusoid"], tmp_path / "run")
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").mkdir()
    for script, setting in (("train", "resume"), ("evaluate", "run"), ("diagnose", "run")):
        outcome = run(script, f"{setting}={folder}")
        assert outcome.code == 2 and "with its config.yaml, is needed" in outcome.err


# --- versions -----------------------------------------------------------------------------------


def config_of(folder: Path) -> dict[str, Any]:
    found = OmegaConf.to_container(saved_config(folder))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def test_an_earlier_configuration_means_what_it_meant(tmp_path: Path) -> None:
    folder = copy_of(RUNS["ensemble"], tmp_path / "run")
    text = (folder / "config.yaml").read_text()
    assert "version" not in text and "deterministic" not in text
    found = config_of(folder)
    assert found["version"] == CONFIG_VERSION and found["deterministic"] is False
    rest = OmegaConf.to_container(OmegaConf.create(text))
    assert {k: v for k, v in found.items() if k not in ("version", "deterministic")} == rest


def test_a_run_writes_its_version(tmp_path: Path, run: Callable[..., Outcome]) -> None:
    folder = copy_of(RUNS["meta_sinusoid"], tmp_path / "run")
    assert run("train", f"resume={folder}").code == 0
    raw = OmegaConf.load(folder / "config.yaml")
    assert raw.version == CONFIG_VERSION and raw.deterministic is False
    assert config_of(folder)["version"] == CONFIG_VERSION


def test_a_later_version_is_refused_and_says_why(tmp_path: Path) -> None:
    folder = copy_of(RUNS["meta_sinusoid"], tmp_path / "run")
    path = folder / "config.yaml"
    path.write_text(path.read_text() + f"version: {CONFIG_VERSION + 1}\n")
    message = (
        f"config.yaml: version {CONFIG_VERSION + 1} of a run's configuration: {CONFIG_VERSION} is"
    )
    with pytest.raises(DataError, match=message):
        saved_config(folder)
