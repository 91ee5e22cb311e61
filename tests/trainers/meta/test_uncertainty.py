"""Calibration, risk–coverage and conformal sets of each task's queries.

Axes: T tasks, K inner steps, N queries, C classes, M members.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from metalearn.errors import NonFiniteError, SettingError
from metalearn.evaluation import (
    area_under_risk_coverage,
    expected_calibration_error,
    fit_conformal,
    set_scores,
)
from metalearn.models import MLP, Ensemble
from metalearn.tasks import FewShotTasks
from metalearn.trainers import ConformalSets, MetaTrainer, mean_interval
from metalearn.trainers.meta.scores import QueryOutcomes
from metalearn.trainers.meta.uncertainty import CalibratedSets
from tests.support.builders import patterns, sinusoid_trainer

TASKS = FewShotTasks(patterns(), way=3, shot=1, query=4)


def _trainer(members: int) -> MetaTrainer:
    model: Any = MLP((1, 4, 4), 3, hidden=(6,))
    if members:
        model = Ensemble.from_factory(
            lambda seed: MLP((1, 4, 4), 3, hidden=(6,), seed=seed), [0, 1]
        )
    return MetaTrainer(model, TASKS, meta_batch=4, validation_tasks=5, progress=False)


@pytest.mark.parametrize("members", [0, 2])
@pytest.mark.parametrize("inductive", [False, True])
def test_the_report_is_that_of_each_task_by_hand(members: int, inductive: bool) -> None:
    trainer = _trainer(members)
    asked = ConformalSets(coverage=0.7, rule="aps")
    report = trainer.test(7, inductive=inductive, conformal=asked)
    scores = trainer.evaluator.score("test", 7, inductive=inductive)
    assert scores.queries is not None and report.sets is not None
    p, y = scores.queries
    assert report.accuracies is not None and report.risk_coverage is not None
    torch.testing.assert_close((p.argmax(-1) == y).float().mean(), report.accuracies[0, -1])
    torch.testing.assert_close(p.argmax(-1), scores.predictions[:, -1])
    calibrated_on = trainer.evaluator.score("validation", 7, inductive=inductive, first=7).queries
    assert calibrated_on is not None
    known, right = (part.flatten(0, 1) for part in calibrated_on)
    sets = fit_conformal(known, right, coverage=0.7, rule="aps").sets(p)
    found = [set_scores(held, labels) for held, labels in zip(sets, y)]
    rows = {
        "coverage": torch.stack([row.coverage for row in found]),
        "size": torch.stack([row.size for row in found]),
    }
    for name, values in rows.items():
        expected = torch.stack(mean_interval(values))
        torch.testing.assert_close(getattr(report.sets, name), expected)
    for name, score in (
        ("calibration", expected_calibration_error),
        ("risk_coverage", area_under_risk_coverage),
    ):
        each = torch.stack([score(r.amax(-1), r.argmax(-1) == c) for r, c in zip(p, y)])
        torch.testing.assert_close(getattr(report, name), torch.stack(mean_interval(each)))
    found_json = report.as_json()
    assert found_json["aurc"]["mean"] == pytest.approx(float(report.risk_coverage[0]))
    assert found_json["sets"]["asked"]["coverage"] == 0.7
    assert "conformal sets (aps, 70 % asked)" in report.lines("test")[-1]


def test_tasks_of_the_calibration_did_not_choose_the_state() -> None:
    trainer = _trainer(0)
    seen: list[range] = []
    watched: Any = _Watched(trainer.evaluator.tasks, seen)
    trainer.evaluator.tasks = watched
    trainer.evaluator(0)
    chosen = {index for indices in seen for index in indices}
    seen.clear()
    trainer.test(3, conformal=ConformalSets())
    after = {index for indices in seen for index in indices}
    assert chosen == set(range(5)) and after == {5, 6, 7}


class _Watched:
    """Tasks that keep which validation tasks were drawn."""

    def __init__(self, tasks: Any, seen: list[range]) -> None:
        self._tasks, self._seen = tasks, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tasks, name)

    def sample(self, split: str, indices: Any, **how: Any) -> Any:
        if split == "validation":
            self._seen.append(indices)
        return self._tasks.sample(split, indices, **how)


def test_padding_counts_nowhere_and_what_is_not_a_number_is_no_score() -> None:
    p = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    y = torch.tensor([[0, 1, 2, 3, 0], [1, 1, -100, -100, -100], [2, 3, 0, 1, -100]])
    asked = ConformalSets(coverage=0.5)
    sets = CalibratedSets(asked, QueryOutcomes(p, y))
    real = y >= 0
    torch.testing.assert_close(
        sets.predictor.threshold, fit_conformal(p[real], y[real], coverage=0.5).threshold
    )
    report = sets.report(QueryOutcomes(p, y))
    held = sets.predictor.sets(p)
    shares = [set_scores(h[r], c[r]).coverage for h, c, r in zip(held, y, real)]
    torch.testing.assert_close(report.coverage[0], torch.stack(shares).mean())
    p[1, 0] = math.nan
    assert sets.report(QueryOutcomes(p, y)).size.isnan().all()
    with pytest.raises(NonFiniteError, match="calibrated on are NaN"):
        CalibratedSets(asked, QueryOutcomes(p, y))


def test_sets_that_cannot_be_are_refused() -> None:
    with pytest.raises(SettingError, match=r"^conformal=.*a regression has no classes"):
        sinusoid_trainer().test(2, conformal=ConformalSets())
    with pytest.raises(SettingError, match="^coverage=1.5"):
        ConformalSets(coverage=1.5)
    unknown: Any = "lac"
    with pytest.raises(SettingError, match="^rule='lac': one of thr, aps, raps"):
        ConformalSets(rule=unknown)
