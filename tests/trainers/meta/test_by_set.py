"""Scores of a mixture, set by set."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metalearn.models import MLP
from metalearn.tasks import FewShotTasks, MixtureTasks, SinusoidTasks
from metalearn.trainers import MetaTrainer
from tests.support.builders import labelled

FEW: dict[str, Any] = {"meta_batch": 2, "steps": 1, "validation_tasks": 2, "progress": False}


def mixed(**weights: float) -> MixtureTasks:
    sets = {
        "one": FewShotTasks(labelled(), way=2, shot=1, query=2),
        "other": FewShotTasks(labelled(), way=2, shot=1, query=2, seed=5),
    }
    return MixtureTasks(sets, weights=list(weights.values()) or None)


@pytest.mark.parametrize("inductive", [False, True])
def test_parts_are_means_over_the_tasks_of_a_set(inductive: bool) -> None:
    source = mixed()
    trainer = MetaTrainer(MLP(source.input_shape, 2, hidden=(4,)), source, **FEW)
    scores = trainer.task_scores(20, inductive=inductive)
    found = trainer.test(20, inductive=inductive).by_set
    names = source.set_names("test", range(20))
    assert found is not None and list(found) == ["one", "other"] == sorted(set(names))
    assert scores.accuracies is not None
    for name, part in found.items():
        rows = [i for i, own in enumerate(names) if own == name]
        assert part.tasks == len(rows) and part.accuracy is not None
        for values, got in ((scores.losses, part.loss), (scores.accuracies, part.accuracy)):
            after = values[rows, -1]
            half = 1.96 * after.std() / len(rows) ** 0.5
            torch.testing.assert_close(got, torch.stack([after.mean(), half]))


def test_a_set_that_is_never_drawn_and_tasks_of_no_set() -> None:
    source = mixed(one=1, other=0)
    trainer = MetaTrainer(MLP(source.input_shape, 2, hidden=(4,)), source, **FEW)
    report = trainer.test(3)
    assert report.by_set is not None and list(report.by_set) == ["one"]
    assert report.by_set["one"].accuracy is not None and report.accuracies is not None
    torch.testing.assert_close(report.by_set["one"].accuracy, report.accuracies[:, -1])
    assert report.lines("test")[-1].startswith("  3 tasks of one: ")
    waves = MetaTrainer(MLP((1,), 1, hidden=(4,)), SinusoidTasks(), **FEW).test(2)
    assert waves.by_set is None and "by_set" not in waves.as_json()
