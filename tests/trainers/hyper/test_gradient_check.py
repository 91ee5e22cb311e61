"""At the end of a training its gradient is held against two runs: told, recorded, warned of."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from metalearn.core import check_hyper_gradient
from metalearn.errors import SettingError
from metalearn.trainers import HYPER_KINDS
from metalearn.trainers.hyper import objective as objective_module
from metalearn.trainers.hyper.gradient_check import GradientCheck
from tests.support.builders import Recorder
from tests.trainers.hyper.test_hyper_trainer import made

ALWAYS: dict[str, Any] = {"steps": 2}


@pytest.mark.parametrize("kind", HYPER_KINDS)
@pytest.mark.parametrize("start", ["fixed", "warm"])
def test_the_end_of_a_training_is_checked(kind: str, start: str) -> None:
    if kind == "learning_rates" and start == "warm":
        pytest.skip("a rate for each step is that of runs from the start")
    tracker = Recorder()
    trainer = made(kind, tracker=tracker, inner={"start": start}, **ALWAYS)
    trainer.fit()
    check = trainer.checked
    assert check.error < 0.05 and check.warning == "" and check.predicted != 0
    assert tracker.series("hyper/check_error") == [check.error]
    (step,) = [s for s, row in tracker.numbers if "hyper/check_error" in row]
    assert step == 2
    report = trainer.test()
    assert report.as_json()["check"] == {**vars(check), "warning": ""}
    assert report.lines("test")[-1].startswith("check: along a random direction")


def test_it_is_that_of_the_next_step_as_things_stand() -> None:
    trainer = made(seed=3, **ALWAYS)
    trainer.fit()
    objective = trainer.objective
    run = objective._run(
        trainer.module.current(), objective.runs.of_step(2, trainer.module), objective.batch(2)
    )
    found = objective_module.hyper_gradient(**run)
    expected = check_hyper_gradient(found, **run, generator=torch.Generator().manual_seed(3))
    assert trainer.checked == GradientCheck.of("auto", expected)


def test_nothing_is_checked_where_it_is_not_asked_for_or_not_over() -> None:
    tracker = Recorder()
    trainer = made(check=False, tracker=tracker, **ALWAYS)
    trainer.fit()
    assert trainer.checked is None and tracker.series("hyper/check_error") == []
    assert "check" not in trainer.test().as_json()
    checked = made(tracker=tracker, **ALWAYS)
    checked.fit()
    checked.checked = None
    checked.fit()  # nothing is left to do
    assert checked.checked is None
    with pytest.raises(SettingError, match="check=5"):
        made(check=5)


def test_what_is_learnt_does_not_depend_on_it() -> None:
    one, other = made(**ALWAYS), made(check=False, **ALWAYS)
    for trainer in (one, other):
        trainer.fit()
    for name, value in one.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[name])


def test_runs_that_are_not_smooth_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A rate far beyond what the curvature bears."""
    inner = {"steps": 30, "lr": 12.0, "momentum": 0.9}
    trainer = made("weight_decay", inner=inner, steps=1, clip=1.0)
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    assert trainer.checked.error > 0.05
    (record,) = [r for r in caplog.records if "random direction" in r.message]
    assert "lower inner.lr" in record.message and "not be trusted" in record.message
    assert trainer.test().as_json()["check"]["warning"] == record.message


@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        ("auto", 0.04, ""),
        ("mixed", 0.06, "runs are not smooth enough"),
        ("reverse", float("nan"), "runs are not smooth enough"),
        ("truncated", 0.4, ""),
        ("implicit", 0.6, "method=implicit leaves out too much: method=auto may help"),
        ("first_order", float("inf"), "method=first_order leaves out too much"),
    ],
)
def test_methods_that_leave_something_out_may_differ_by_more(
    method: str, error: float, words: str
) -> None:
    warning = GradientCheck(method, 1.0, 2.0, error).warning
    assert words in warning and bool(words) == bool(warning)


class Reading(nn.Module):
    """Reads a value, which no vmap takes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x)
        return out if float(out.detach().sum()) > -1e9 else -out


def test_a_network_that_vmap_cannot_take_is_run_twice() -> None:
    torch.manual_seed(0)
    trainer = made(model=Reading(), **ALWAYS)
    trainer.fit()
    assert trainer.checked.error < 0.05
