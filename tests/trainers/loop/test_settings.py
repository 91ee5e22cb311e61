"""Settings of the loop, the learning rate over a run, the clipping of gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.errors import SettingError
from metalearn.trainers import LoopSettings
from tests.support.builders import (
    Recorder,
    Scripted,
    assert_same,
    drawn_gradient,
    linear,
)


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def ones(step: int, value: Tensor) -> Tensor:
    return torch.ones_like(value)


# --- settings -----------------------------------------------------------------------------------

COUNTS = ("steps", "log_every", "eval_every", "checkpoint_every", "patience")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "9"])
def test_counts_are_whole_numbers_from_one(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=rf"^{name}=.*: a whole number of at least 1 is needed$"):
        LoopSettings(**{name: value})


@pytest.mark.parametrize("name", COUNTS[:-1])
def test_only_patience_and_the_optional_may_be_none(name: str) -> None:
    LoopSettings(patience=None, clip=None, progress=None)
    with pytest.raises(SettingError, match=f"^{name}=None: a whole number"):
        LoopSettings(**{name: None})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": -1}, "^warmup=-1: a whole number of at least 0 is needed$"),
        ({"warmup": 5, "steps": 5}, "^warmup=5: fewer than steps=5 are accepted$"),
        ({"clip": 0.0}, r"^clip=0\.0: None or a number above 0 is needed$"),
        ({"clip": -1.0}, r"^clip=-1\.0: None or a number above 0 is needed$"),
        ({"clip": math.nan}, "^clip=nan: None or a number above 0 is needed$"),
    ],
)
def test_settings_out_of_range(settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        LoopSettings(**settings)


# --- learning rate ------------------------------------------------------------------------------


def test_cosine_falls_from_one_to_zero() -> None:
    rate = LoopSettings(steps=40).rate
    rates = [rate(step) for step in range(40)]
    assert rates[0] == 1
    assert rates[10] == pytest.approx(0.5 + math.sqrt(0.125))
    assert rates[20] == pytest.approx(0.5)
    assert rate(40) == pytest.approx(0, abs=1e-15)
    assert 0 < rates[-1] < 0.002
    assert rates == sorted(rates, reverse=True)
    assert sum(rates) == pytest.approx(20.5)  # the mean is a half, and one end is left out


def test_constant_stays() -> None:
    settings = LoopSettings(steps=9, schedule="constant")
    assert {settings.rate(step) for step in range(9)} == {1.0}


def test_the_rate_reaches_the_optimiser() -> None:
    tracker = Recorder()
    trainer = Scripted(
        steps=6, warmup=2, log_every=1, optimizer=plain_sgd, tracker=tracker, gradient_of=ones
    )
    before = trainer.module.weight.clone()
    trainer.fit()
    rates = [trainer.settings.rate(step) for step in range(6)]
    moved = (before - trainer.module.weight).detach()
    torch.testing.assert_close(moved, torch.full((2, 3), 0.1 * sum(rates)))
    assert tracker.series("train/learning_rate") == pytest.approx([0.1 * r for r in rates])


def test_groups_of_parameters_keep_their_own_rates() -> None:
    module = linear()

    def two(parameters: Any) -> torch.optim.Optimizer:
        groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, (0.1, 0.01))]
        return torch.optim.SGD(groups)

    trainer = Scripted(steps=4, module=module, optimizer=two, gradient_of=ones, clip=None)
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    trainer.fit()
    total = sum(trainer.settings.rate(s) for s in range(4))
    torch.testing.assert_close(weight - module.weight, torch.full((2, 3), 0.1 * total))
    torch.testing.assert_close(bias - module.bias, torch.full((2,), 0.01 * total))


def test_adam_with_a_rate_of_a_thousandth_is_the_default() -> None:
    optimizer = Scripted(steps=1).optimizer
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_an_optimiser_that_torch_refuses_is_named() -> None:
    with pytest.raises(
        SettingError, match=r"^optimizer=.*: torch refuses .*: Invalid learning rate"
    ):
        Scripted(steps=1, optimizer=lambda ps: torch.optim.SGD(ps, lr=-1.0))


# --- clipping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.5, 3.0, 1e4, None])
def test_clipping_is_that_of_torch(clip: float | None) -> None:
    tracker = Recorder()
    trainer = Scripted(
        steps=1, clip=clip, optimizer=plain_sgd, tracker=tracker, gradient_of=drawn_gradient
    )
    other = linear()
    for value in other.parameters():
        value.grad = drawn_gradient(0, value.detach())
    norm = torch.cat([v.grad.flatten() for v in other.parameters()]).norm()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(other.parameters(), clip)
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    trainer.fit()
    assert_same(trainer.module.state_dict(), other.state_dict())
    assert tracker.series("train/gradient_norm") == pytest.approx([float(norm)], rel=1e-6)
