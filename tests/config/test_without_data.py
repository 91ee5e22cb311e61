"""Trained learners come back where their data set is not, and adapt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from metalearn import load
from metalearn.cli import load_learner
from metalearn.errors import DataError, SettingError
from metalearn.tasks import FewShotTasks, omniglot_tasks
from metalearn.tasks.deferred import DeferredTasks, TaskShapes
from tests.saved_runs.double import copy_of
from tests.support.builders import assert_same, patterns
from tests.support.commands import ROOT, Outcome

SAVED_RUN = ROOT / "tests" / "saved_runs" / "v1" / "meta_pictures-finished"

FEW = [
    "task=folder",
    "task.image_size=4",
    "task.channels=1",
    "model.filters=2",
    "trainer.steps=2",
    "trainer.meta_batch=2",
    "trainer.validation_tasks=2",
    "trainer.progress=false",
    "test_tasks=0",
]


@pytest.fixture
def trained(run: Callable[..., Outcome], tmp_path: Path) -> Path:
    """A run whose data set was taken away."""
    random = np.random.default_rng(0)
    for number in range(20):
        place = tmp_path / "pictures" / f"class{number:02d}"
        place.mkdir(parents=True)
        for picture in range(6):
            pixels = random.integers(0, 255, (4, 4)).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{picture}.png")
    outcome = run("train", *FEW, "task.root=pictures", "hydra.run.dir=out", "task.way=4")
    assert outcome.code == 0, outcome.err
    shutil.move(tmp_path / "pictures", tmp_path / "taken_away")
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["rfs", "baseline_pp", "protomaml"])
def test_learners_of_features_come_back(
    trained: Path, run: Callable[..., Outcome], tmp_path: Path, name: str
) -> None:
    """Also those that are trained as classifiers of all training classes."""
    shutil.move(tmp_path / "taken_away", tmp_path / "pictures")
    few = [*FEW, "task.root=pictures", "model.head=false", "learner.features=2", "task.way=3"]
    outcome = run("train", *few, f"learner={name}", "hydra.run.dir=other")
    assert outcome.code == 0, outcome.err
    wanted = load(tmp_path / "other").learner.params  # type: ignore[attr-defined]
    shutil.move(tmp_path / "pictures", tmp_path / "taken_away")
    learner = load_learner(tmp_path / "other")
    assert_same(dict(learner.params), dict(wanted))
    support = torch.rand(4, 1, 4, 4), torch.arange(4)
    assert learner.adapt(support)(torch.rand(3, 1, 4, 4)).shape == (3, 4)


def test_a_learner_adapts_without_its_data(trained: Path, tmp_path: Path) -> None:
    support = torch.rand(4, 1, 4, 4), torch.arange(4)
    for learner in (load(trained).learner, load_learner(trained, checkpoint="last")):  # type: ignore[attr-defined]
        assert learner.adapt(support)(torch.rand(3, 1, 4, 4)).shape == (3, 4)
    trainer: Any = load(trained)
    assert (trainer.tasks.outputs, trainer.tasks.input_shape) == (4, (1, 4, 4))
    for ask in (lambda: trainer.test(2), lambda: trainer.tasks.data, trainer.validate):
        with pytest.raises((DataError, SettingError), match="task.root=.*nothing is there"):
            ask()
    shutil.move(tmp_path / "taken_away", tmp_path / "pictures")
    assert trainer.test(2).tasks == 2
    assert len(trainer.tasks.class_names("test", 0)) == 4


def test_the_data_are_known_by_a_checksum(
    trained: Path, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    shutil.move(tmp_path / "taken_away", tmp_path / "pictures")
    known = json.loads((trained / "provenance.json").read_text())["data"]
    assert known == {"sha256": load(trained).data_checksum} and len(known["sha256"]) == 64
    assert run("evaluate", "run=out", "tasks=2").code == 0
    assert json.loads((trained / "evaluation-test.json").read_text())["provenance"]["data"] == known
    warning = "these are not the data that the run began with"
    assert run("train", "resume=out", "trainer.steps=3").code == 0
    assert warning not in (trained / "train.log").read_text()
    Image.new("L", (4, 4)).save(tmp_path / "pictures" / "class00" / "0.png")
    assert run("train", "resume=out", "trainer.steps=4").code == 0
    assert warning in (trained / "train.log").read_text()
    again = json.loads((trained / "provenance-resumed-at-3.json").read_text())["data"]
    assert again != known


def test_a_run_that_recorded_no_shapes(trained: Path) -> None:
    """As those of earlier commits."""
    config = OmegaConf.load(trained / "config.yaml")
    assert config.shapes == {
        "kind": "classification",
        "input_shape": [1, 4, 4],
        "outputs": 4,
        "outputs_by_split": {"train": 4, "validation": 4, "test": 4},
    }
    del config["shapes"]
    OmegaConf.save(config, trained / "config.yaml")
    trainer: Any = load(trained)
    assert (trainer.tasks.outputs, trainer.tasks.input_shape) == (4, (1, 4, 4))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("kind", "words"),
        ("input_shape", "4"),
        ("input_shape", [0]),
        ("outputs", -1),
        ("outputs", None),
        ("outputs_by_split", [4]),
    ],
)
def test_shapes_that_are_none_are_refused(tmp_path: Path, entry: str, value: Any) -> None:
    folder = copy_of(SAVED_RUN, tmp_path / "run")
    config = OmegaConf.load(folder / "config.yaml")
    right = {"kind": "classification", "input_shape": [1, 4, 4], "outputs": 4}
    config.shapes = {**right, "outputs_by_split": {"train": 4}, entry: value}
    OmegaConf.save(config, folder / "config.yaml")
    with pytest.raises(DataError, match=rf"this is no run's configuration \(.*shapes.{entry}"):
        load(folder)


def test_shapes_of_an_omniglot_run_are_those_of_its_tasks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is derived from settings, against the tasks themselves."""
    from metalearn.cli.shapes import deferred_tasks

    data = patterns(side=28)
    monkeypatch.setattr("metalearn.tasks.sources.load_omniglot", lambda *given, **rest: data)
    for way in (3, {"train": 4, "test": 2}):
        task = {"_target_": "metalearn.tasks.omniglot_tasks", "way": way, "image_size": 28}
        found = deferred_tasks(OmegaConf.create({"task": task}))
        assert found is not None
        assert found.shapes == TaskShapes.of(omniglot_tasks(way=way))
        assert len(found.sample("test", [0]).support[0]) == 1
    assert deferred_tasks(OmegaConf.create({"task": {"_target_": "mine.Tasks"}})) is None


def test_tasks_are_made_once_and_held_to_their_shapes() -> None:
    tasks, made = FewShotTasks(patterns(), way=3), []

    def make() -> FewShotTasks:
        made.append(1)
        return tasks

    deferred = DeferredTasks(TaskShapes.of(tasks), make)
    assert deferred.outputs == 3 and not made
    one, other = deferred.sample("test", [1, 2]), tasks.sample("test", [1, 2])
    assert torch.equal(one.support[0], other.support[0]) and deferred.way == 3
    assert made == [1]
    with pytest.raises(AttributeError):
        _ = deferred._nothing
    wrong = DeferredTasks(TaskShapes("classification", (1, 4, 4), 5, {"train": 5}), make)
    with pytest.raises(DataError, match="make tasks of .*outputs=3.*outputs=5.* are expected"):
        wrong.sample("train", [0])
