"""Schedules of the learning rate: against those of torch, and what is refused."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.optim import lr_scheduler

from metalearn.errors import SettingError
from metalearn.trainers import LoopSettings
from metalearn.trainers.loop.schedules import Schedule
from tests.support.builders import (
    Recorder,
    Scripted,
    assert_same,
    drawn_gradient,
    last,
    signal_in_step,
    state_of,
)

STEPS = 24
Torch = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


def rates_of_torch(make: Torch, steps: int) -> list[float]:
    """Factors of a scheduler of torch, one for each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


def one_cycle(start: float, peak: float, end: float) -> Torch:
    """Torch's cycle is at its highest at step pct·(S + 1) − 1 and ends at step S of S + 1."""
    return lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=STEPS + 1,
        pct_start=(peak * STEPS + 1) / (STEPS + 1),
        div_factor=1 / start,
        final_div_factor=start / end,
        cycle_momentum=False,
    )


CASES: dict[str, tuple[dict[str, Any], Torch]] = {
    "cosine": (
        {"schedule": "cosine"},
        lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    ),
    "cosine with an end": (
        {"schedule": "cosine", "schedule_end": 0.2},
        lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.2),
    ),
    "linear": (
        {"schedule": "linear"},
        lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, STEPS),
    ),
    "linear with an end": (
        {"schedule": "linear", "schedule_end": 0.3},
        lambda o: lr_scheduler.LinearLR(o, 1.0, 0.3, STEPS),
    ),
    "step": ({"schedule": "step"}, lambda o: lr_scheduler.StepLR(o, STEPS // 3, 0.1)),
    "step of its own": (
        {"schedule": "step", "schedule_every": 5, "schedule_factor": 0.5},
        lambda o: lr_scheduler.StepLR(o, 5, 0.5),
    ),
    "one_cycle": (
        {"schedule": "one_cycle", "schedule_end": 1e-5},
        one_cycle(0.04, 0.3, 1e-5),
    ),
    "one_cycle of its own": (
        {"schedule": "one_cycle", "schedule_start": 0.1, "schedule_peak": 0.5, "schedule_end": 0.2},
        one_cycle(0.1, 0.5, 0.2),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_schedules_are_those_of_torch(case: str) -> None:
    settings, make = CASES[case]
    rate = LoopSettings(steps=STEPS, **settings).rate
    found, wanted = [rate(step) for step in range(STEPS)], rates_of_torch(make, STEPS)
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("schedule", [s for s in get_args(Schedule) if s != "one_cycle"])
def test_a_schedule_begins_after_the_warmup(schedule: Any) -> None:
    settings = LoopSettings(steps=20, warmup=4, schedule=schedule)
    assert [settings.rate(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    tail = LoopSettings(steps=16, schedule=schedule)
    assert [settings.rate(4 + s) for s in range(16)] == [tail.rate(s) for s in range(16)]


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_the_shortest_runs_have_a_rate(schedule: Any, steps: int) -> None:
    loop = LoopSettings(steps=steps, schedule=schedule)
    assert all(0 < loop.rate(step) <= 1 for step in range(steps))
    if steps > 1 and schedule != "one_cycle":
        warm = LoopSettings(steps=steps, warmup=steps - 1, schedule=schedule)
        assert all(0 < warm.rate(step) <= 1 for step in range(steps))


def test_a_cycle_may_begin_at_its_highest() -> None:
    settings = LoopSettings(steps=10, schedule="one_cycle", schedule_peak=0.0)
    falling = LoopSettings(steps=10, schedule="cosine")
    assert [settings.rate(s) for s in range(10)] == [falling.rate(s) for s in range(10)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "exponential"}, "^schedule='exponential': one of cosine, constant, step"),
        ({"schedule_end": 1.0}, r"^schedule_end=1.0: a number in \[0, 1\) is needed$"),
        ({"schedule_end": -0.1}, r"^schedule_end=-0.1: a number in \[0, 1\)"),
        ({"schedule_end": "half"}, r"^schedule_end='half': a number in \[0, 1\)"),
        ({"schedule": "constant", "schedule_end": 0.1}, "schedule=cosine or linear or one_cycle"),
        ({"schedule": "step", "schedule_end": 0.1}, "^schedule_end=0.1: schedule=cosine or"),
        ({"schedule_every": 5}, "^schedule_every=5: schedule=step is needed for it$"),
        ({"schedule": "step", "schedule_every": 0}, "^schedule_every=0: a whole number of at"),
        ({"schedule": "step", "schedule_every": 1.5}, "^schedule_every=1.5: a whole number"),
        ({"schedule_factor": 0.5}, "^schedule_factor=0.5: schedule=step is needed for it$"),
        ({"schedule": "step", "schedule_factor": 0}, "^schedule_factor=0: a number above 0 and"),
        ({"schedule": "step", "schedule_factor": 1.5}, "^schedule_factor=1.5: .* at most 1 is"),
        ({"schedule_start": 0.1}, "^schedule_start=0.1: schedule=one_cycle is needed for it$"),
        ({"schedule": "one_cycle", "schedule_start": 0.0}, "^schedule_start=0.0: a number above"),
        ({"schedule_peak": 0.5}, "^schedule_peak=0.5: schedule=one_cycle is needed for it$"),
        ({"schedule": "one_cycle", "schedule_peak": 1.0}, r"^schedule_peak=1.0: .* \[0, 1\)"),
        ({"schedule": "one_cycle", "warmup": 3}, "^warmup=3: 0 is needed beside schedule=one_cyc"),
    ],
)
def test_settings_of_schedules_that_cannot_work(settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        LoopSettings(**settings)


@pytest.mark.parametrize("case", CASES)
def test_a_schedule_goes_on_where_it_was_stopped(case: str, tmp_path: Path) -> None:
    settings: Any = {
        "steps": STEPS,
        "gradient_of": drawn_gradient,
        "log_every": 1,
        **CASES[case][0],
    }
    tracker = Recorder()
    whole = Scripted(**settings, tracker=tracker)
    whole.fit()
    first = Scripted(**settings, folder=tmp_path)
    signal_in_step(first, 10, signal.SIGTERM)
    first.fit()
    again = Scripted(**settings, folder=tmp_path)
    again.resume(last(tmp_path))
    again.fit()
    assert_same(state_of(again), state_of(whole))
    rates = [1e-3 * whole.settings.rate(step) for step in range(STEPS)]
    assert tracker.series("train/learning_rate") == pytest.approx(rates)
