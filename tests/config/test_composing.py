"""In-process commands leave out what Hydra does twice: what they answer is what it answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tests.support import commands
from tests.support.commands import ROOT, call
from tests.support.composing import GET_MODE, parsed_once

LINES = [
    "task=sinusoid model=mlp",
    "task=sinusoid trainer=ensemble",
    "task=nowhere",
    "trainer.step=3",
    "+experiment=nowhere",
    "maml.inner_lr=[",
    "trainer.steps=1,2",
    "hydra.mode=RUN task=sinusoid",
    "hydra.mode=NONE",
    "-m task=nowhere,sinusoid",
]


@pytest.mark.parametrize("line", LINES)
def test_a_command_answers_as_with_both_compositions(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("metalearn.cli.commands.train.build", _stop)
    quick = call("train", *line.split(), monkeypatch=monkeypatch, capsys=capsys)
    monkeypatch.setattr(commands, "composed_once", lambda patch: None)
    monkeypatch.setattr(Hydra, "get_mode", GET_MODE)
    whole = call("train", *line.split(), monkeypatch=monkeypatch, capsys=capsys)
    assert (quick.code, quick.out, quick.err) == (whole.code, whole.out, whole.err)


def _stop(*given: object, **settings: object) -> None:
    raise SystemExit(0)


def test_no_file_of_settings_asks_for_a_mode() -> None:
    for path in (ROOT / "conf").rglob("*.yaml"):
        hydra = OmegaConf.load(path).get("hydra") or {}
        assert "mode" not in hydra, path


def test_a_file_that_changed_is_read_again_and_an_answer_is_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    with parsed_once():
        for value in (1, 22, 333):
            file.write_text(f"size: {value}\ninner: {{rate: 0.5}}\n", encoding="utf-8")
            for _ in range(2):
                GlobalHydra.instance().clear()
                with initialize_config_dir(str(tmp_path), version_base="1.3"):
                    found = compose("settings")
                assert found == {"size": value, "inner": {"rate": 0.5}}
                found.inner.rate = 2.0
