"""Command lines that are mistaken, each answered by one sentence; and some that are not.

`command_lines.txt` is the table: a new case is one more row; every second one is tried under the
marker ``campaign`` alone, as are real processes. Settings of the YAMLs are tried with
values of wrong types without being listed.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from metalearn.cli.building import build, check_settings_of
from metalearn.errors import DataError, SettingError
from metalearn.trainers import LoopSettings
from metalearn.trainers.supervised.ensemble_training import EnsembleTraining
from tests.support.commands import ROOT, call

TABLE = Path(__file__).with_name("command_lines.txt")
ROWS = [
    tuple(line.rsplit(" -> ", 1))
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
REFUSED = [row for row in ROWS if row[1] != "accepted"]
ACCEPTED = [row[0] for row in ROWS if row[1] == "accepted"]
WRONG = (None, "text", -1, 1.5, [], {"a": 1}, math.nan)
CHOICES = [
    "task=glyphs task.way=2",
    "task=sinusoid model=mlp model.hidden=[3]",
    "model=mlp model.hidden=[3] task=sinusoid",
    "model=conv4 model.filters=2",
    "optimizer=sgd",
    "optimizer=fused_adam trainer=ensemble",
    *(f"trainer={name}" for name in ("batch_ensemble", "ensemble", "mc_dropout", "meta")),
    *(f"trainer={name}" for name in ("per_sample", "snapshot", "swag")),
    "trainer=ensemble data=glyphs",
    "trainer=ensemble data=folder data.root=nowhere",
    "trainer=ensemble data=digits",
    "trainer=ensemble data=waves",
]
INHERITING = [f"trainer={name}" for name in ("batch_ensemble", "mc_dropout", "snapshot", "swag")]
HANDED_ON = sorted(
    {
        name
        for made in (EnsembleTraining, LoopSettings)
        for name in inspect.signature(made).parameters
    }
)
"""Settings that go to one place from all of those, which ``trainer=ensemble`` tries wholly."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to call from, with runs of every trainer."""
    folder = tmp_path_factory.mktemp("campaign")
    for version in ("v1", "v3"):
        saved = ROOT / "tests" / "saved_runs" / version
        shutil.copytree(saved, folder / "runs", dirs_exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings and races end where they would begin."""

    def stop(*given: Any, **settings: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("metalearn.cli.commands.train.RunTracker", stop)
    monkeypatch.setattr("metalearn.cli.commands.benchmark._meta_gradients", stop)
    for kind in ("findings", "learners"):
        monkeypatch.setattr(f"metalearn.cli.attributed_{kind}.trainer_of", stop)


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_the_table_is_large_enough() -> None:
    assert len(REFUSED) >= 300
    assert len({line for line, _ in ROWS}) == len(ROWS)
    assert {line.split()[0] for line, _ in ROWS} == {
        "train", "evaluate", "compare", "diagnose", "attribute", "audit", "export", "benchmark",
        "tour",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        pytest.param(*row, id=row[0], marks=[pytest.mark.campaign] * (index % 2))
        for index, row in enumerate(REFUSED)
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    line: str, sentence: str, place: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    before = files(place)
    script, *arguments = shlex.split(line)
    outcome = call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert outcome.code == 2, outcome.out + outcome.err
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert sentence in outcome.err
    assert files(place) == before


@pytest.mark.parametrize("line", ACCEPTED)
def test_what_is_no_mistake_is_accepted(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = files(place)
    script, *arguments = shlex.split(line)
    outcome = call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert outcome.code == 0, outcome.err
    assert "error: " not in outcome.err
    for path in sorted(files(place) - before, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def composed(choice: str) -> DictConfig:
    GlobalHydra.instance().clear()
    tiny = ["test_tasks=0", "device=cpu"]
    if "ensemble" in choice or "snapshot" in choice or "swag" in choice or "dropout" in choice:
        tiny.append("trainer.members=2")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=[*choice.split(), *tiny])


def tried(choice: str, values: Callable[[str], Sequence[Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Every setting of a choice's group with values of a wrong type or size."""
    config = composed(choice)
    whole = copy.deepcopy(config)
    group = choice.partition("=")[0]
    if "data=" in choice:
        group = "data"
    OmegaConf.set_struct(config, False)
    for key in whole[group]:
        for value in values(str(key)):
            config[group][key] = value
            yield f"{group}.{key}", value, config
        config[group][key] = whole[group]._get_node(key)
    assert config == whole  # nothing that was built changed it


@pytest.mark.campaign
@pytest.mark.parametrize("choice", CHOICES)
def test_every_setting_with_every_wrong_value(choice: str) -> None:
    """Refused by a sentence that names it, or accepted by all that builds a trainer."""
    hold_to_a_sentence(choice, lambda key: WRONG)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_setting_with_wrong_values(choice: str) -> None:
    """Settings that several trainers hand on alike get each value from one of these."""
    turns, place = len(INHERITING), INHERITING.index(choice) if choice in INHERITING else None

    def values(key: str) -> Sequence[Any]:
        if place is None or key not in HANDED_ON:
            return WRONG
        first = (place + HANDED_ON.index(key)) % turns
        return WRONG[first::turns]

    hold_to_a_sentence(choice, values)


def hold_to_a_sentence(choice: str, values: Callable[[str], Sequence[Any]]) -> None:
    count = refused = 0
    for name, value, case in tried(choice, values):
        said = refusal(case)
        count, refused = count + 1, refused + bool(said)
        group = name.partition(".")[0]
        assert "\n" not in said
        assert not said or name in said or group in said, f"{name}={value!r}: {said}"
    assert count >= 7
    assert refused >= 0.5 * count


def refusal(case: DictConfig) -> str:
    """What is said of a configuration; nothing where a trainer is made of it."""
    try:
        check_settings_of(case)
        build(case, folder=None)
    except (SettingError, DataError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "script",
    [
        "train", "evaluate", "diagnose", "benchmark",
        pytest.param("attribute", marks=pytest.mark.campaign),
    ],
)  # fmt: skip
def test_every_top_level_setting_with_every_wrong_value(
    script: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for name in ("evaluate", "diagnose"):
        monkeypatch.setattr(f"metalearn.cli.commands.{name}.trainer_of", _stop)
    monkeypatch.setattr("metalearn.cli.commands.train.build", _stop)
    own = OmegaConf.load(ROOT / "conf" / f"{script}.yaml")
    needed = "run" in set(own) and script != "benchmark"  # which has a use for it in one suite
    run = ["run=runs/meta_sinusoid-finished"] if needed else []
    for key in set(own) - {"defaults", "hydra", "run"}:
        for value in ("null", "text", "-1", "1.5", "[]", "{a: 1}", "nan"):
            before = files(place)
            outcome = call(script, *run, f"{key}={value}", monkeypatch=monkeypatch, capsys=capsys)
            if outcome.code == 2:
                assert str(key) in outcome.err and outcome.err.count("\n") == 1, outcome.err
                assert files(place) == before, f"{key}={value}"
            else:
                assert outcome.code == 0, outcome.err
                for path in sorted(files(place) - before, reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()


def _stop(*given: Any, **settings: Any) -> None:
    raise SystemExit(0)


@pytest.mark.campaign
@pytest.mark.parametrize(("line", "sentence"), REFUSED[:: len(REFUSED) // 24])
def test_a_mistake_is_one_sentence_of_a_process(line: str, sentence: str, place: Path) -> None:
    before = files(place)
    script, *arguments = shlex.split(line)
    found = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments],
        cwd=place, capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.returncode == 2, found.stdout + found.stderr
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1, found.stderr
    assert sentence in found.stderr
    assert files(place) == before
