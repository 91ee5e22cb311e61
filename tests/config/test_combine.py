"""Several finished runs as one ensemble."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import metalearn
from metalearn import combine, load
from metalearn.errors import SettingError
from metalearn.tasks import FewShotTasks
from metalearn.trainers import MetaTrainer
from metalearn.trainers.meta.combined import CombinedLearners
from metalearn.trainers.meta.uncertainty import ConformalSets
from tests.saved_runs.double import copy_of
from tests.support.builders import (
    Scripted,
    ensemble_trainer,
    episode_trainer,
    labelled,
    patterns,
    samples,
    sinusoid_trainer,
)
from tests.support.commands import ROOT, Outcome

SAVED = ROOT / "tests" / "saved_runs"


def learners(*seeds: int, **settings: Any) -> list[MetaTrainer]:
    """Trainings on the same tasks, that begin in different places."""
    tasks = FewShotTasks(patterns(), way=3, shot=1, query=2)
    made = [episode_trainer(tasks=tasks, **settings) for _ in seeds]
    for seed, trainer in zip(seeds, made):
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in trainer.module.parameters():
                value.add_(torch.randn(value.shape, generator=draws) / 3)
    return made


@pytest.mark.parametrize("inductive", [False, True])
def test_the_score_is_that_of_the_mean_probability(inductive: bool) -> None:
    several = learners(0, 1, 2)
    found: Any = combine(several)
    scores = found.task_scores(4, inductive=inductive)
    tasks = several[0].tasks.sample("test", range(4))
    for row in range(4):
        (x, y), (queries, labels) = ((part[0][row], part[1][row]) for part in tasks)
        each = [t.learner.adapt((x, y))(queries).softmax(-1) for t in several]
        mean = torch.stack(each).mean(0)
        loss = -mean.log()[torch.arange(len(labels)), labels].mean()
        torch.testing.assert_close(scores.losses[row, -1], loss.detach(), rtol=1e-4, atol=1e-5)
        assert torch.equal(scores.predictions[row, -1], mean.argmax(-1))
        together = found.learner.adapt((x, y))(queries)
        torch.testing.assert_close(together.softmax(-1), torch.stack(each), rtol=1e-4, atol=1e-5)
    own = [t.task_scores(4, inductive=inductive).accuracies[:, -1] for t in several]  # type: ignore[index]
    torch.testing.assert_close(scores.members.accuracies[:, :, -1], torch.stack(own, 1))
    assert found.members == [0, 1, 2] and len(found.learner) == 3


def test_learners_of_any_method_and_members_of_each(tmp_path: Path) -> None:
    names = ("meta_protonet-finished", "meta_protonet_members-finished")
    folders = [copy_of(SAVED / "v2" / name, tmp_path / f"at{i}" / "run") for i, name in
               enumerate(names)]  # fmt: skip
    pictures = copy_of(SAVED / "v1" / "meta_pictures-finished", tmp_path / "maml" / "run")
    found: Any = combine([*folders, pictures])
    members = len(load(folders[1]).module)  # type: ignore[arg-type]
    assert found.members == [0, *[1] * members, 2]
    report = found.reports(tasks=5)["inductive"]
    assert report.accuracies.shape == (2, 1)  # MAML has inner steps, the others have none
    assert len(report.member_headlines()) == members + 2
    conformal = found.reports(tasks=3, conformal=ConformalSets(0.5))["inductive"].as_json()
    assert "0.5" in json.dumps(conformal)
    alone = load(folders[0]).reports(tasks=5)["inductive"].headline()
    assert report.member_headlines()[0] == pytest.approx(alone)


def test_ensembles_of_the_same_data_predict_together() -> None:
    data = samples()
    several = [ensemble_trainer(data=data, steps=2) for _ in range(2)]
    with torch.no_grad():
        for value in several[1].module.parameters():
            value.mul_(0.7)
    found: Any = combine(several)
    x, y = data.part("test")
    logits = torch.cat([trainer.predict(x) for trainer in several])
    torch.testing.assert_close(found.predictive()(x), logits)
    report = found.reports()["test"]
    mean = logits.softmax(-1).mean(0)
    accuracy = (mean.argmax(-1) == y).double().mean()
    assert report.report.ensemble()["accuracy"] == pytest.approx(float(accuracy))
    assert found.members == [0, 0, 0, 1, 1, 1]


def test_runs_that_do_not_go_together_are_refused() -> None:
    one, other = learners(0, 1)
    with pytest.raises(SettingError, match="at least two runs are needed to be combined"):
        combine([one])
    with pytest.raises(SettingError, match="runs on tasks, or runs of ensembles, or"):
        combine([one, ensemble_trainer()])
    with pytest.raises(SettingError, match="runs on tasks, or runs of ensembles"):
        combine([ensemble_trainer(), Scripted()])
    with pytest.raises(SettingError, match=r"'classification', 'regression'.*one kind of tasks"):
        combine([one, sinusoid_trainer()])
    with pytest.raises(SettingError, match="the same data in the same parts are needed"):
        combine([ensemble_trainer(data=samples()), ensemble_trainer(data=samples(each=24))])
    wide = FewShotTasks(labelled(shape=(1, 8, 8)), way=3)
    with pytest.raises(SettingError, match=r"inputs \[1, 4, 4\] are needed, as the first run"):
        combine([one, MetaTrainer(metalearn.models.MLP((1, 8, 8), 3), wide)])
    with pytest.raises(SettingError, match="learners=1: at least two are needed"):
        CombinedLearners([other.learner])


def test_classes_on_which_one_was_trained_are_no_test_for_the_other() -> None:
    data = patterns()
    splits = {**data.splits, "train": data.splits["test"], "test": data.splits["train"]}
    fields = ("images", "labels", "class_names", "class_groups")
    turned = type(data)(**{name: getattr(data, name) for name in fields}, splits=splits)
    (one,), other = learners(0), episode_trainer(tasks=FewShotTasks(turned, way=3))
    found = combine([one, other])
    with pytest.raises(SettingError, match="the same classes in the test split"):
        found.reports(tasks=2)


@pytest.mark.parametrize("kind", ["tasks", "samples"])
def test_evaluate_scores_several_runs_as_one(
    kind: str, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    name = "v1/meta_sinusoid-finished" if kind == "tasks" else "v1/ensemble-finished"
    for place in ("a", "b"):
        shutil.copytree(SAVED / name, tmp_path / place)
    few = ["tasks=3"] if kind == "tasks" else []
    outcome = run("evaluate", "run=[a,b]", *few)
    assert outcome.code == 0, outcome.err
    (path,) = (tmp_path / "a").glob("evaluation-test-combined2-*.json")
    found = json.loads(path.read_text())
    assert found["runs"] == ["a", "b"] and set(found["members_of"]) == {"a", "b"}
    assert "each alone:" in outcome.out and outcome.out.startswith("a + b, step")
    assert run("evaluate", "run=a", *few).code == 0
    alone = json.loads((tmp_path / "a" / "evaluation-test.json").read_text())["scores"]
    if kind == "tasks":  # twins: their mean is each of them
        for protocol in ("transductive", "inductive"):
            mean = [row["mean"] for row in found["scores"][protocol]["loss"]]
            assert mean == pytest.approx([row["mean"] for row in alone[protocol]["loss"]])
    else:
        assert found["scores"]["ensemble"]["accuracy"] == alone["ensemble"]["accuracy"]
        assert found["scores"]["members"] == alone["members"] * 2
    if kind == "samples":
        config = OmegaConf.load(tmp_path / "b" / "config.yaml")
        config.data.seed += 1
        OmegaConf.save(config, tmp_path / "b" / "config.yaml")
        outcome = run("evaluate", "run=[a,b]")
        assert outcome.code == 2 and "the same data in the same parts are needed" in outcome.err
    outcome = run("evaluate", "run=[a,nowhere]")
    assert outcome.code == 2 and "run='nowhere': the folder of a run" in outcome.err
