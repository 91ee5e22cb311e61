"""``metalearn.load``: the trainer of any run, from the command line or from Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from metalearn import load
from metalearn.errors import DataError, SettingError
from metalearn.models import MLP
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import MetaTrainer
from tests.saved_runs.double import copy_of
from tests.saved_runs.test_saved_runs import SAVED

ANY = [path for path in SAVED if path.name.endswith("-interrupted")]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("saved", ANY, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_any_run_comes_back_and_goes_on(saved: Path, tmp_path: Path) -> None:
    folder = copy_of(saved, tmp_path / "run")
    before = contents(folder)
    for which in ("best", "last"):
        state = torch.load(folder / "checkpoints" / f"{which}.pt", weights_only=True)
        trainer = load(folder, which=which)
        found = trainer.module.state_dict()
        assert trainer.step == state["step"] and found.keys() == state["module"].keys()
        assert all(torch.equal(found[name], value) for name, value in state["module"].items())
        source = trainer.tasks if saved.name.startswith("meta") else trainer.data
        assert source.outputs >= 1
    assert trainer.fit().step == 40
    reports = trainer.reports(tasks=4)
    assert reports and all(report.headline() for report in reports.values())
    assert contents(folder) == before, "what is loaded leaves the run's folder alone"


def made(folder: Path | None, **settings: int) -> MetaTrainer:
    model = MLP((1,), 1, hidden=(settings.pop("hidden", 4),))
    small = {"meta_batch": 2, "validation_tasks": 4, "eval_every": 2, "steps": 4, **settings}
    return MetaTrainer(model, SinusoidTasks(seed=0), folder=folder, progress=False, **small)


def test_a_run_made_in_python(tmp_path: Path) -> None:
    trainer = made(tmp_path / "run")
    trainer.fit()
    with pytest.raises(SettingError, match=r"trainer=None: the trainer is needed too"):
        load(tmp_path / "run")
    mine = made(None, steps=6)
    assert load(tmp_path / "run", mine, which="last") is mine
    assert mine.step == 4
    ours, theirs = mine.module.state_dict(), trainer.module.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert mine.fit().step == 6
    for settings in ({"device": "cpu"}, {"trust": True}):
        with pytest.raises(SettingError, match=f"{next(iter(settings))}="):
            load(tmp_path / "run", mine, **settings)
    with pytest.raises(DataError, match="this checkpoint does not fit the run"):
        load(tmp_path / "run", made(None, hidden=5))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"which": "middle"}, "which='middle': best or last is needed"),
        ({"which": None}, "which=None: best or last is needed"),
        ({"trust": "yes"}, "trust='yes': true or false is needed"),
        ({"device": "nonsense"}, "device='nonsense': auto, cpu or a device"),
        ({"folder": "nowhere"}, "folder='nowhere': the folder of a run, with its config.yaml"),
        ({"folder": ""}, "folder='': the folder of a run"),
        ({"folder": 5}, "folder=5: "),
        ({"trainer": 5}, "trainer=5: "),
    ],
)
def test_a_mistake_is_one_sentence(
    settings: dict[str, object], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of(ANY[0], tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError) as refused:
        load(**{"folder": "run", **settings})
    assert str(refused.value).startswith(sentence) and "\n" not in str(refused.value)


def test_a_state_that_is_not_there(tmp_path: Path) -> None:
    folder = copy_of(ANY[0], tmp_path / "run")
    (folder / "checkpoints" / "best.pt").unlink()
    with pytest.raises(DataError, match=r"best\.pt: "):
        load(folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(DataError, match=r"last\.pt: "):
        load(folder, which="last")
