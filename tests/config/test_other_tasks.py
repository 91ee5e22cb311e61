"""``test_task``: runs that are scored on tasks from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.cli import load_learner
from metalearn.tasks import folder_tasks
from metalearn.trainers import MetaTrainer
from metalearn.trainers.meta.evaluator import MetaEvaluator
from tests.support.commands import ROOT, TINY, Outcome, call

Run = Callable[..., Outcome]
LETTERS = [
    "task=glyphs", "task.image_size=16", "task.way=3", "task.query=2", "model=conv4",
    "model.filters=4", "trainer.meta_batch=2", "trainer.steps=2", "trainer.validation_tasks=2",
    "trainer.progress=false", "test_tasks=0", "hydra.run.dir=run",
]  # fmt: skip
ELSEWHERE = ["run=run", "tasks=4", "test_task=folder", "test_task.root=pictures"]
GREY = [*ELSEWHERE, "test_task.channels=1"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MetaEvaluator, "_draw", lambda self, *given: None)
    for command in ("train", "evaluate"):
        monkeypatch.setattr(f"metalearn.cli.commands.{command}.provenance", dict)

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


@pytest.fixture
def pictures(run: Run, tmp_path: Path) -> Path:
    """15 classes of 5 pictures of noise, 5 classes a split."""
    draws = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        for name in range(5):
            folder = tmp_path / "pictures" / split / f"{split}{name}"
            folder.mkdir(parents=True)
            for index in range(5):
                pixels = draws.integers(0, 255, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pictures"


def test_a_run_is_scored_on_tasks_from_elsewhere(run: Run, pictures: Path) -> None:
    assert run("train", *LETTERS).code == 0
    outcome = run("evaluate", *GREY, "test_task.query=1")
    assert outcome.code == 0, outcome.err
    written = json.loads(Path("run/evaluation-test-folder-channels1-query1.json").read_text())
    assert written["task"]["_target_"] == "metalearn.tasks.folder_tasks"
    kept = {name: written["task"][name] for name in ("way", "shot", "query", "image_size", "seed")}
    assert kept == {"way": 3, "shot": 1, "query": 1, "image_size": 16, "seed": 0}
    tasks = folder_tasks(pictures, way=3, shot=1, query=1, image_size=16, channels=1, seed=0)
    learner = load_learner("run")
    trainer = MetaTrainer(learner.module, tasks, learner=learner, meta_batch=2, validation_tasks=2)
    expected = trainer.test(4).as_json()
    assert written["scores"]["transductive"] == json.loads(json.dumps(expected))


def test_a_learner_of_any_way_takes_tasks_of_another(run: Run, pictures: Path) -> None:
    assert run("train", *LETTERS, "learner=protonet", "learner.features=4").code == 0
    outcome = run("evaluate", *GREY, "test_task.way=5")
    assert outcome.code == 0, outcome.err
    assert Path("run/evaluation-test-folder-channels1-way5.json").is_file()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["test_task.way=5"], "test_task.way=5: the model was built for 3"),
        (["test_task.channels=3"], "test_task='metalearn.tasks.folder_tasks': tasks that the run"),
        (["task.way=3"], "task.way=3: the run's own tasks are not scored; test_task.way is"),
        (["test_task.root=nowhere"], "nowhere"),
        (["test_task.waz=3"], "test_task.waz: there is no such setting"),
        (["test_task=sinusoid", "~test_task.root", "~test_task.channels"], "test_task.root"),
    ],
)
def test_tasks_that_a_run_cannot_be_scored_on(
    given: list[str], said: str, run: Run, pictures: Path
) -> None:
    assert run("train", *LETTERS).code == 0
    outcome = run("evaluate", *GREY, *given)
    assert outcome.code == 2
    assert said in outcome.err
    assert not list(Path("run").glob("evaluation*"))


def test_settings_that_are_missing_and_runs_without_tasks(run: Run) -> None:
    assert run("train", *TINY, "test_tasks=0", "hydra.run.dir=run").code == 0
    outcome = run("evaluate", "run=run", "test_task=folder")
    assert outcome.code == 2 and "test_task.root=None: this setting has to be given" in outcome.err
    outcome = run("evaluate", "run=run", "test_task=glyphs", "tasks=2")
    assert outcome.code == 2 and "test_task=" in outcome.err
    outcome = run(
        "evaluate", f"run={ROOT}/tests/saved_runs/v1/per_sample-finished", "test_task=glyphs"
    )
    assert outcome.code == 2 and "the run has no tasks, so null is needed" in outcome.err


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf" / "test_task").glob("*.yaml")), ids=lambda path: path.stem
)
def test_tasks_from_elsewhere_are_choices_of_tasks(path: Path) -> None:
    assert (ROOT / "conf" / "task" / path.name).is_file()
    assert path.read_text() == f"defaults:\n  - /task@_here_: {path.stem}\n"


def test_what_is_wrong_with_tasks_from_elsewhere_is_named_as_given(
    run: Run, pictures: Path
) -> None:
    assert run("train", *LETTERS).code == 0
    for given, sentence in (
        ("test_task.root=nowhere", "error: test_task.root='nowhere': nothing is there"),
        ("test_task.shot=9", "error: test_task.shot + query=11: class"),
    ):
        outcome = run("evaluate", *GREY, given)
        assert outcome.code == 2
        assert sentence in outcome.err


def flat(root: Path, classes: int) -> None:
    """Class folders that no split is named for, of two pictures."""
    draws = np.random.default_rng(0)
    for name in range(classes):
        (root / f"class{name}").mkdir(parents=True)
        for index in range(2):
            pixels = draws.integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class{name}" / f"{index}.png")


@pytest.mark.parametrize(
    "learner",
    [
        ["learner=protonet", "learner.features=4"],
        ["learner=rfs", "learner.features=4", "learner.batch_size=4"],
        [],
    ],
)
def test_all_classes_of_a_folder_without_splits_are_test_classes(
    run: Run, tmp_path: Path, learner: list[str]
) -> None:
    flat(tmp_path / "pictures", 3)
    assert run("train", *LETTERS, *learner).code == 0
    outcome = run("evaluate", *GREY, "test_task.query=1", "confusions=2")
    assert outcome.code == 0, outcome.err
    written = json.loads(Path("run/evaluation-test-folder-channels1-query1.json").read_text())
    assert written["task"]["test_fraction"] == 1
    outcome = run("evaluate", *GREY, "test_task.query=1", "split=validation")
    assert outcome.code == 2 and "these data have test" in outcome.err
    outcome = run("evaluate", *GREY, "test_task.query=1", "test_task.test_fraction=0.4")
    assert outcome.code == 2 and "3 classes leave" in outcome.err


def test_a_training_without_validation_classes(run: Run, tmp_path: Path) -> None:
    flat(tmp_path / "pictures", 6)
    own = ["task=folder", "task.root=pictures", "task.channels=1", "task.query=1", "task.way=2"]
    kept = [s for s in LETTERS if s not in ("task=glyphs", "task.query=2", "task.way=3")]
    kept.remove("trainer.validation_tasks=2")
    outcome = run("train", *kept, *own, "task.validation_fraction=0", "task.test_fraction=0.4")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("run/results.json").read_text())["best_step"] == 2
    outcome = run("train", *kept, *own, "task.validation_fraction=0", "trainer.patience=3")
    assert outcome.code == 2 and "task.validation_fraction=0 leaves no tasks" in outcome.err
    for given, message in (
        (["task.test_fraction=0"], "task.test_fraction=0: a number above 0"),
        (["task.test_fraction=1"], "task.test_fraction=1: with task.validation_fraction=0.2"),
        (
            ["task.validation_fraction=0", "task.test_fraction=1"],
            "tasks with a train split are needed to train",
        ),
    ):
        outcome = run("train", *kept, *own, *given, "hydra.run.dir=other")
        assert outcome.code == 2 and message in outcome.err, outcome.err
