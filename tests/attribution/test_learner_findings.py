"""What was found of a meta-learner: told in numbers, kept in a file, on a page and in figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from metalearn.attribution import (
    TrainedTasks,
    save_learner_scores,
    track_learner_findings,
    write_learner_page,
)
from metalearn.attribution.learner_figures import LearnerGallery
from metalearn.attribution.learner_page import learner_page_of
from metalearn.errors import SettingError
from metalearn.tracking import NullTracker
from tests.attribution.test_report_page import Read
from tests.support.learnt import N, Q, S, T, draw, learnt


def test_one_task_is_targets_beside_its_support_examples() -> None:
    findings = learnt()
    one = findings.of_task(1)
    assert torch.equal(one.scores["left_out"], findings.scores["left_out"][1])
    assert torch.equal(one.examples.labels, findings.tasks.support[1][1])
    assert one.split == "test task 8, query" and one.prediction(0) in ("ant", "bee", "cat", "3")
    assert learnt(regression=True).of_task(0).prediction(0) is None


def test_numbers_name_queries_examples_and_tasks() -> None:
    findings = learnt()
    numbers = json.loads(json.dumps(findings.as_json(top=2), allow_nan=False))
    assert (numbers["tasks"], numbers["queries"], numbers["support_examples"]) == (T, Q, S)
    assert numbers["correlation_with_leaving_out"] == {"mean": 0.7, "interval95": 0.1}
    apart = float(findings.disagreement["left_out"].mean())
    assert numbers["methods"]["left_out"]["disagreement_of_members"] == apart
    task = numbers["of_tasks"][2]
    assert task["task"] == 12 and task["loss"] == pytest.approx(float(findings.losses[2].mean()))
    row = findings.scores["adaptation"][2, 1]
    helpful = task["of_queries"][1]["most_helpful"]["adaptation"][0]
    assert helpful["example"] == int(row.argmax())
    assert helpful["label"] == ("ant", "bee", "cat")[int(row.argmax()) % 3]
    assert findings.trained is not None
    tasks = findings.trained.scores[2]
    assert task["most_helpful_tasks"][0]["task"] == 2 * int(tasks.argmax())
    assert task["most_harmful_tasks"][0]["task"] == 2 * int(tasks.argmin())


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("regression", [True, False])
def test_the_page_is_one_file_and_says_what_is_what(pictures: bool, regression: bool) -> None:
    read = Read(learner_page_of(learnt(regression=regression, pictures=pictures), top=3))
    said = " ".join(read.text.split())
    assert "Explained is the MetaLearner of run outputs/a <run> after step 40" in said
    assert "each of its 4 queries, and each of 5 training tasks" in said
    assert "Warning: left out: <this>" in said and "members disagree" in said
    assert "Rank correlation of both over a task's support examples: 0.70 ± 0.10" in said
    assert "a step on one lowers the loss" in said and "no. " in said
    assert all((tag["src"] or "").startswith("data:") for tag in read.named("img"))
    assert not read.named("script") and len(read.named("article")) == 2 * T + T


@pytest.mark.parametrize(
    ("changes", "words", "missing"),
    [
        ({"trained": None}, "support examples", "Training tasks that helped"),
        ({"scores": {}, "agreement": None, "disagreement": {}}, "Each of 5 training", "Queries,"),
        ({"disagreement": {}, "agreement": None}, "Methods", "Can the scores be trusted"),
    ],
)
def test_a_page_of_less(changes: dict[str, Any], words: str, missing: str) -> None:
    said = Read(learner_page_of(learnt(**changes))).text
    assert words in said and missing not in said
    assert json.dumps(learnt(**changes).as_json(), allow_nan=False)


def test_padding_is_not_shown_and_has_no_part_in_means() -> None:
    whole = learnt()
    (x, y), (asked, wanted) = whole.tasks
    y, wanted = y.clone(), wanted.clone()
    y[:, 2], wanted[1, 0] = -100, -100
    tasks = whole.tasks._replace(support=(x, y), query=(asked, wanted))
    losses = whole.losses.index_put((torch.tensor(1), torch.tensor(0)), torch.tensor(0.0))
    apart = {name: values.clone() for name, values in whole.disagreement.items()}
    for values in apart.values():
        values[1, 0] = torch.nan
    padded = learnt(tasks=tasks, losses=losses, disagreement=apart)
    numbers = json.loads(json.dumps(padded.as_json(top=Q * S), allow_nan=False))
    task = numbers["of_tasks"][1]
    assert task["loss"] == pytest.approx(float(whole.losses[1, 1:].mean()))
    apart_of_task = float(whole.disagreement["left_out"][1, 1:].mean())
    assert task["disagreement_of_members"]["left_out"] == pytest.approx(apart_of_task)
    assert [query["row"] for query in task["of_queries"]] == [1, 2, 3]
    for place, query in enumerate(task["of_queries"]):
        listed = [*query["most_helpful"]["adaptation"], *query["most_harmful"]["adaptation"]]
        assert sorted(entry["example"] for entry in listed) == [0, 1, 3, 4, 5]
        for entry in listed:
            row = whole.scores["adaptation"][1, place + 1]
            assert entry["score"] == pytest.approx(float(row[entry["example"]]))
    read = Read(learner_page_of(padded, top=S)).text
    assert "-100" not in read and f"up to {S} support examples" in " ".join(read.split())
    tracker = Kept()
    track_learner_findings(tracker, padded, step=40)
    assert "attribution/task_8_query_0" not in tracker.figures
    known = tracker.numbers["attribution/disagreement_left_out"]
    assert known == pytest.approx(float(apart["left_out"].nanmean()))


def test_tasks_and_queries_of_the_highest_losses_are_shown() -> None:
    losses = torch.zeros(T, Q)
    losses[0, 3], losses[2, 1] = 2.0, 9.0
    gallery = LearnerGallery(learnt(losses=losses), top=2, most_tasks=2, most_queries=1)
    assert gallery.tasks == [0, 2] and gallery.queries(2).targets == [1]
    page = learner_page_of(learnt(losses=losses))
    assert "tasks are shown" not in page
    with pytest.raises(SettingError, match="top=0"):
        LearnerGallery(learnt(), top=0)


class Kept(NullTracker):
    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}
        self.numbers: dict[str, float] = {}

    def figure(self, step: int, name: str, figure: Figure) -> None:
        assert step == 40
        self.figures[name] = figure

    def scalars(self, step: int, values: Any) -> None:
        self.numbers.update(values)


@pytest.mark.parametrize("pictures", [True, False])
def test_a_tracker_gets_figures_and_numbers(pictures: bool) -> None:
    tracker = Kept()
    track_learner_findings(tracker, learnt(pictures=pictures), step=40)
    names = {name.removeprefix("attribution/") for name in tracker.figures}
    assert {"support_left_out", "task_7_training_tasks", "task_12_training_tasks"} < names
    assert sum("_query_" in name for name in names) == 2 * T
    assert tracker.numbers["attribution/correlation_with_leaving_out"] == 0.7
    assert "attribution/disagreement_adaptation" in tracker.numbers
    with pytest.raises(SettingError, match="step=-1"):
        track_learner_findings(tracker, learnt(), step=-1)


def test_training_tasks_without_pictures_are_bars_beside_tasks_with_some() -> None:
    trained = TrainedTasks([0, 2, 4, 6, 8], draw(T, N) - 0.5)
    tracker = Kept()
    track_learner_findings(tracker, learnt(trained=trained), step=40)
    assert "attribution/task_7_training_tasks" in tracker.figures
    assert "training task" in learner_page_of(learnt(trained=trained))


def test_all_scores_are_in_one_file_without_objects(tmp_path: Path) -> None:
    findings, members = learnt(), {"adaptation": draw(2, T, Q, S)}
    save_learner_scores(tmp_path / "new" / "scores.npz", findings, members)
    with np.load(tmp_path / "new" / "scores.npz", allow_pickle=False) as kept:
        for name, values in findings.scores.items():
            assert np.array_equal(kept[f"scores.{name}"], values.numpy())
        assert np.array_equal(kept["members.adaptation"], members["adaptation"].numpy())
        assert kept["tasks"].tolist() == [7, 8, 12]
        assert kept["training_tasks"].tolist() == [0, 2, 4, 6, 8]
        assert kept["training_scores"].shape == (T, N)
    with pytest.raises(SettingError, match=r"path='a.pt': the name of a file .npz"):
        save_learner_scores(Path("a.pt"), findings)
    with pytest.raises(SettingError, match="path='.'"):
        write_learner_page(Path(), findings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": {"adaptation": torch.ones(T, Q, 2)}}, r"scores\[adaptation\]=\[3, 4, 2\]"),
        ({"losses": torch.ones(2, Q)}, r"losses=\[2, 4\]: \[3, Q\]"),
        ({"disagreement": {"left_out": torch.ones(T)}}, r"disagreement\[left_out\]"),
        ({"scores": {}, "trained": None}, "scores of support examples or of tasks are needed"),
        ({"trained": TrainedTasks([1], torch.ones(2, 1))}, r"trained.scores=\[2, 1\]"),
        ({"class_names": [["a"]]}, "class_names=1: 3 are needed"),
        ({"run": None}, "run=None"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        learnt(**changes)


def test_trained_tasks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match=r"scores=\[2, 3\]: \[T, 1\]"):
        TrainedTasks([1], torch.ones(2, 3))
    with pytest.raises(SettingError, match="names=2: one for each of 1"):
        TrainedTasks([1], torch.ones(2, 1), ["a", "b"])
