"""``scripts/attribute.py`` of meta-learners: support examples of test tasks, training tasks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metalearn.attribution import learner_support_scores, leave_one_support_out
from metalearn.cli import attributed_learners, load
from tests.support.commands import ROOT, TINY, Outcome, call

Run = Callable[..., Outcome]
SMALL = [
    "task=glyphs", "task.way=3", "task.shot=2", "task.query=2", "task.image_size=8", "model=mlp",
    *TINY[2:3], *TINY[4:],
]  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


def trained(run: Run, *given: str) -> None:
    outcome = run("train", *given, "test_tasks=0", "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err


def attributed(run: Run, *given: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    outcome = run("attribute", "run=out", *given)
    assert outcome.code == 0, outcome.err
    with np.load("out/attribution-test.npz", allow_pickle=False) as kept:
        arrays = {name: kept[name] for name in kept.files}
    return outcome.out, json.loads(Path("out/attribution-test.json").read_text()), arrays


@pytest.mark.parametrize("learner", ["maml", "protonet", "rfs"])
def test_every_kind_of_learner(run: Run, learner: str) -> None:
    trained(run, *SMALL, f"learner={learner}")
    said, report, arrays = attributed(run, "targets=3", "training_tasks=4", "top=2")
    inner = learner == "maml"
    methods = (["adaptation"] if inner else []) + ["left_out"]
    assert list(report["methods"]) == methods
    trainer: Any = load("out", which="last")
    tasks = trainer.tasks.sample("test", range(3))
    expected = {"left_out": leave_one_support_out(trainer.learner, tasks)}
    if inner:
        expected["adaptation"] = learner_support_scores(trainer.learner, tasks)
    for name, scores in expected.items():
        assert arrays[f"scores.{name}"] == pytest.approx(scores.numpy(), rel=1e-4, abs=1e-6)
    assert (report["correlation_with_leaving_out"] is not None) == inner
    page = Path("out/attribution-test.html").read_text(encoding="utf-8")
    assert "</html>" in page and page.count("<article") == 2 * 3 + 3 * (learner != "rfs")
    if learner == "rfs":
        assert "left out: training_tasks: RFS is trained on samples, not on tasks" in said
        assert "training_scores" not in arrays
    else:
        assert arrays["training_tasks"].tolist() == [0, 2, 5, 7]  # four steps of two tasks
        assert arrays["training_scores"].shape == (3, 4) and arrays["training_scores"].any()
    assert ("warning" in said) == (learner == "rfs")
    assert "| support examples | adapting without the example |" in said
    assert report["step"] == 4 and report["state"] == "after step 4"


def test_a_learner_that_was_stopped_before_its_first_step_has_seen_no_task(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(run, *SMALL, "learner=protonet")
    real = attributed_learners.trainer_of

    def at_the_start(*given: Any) -> Any:
        trainer: Any = real(*given)
        trainer.loop.step = 0
        return trainer

    monkeypatch.setattr(attributed_learners, "trainer_of", at_the_start)
    said, report, arrays = attributed(run, "targets=2")
    assert "left out: training_tasks: the learner has not taken a step" in said
    assert report["state"] == "after step 0" and "training_scores" not in arrays


def test_one_task_has_a_correlation_without_an_interval(run: Run) -> None:
    trained(run, *SMALL, "learner=maml")
    said, report, _ = attributed(run, "targets=1", "training_tasks=0")
    known = report["correlation_with_leaving_out"]
    assert known["interval95"] is None
    assert f"| {known['mean']:.3f} |" in said and "nan" not in said


def test_tasks_of_varying_sizes(run: Run) -> None:
    sizes = ["task.shot=3", "task.least.shot=2", "task.least.query=1", "task.least.way=2"]
    trained(run, *SMALL, *sizes, "learner=protonet")
    said, report, arrays = attributed(run, "targets=2", "training_tasks=8")
    for place, task in enumerate(report["of_tasks"]):
        real = (arrays["query_labels"][place] >= 0).nonzero()[0].tolist()
        assert [query["row"] for query in task["of_queries"]] == real
        assert task["loss"] == pytest.approx(float(arrays["losses"][place, real].mean()))
    assert "-100" not in Path("out/attribution-test.html").read_text(encoding="utf-8")
    assert arrays["training_scores"].shape == (2, 8) and "warning" not in said


def test_members_are_averaged_and_their_disagreement_is_told(run: Run) -> None:
    trained(run, *TINY, "trainer.members=2", "task.shot=3", "task.query=2")
    said, report, arrays = attributed(run, "targets=[1,4]", "training_tasks=[0,3]")
    assert "the mean of 2 members: 2 tasks" in said and "disagreement of members" in said
    assert arrays["tasks"].tolist() == [1, 4] and arrays["training_tasks"].tolist() == [0, 3]
    assert arrays["members.adaptation"].shape == (2, 2, 2, 3)
    mean = arrays["members.adaptation"].mean(0)
    assert arrays["scores.adaptation"] == pytest.approx(mean, rel=1e-5)
    assert report["methods"]["left_out"]["disagreement_of_members"] >= 0
    _, _, one = attributed(run, "targets=[1,4]", "members=[1]", "check=false", "training_tasks=0")
    expected = arrays["members.adaptation"][1]
    assert one["scores.adaptation"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert "scores.left_out" not in one and "training_tasks" not in one


def test_what_cannot_be_scored_is_one_sentence(run: Run) -> None:
    one_shot = [argument.replace("task.shot=2", "task.shot=1") for argument in SMALL]
    trained(run, *one_shot, "learner=protonet")
    said, report, arrays = attributed(run, "targets=2", "training_tasks=3")
    assert "warning: left out: left_out: support=" in said and "needs two of every class" in said
    assert report["methods"] == {} and arrays["training_scores"].shape == (2, 3)
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    outcome = run("attribute", "run=out", "targets=2", "training_tasks=0")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "run='out': nothing of it can be scored" in outcome.err
    assert "needs two of every class" in outcome.err
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("methods=[cosine]", "methods=['cosine']: the run is that of a meta-learner"),
        ("subsets=64", "subsets=64: the run is that of a meta-learner"),
        ("leave_k_out=[3]", "leave_k_out=[3]: the run is that of a meta-learner"),
        ("spill=true", "spill=True: the run is that of a meta-learner"),
        ("members=[1]", "members=1: a whole number of at most 0|members=1: a whole number"),
        ("training_tasks=[99999]", "training_tasks=99999: numbers below "),
        ("training_tasks=-1", "training_tasks=-1: a whole number of at least 0"),
        ("split=train", "split='train': validation or test is needed"),
    ],
)
def test_a_mistake_is_one_sentence(run: Run, argument: str, sentence: str) -> None:
    shutil.copytree(ROOT / "tests" / "saved_runs" / "v1" / "meta_sinusoid-finished", "out")
    outcome = run("attribute", "run=out", "targets=1", argument)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert any(outcome.err.startswith(f"error: {one}") for one in sentence.split("|")), outcome.err
