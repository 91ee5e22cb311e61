"""``deterministic=true`` on the command line: kept by a run, asked of torch, put back after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from metalearn.cli.commands import diagnose as diagnosing
from metalearn.cli.determinism import determinism
from metalearn.errors import SettingError
from metalearn.trainers import MetaTrainer
from tests.support.commands import TINY, Outcome, call

Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


def test_a_run_keeps_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []
    test = MetaTrainer.test

    def watched(self: MetaTrainer, *given: Any, **more: Any) -> Any:
        asked = torch.are_deterministic_algorithms_enabled()
        seen.append((self.settings.deterministic, asked))
        return test(self, *given, **more)

    monkeypatch.setattr(MetaTrainer, "test", watched)
    folder = tmp_path / "out"
    assert run("train", *TINY, "deterministic=true", f"hydra.run.dir={folder}").code == 0
    assert OmegaConf.load(folder / "config.yaml").deterministic is True
    assert run("train", f"resume={folder}", "trainer.steps=6").code == 0
    assert OmegaConf.load(folder / "config.yaml").deterministic is True
    assert run("evaluate", f"run={folder}", "tasks=4").code == 0
    assert seen and set(seen) == {(True, True)}
    found: list[bool] = []
    compute = diagnosing.diagnose_by_ranks

    def diagnosed(*given: Any) -> Any:
        found.append(torch.are_deterministic_algorithms_enabled())
        return compute(*given)

    monkeypatch.setattr(diagnosing, "diagnose_by_ranks", diagnosed)
    quick = ("what=[gradient_norms]", "tasks=2", "at=[initial]", "device=cpu")
    assert run("diagnose", f"run={folder}", *quick).code == 0
    assert found == [True]
    assert not torch.are_deterministic_algorithms_enabled()
    outcome = run("train", f"resume={folder}", "deterministic=false")
    assert outcome.code == 2
    assert "a resumed run keeps its settings" in outcome.err


@pytest.mark.parametrize("value", ["yes please", "1", "null", "[true]"])
def test_what_is_neither_true_nor_false_is_refused(run: Run, tmp_path: Path, value: str) -> None:
    folder = tmp_path / "out"
    outcome = run("train", *TINY, f"deterministic={value}", f"hydra.run.dir={folder}")
    assert outcome.code == 2
    assert "deterministic=" in outcome.err and "true or false is needed" in outcome.err
    assert not folder.exists()


def test_what_torch_refuses_is_a_sentence_and_its_state_is_put_back() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with (
            pytest.raises(SettingError, match=r"^deterministic=True: false is needed here \(put_"),
            determinism(OmegaConf.create({"deterministic": True})),
        ):
            raise RuntimeError(
                "put_ does not have a deterministic implementation, but you set "
                "'torch.use_deterministic_algorithms(True)'. You can turn off"
            )
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        with (
            pytest.raises(RuntimeError, match="something else"),
            determinism(OmegaConf.create({"deterministic": True})),
        ):
            raise RuntimeError("something else")
    finally:
        torch.use_deterministic_algorithms(False)
