"""What the meta-trainer logs, draws and reports."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from metalearn.errors import SettingError
from metalearn.tasks import FewShotTasks
from metalearn.trainers import MAML, MetaTrainer
from metalearn.trainers.meta.reports import TestReport as Report
from tests.support.builders import (
    Recorder,
    assert_same,
    episode_trainer,
    patterns,
    sinusoid_trainer,
)
from tests.trainers.meta.test_learner import batch_norm_net

EPISODES = FewShotTasks(patterns(), way=3, shot=1, query=2)


# --- what is logged -----------------------------------------------------------------------------


def _interval_names(prefix: str, *names: str) -> set[str]:
    ends = ("", "_low", "_high")
    whens = ("before", "after")
    return {f"{prefix}/{n}_{when}{end}" for n in names for when in whens for end in ends}


STEP = {
    "train/loss",
    "train/gradient_norm",
    "train/learning_rate",
    "speed/tasks_per_s",
    "speed/memory_gb",
}


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_names_of_all_numbers(kind: str) -> None:
    tracker = Recorder()
    make, names = (
        (episode_trainer, ("loss", "accuracy"))
        if kind == "classification"
        else (sinusoid_trainer, ("loss",))
    )
    make(tracker=tracker, steps=2, log_every=1).fit()
    by_step = {f"validation_by_step/{names[-1]}_{k}" for k in range(3)}
    validation = _interval_names("validation", *names) | by_step
    training = STEP | _interval_names("train", *names)
    recorded: dict[int, list[str]] = {}
    for step, values in tracker.numbers:
        recorded.setdefault(step, []).extend(values)
    assert {step: sorted(found) for step, found in recorded.items()} == {
        0: sorted(validation),
        1: sorted(training),
        2: sorted(training | validation),
    }
    for _, values in tracker.numbers:
        assert all(math.isfinite(value) for value in values.values())


def test_logged_numbers_are_the_scores() -> None:
    tracker = Recorder()
    trainer = episode_trainer(tracker=tracker, steps=1, validation_tasks=7)
    scores = trainer.learner.score(trainer.tasks.sample("validation", range(7)))
    trained = trainer.learner.score(trainer.tasks.sample("train", range(4)), steps=1)
    report = trainer.gradient(0)
    trainer.fit()
    numbers = {name: tracker.series(name)[0] for _, row in tracker.numbers for name in row}
    assert scores.accuracies is not None
    by_step: dict[str, float] = {}
    for name, values in (("loss", scores.losses), ("accuracy", scores.accuracies)):
        for k in range(3):
            mean = float(values[:, k].mean())
            by_step[f"validation_by_step/{name}_{k}"] = mean
        for when, k in (("before", 0), ("after", 2)):
            mean = float(values[:, k].double().mean())
            half = 1.96 * float(values[:, k].double().std()) / math.sqrt(7)
            key = f"validation/{name}_{when}"
            assert numbers[key] == pytest.approx(mean, rel=1e-5)
            assert numbers[f"{key}_low"] == pytest.approx(mean - half, rel=1e-4)
            assert numbers[f"{key}_high"] == pytest.approx(mean + half, rel=1e-4)
    found = {name: value for name, value in numbers.items() if name in by_step}
    assert len(found) >= 3
    assert found == pytest.approx({name: by_step[name] for name in found}, rel=1e-5)
    assert numbers["train/loss_after"] == pytest.approx(float(trained.losses[:, 1].mean()))
    assert numbers["train/loss"] == pytest.approx(float(report.losses), rel=1e-5)
    assert numbers["train/loss"] == pytest.approx(numbers["train/loss_after"], rel=1e-4)
    norm = torch.cat([g.flatten() for g in report.grads.values()]).norm()
    assert numbers["train/gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert numbers["train/learning_rate"] == pytest.approx(1e-3)


def test_the_monitor_fits_the_kind() -> None:
    one, other = episode_trainer(), sinusoid_trainer()
    assert (one.monitor, one.larger_is_better) == ("validation/accuracy_after", True)
    assert (other.monitor, other.larger_is_better) == ("validation/loss_after", False)
    assert one.fit().best_name == "validation/accuracy_after"


@pytest.mark.parametrize("make", [episode_trainer, sinusoid_trainer])
@pytest.mark.parametrize("eval_steps", [0, 2])
def test_figures_and_distributions_are_recorded(make: Any, eval_steps: int) -> None:
    tracker = Recorder()
    maml = MAML(inner_lr=0.02, eval_steps=eval_steps)
    make(tracker=tracker, steps=2, eval_every=1, maml=maml).fit()
    expected = [(s, n) for s in range(3) for n in ("validation/task", "validation/adaptation")]
    of_layers = [(s, "weights/gradient_by_layer") for s in (1, 2)]
    assert sorted((step, name) for step, name, _ in tracker.drawn) == sorted(expected + of_layers)
    assert all(isinstance(f, Figure) and f.axes for _, _, f in tracker.drawn)
    assert {(s, n) for s, n, _ in tracker.distributions if n == "weights"} == {
        (s, "weights") for s in range(3)
    }


# --- test ---------------------------------------------------------------------------------------


def test_a_report_has_every_inner_step() -> None:
    report = episode_trainer().test(7)
    assert isinstance(report, Report)
    assert report.tasks == 7
    assert report.losses.shape == (2, 3)
    assert report.accuracies is not None and report.accuracies.shape == (2, 3)
    assert (report.accuracies >= 0).all() and (report.accuracies[0] <= 1).all()
    assert sinusoid_trainer().test(3).accuracies is None


def test_a_report_is_the_mean_over_all_tasks_whatever_the_batch() -> None:
    reports = [episode_trainer(meta_batch=size).test(7) for size in (1, 3, 7, 50)]
    trainer = episode_trainer()
    scores = trainer.learner.score(trainer.tasks.sample("test", range(7)))
    assert scores.accuracies is not None
    half = 1.96 * scores.accuracies.std(0) / math.sqrt(7)
    expected = torch.stack([scores.accuracies.mean(0), half])
    for report in reports:
        torch.testing.assert_close(report.accuracies, expected)


def test_reports_tell_splits_and_ways_of_prediction_apart() -> None:
    trainer = MetaTrainer(
        batch_norm_net(), EPISODES, maml=MAML(inner_lr=0.1), steps=1, meta_batch=4
    )
    before = copy.deepcopy(trainer.module.state_dict())
    test, again = trainer.test(6), trainer.test(6)
    validation = trainer.test(6, split="validation")
    inductive = trainer.test(6, inductive=True)
    assert torch.equal(test.losses, again.losses)
    assert not torch.allclose(test.losses, validation.losses)
    assert not torch.allclose(test.losses, inductive.losses)
    assert_same(trainer.module.state_dict(), before)


def test_a_report_of_one_task_has_no_width() -> None:
    assert sinusoid_trainer().test(1).losses[1].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("count", [0, -1])
def test_a_report_needs_a_task(count: int) -> None:
    with pytest.raises(SettingError, match=rf"={count}: a whole number of at least 1 is needed"):
        sinusoid_trainer().test(count)


def test_a_report_on_a_split_that_is_not_there() -> None:
    with pytest.raises(SettingError, match="split='val': one of train, validation, test"):
        sinusoid_trainer().test(2, split="val")  # type: ignore[arg-type]
