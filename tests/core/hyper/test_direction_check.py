"""The check by two runs: it agrees with exact gradients, and finds others out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import DirectionCheck, adam, check_hyper_gradient, hyper_gradient, sgd
from tests.support.weighted_run import HYPER, OUTER, K, batch, each, found_by, inner, outer, start


def check(found: Any, outer_loss: Any = outer, **more: Any) -> DirectionCheck:
    given: dict[str, Any] = {"optimizer": sgd(0.3), "frozen": "unmoved", "steps": K} | more
    return check_hyper_gradient(
        found, inner, outer_loss, start(), HYPER, batch, OUTER,
        generator=torch.Generator().manual_seed(0), **given,
    )  # fmt: skip


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("outer_loss", [outer, each])
@pytest.mark.parametrize("learns", [True, False])
def test_exact_gradients_agree(stacked: bool, outer_loss: Any, learns: bool) -> None:
    rate: Any = torch.tensor(0.05, dtype=torch.float64) if learns else 0.05
    found = found_by("mixed", outer_loss, optimizer=adam(rate))
    report = check(found, outer_loss, optimizer=adam(rate), stacked=stacked)
    assert report.errors.shape == found.loss.shape == report.predicted.shape
    assert float(report.errors.max()) < 1e-6 and report.agrees(1e-6)
    assert "differ by" in str(report)


@pytest.mark.parametrize(
    ("method", "more"), [("first_order", {}), ("truncated", {"truncation": 2})]
)
def test_approximations_do_not(method: str, more: dict[str, Any]) -> None:
    assert not check(found_by(method, each, **more), each).agrees()


def test_without_hyper_it_is_of_the_initial_parameters() -> None:
    def loss(p: Tensor, h: Any, b: Any) -> Tensor:
        return (p**4).sum()

    where = torch.tensor([0.5, -0.4, 0.0], dtype=torch.float64)
    run: Any = (loss, loss, where, (), [0] * 5, None)
    found = hyper_gradient(*run, optimizer=sgd(0.1))
    generator = torch.Generator().manual_seed(1)
    report = check_hyper_gradient(found, *run, optimizer=sgd(0.1), generator=generator)
    assert report.agrees(1e-7)
    wrong = found._replace(grads=found.grads * 1.2)
    assert not check_hyper_gradient(wrong, *run, optimizer=sgd(0.1), generator=generator).agrees()


def test_a_run_whose_rate_is_too_large_is_found_out() -> None:
    """θ' = 4·θ·(1 − θ), the logistic map: chaos, in float32 too much for 60 steps."""

    def loss(p: Tensor, h: Tensor, b: Any) -> Tensor:
        return -(h * (2 * p**2 - 4 * p**3 / 3) - p**2 / 2)

    run: Any = (loss, lambda p, h, b: p**2, torch.tensor(0.3), torch.tensor(0.99), [0] * 60, None)
    found = hyper_gradient(*run, optimizer=sgd(1.0))
    generator = torch.Generator().manual_seed(1)
    report = check_hyper_gradient(found, *run, optimizer=sgd(1.0), generator=generator)
    assert not report.agrees()
    norms = found.diagnostics["walk_norms"]
    assert float(norms[-1] / norms[0]) > 1e6


def test_both_runs_draw_the_same_batches() -> None:
    def drawn(k: int) -> Tensor:
        return torch.randperm(12, generator=torch.Generator().manual_seed(k))[:4]

    found = found_by("mixed", batches=drawn)
    report = check_hyper_gradient(
        found, inner, outer, start(), HYPER, drawn, OUTER, optimizer=sgd(0.3), steps=K,
        frozen="unmoved", generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert report.agrees(1e-6)


def test_losses_that_hardly_depend_on_it_do_not_decide() -> None:
    ones, small = torch.tensor([1.0, 1e-9]), torch.tensor([1.01, -1e-9])
    report = DirectionCheck(ones, small, torch.tensor([1.0, 1e-9]), 0.1)
    assert report.agrees() and float(report.errors.max()) == pytest.approx(2)
    assert not DirectionCheck(ones, -ones, ones, 0.1).agrees()


def test_numbers_that_are_not_finite_never_agree() -> None:
    nan = torch.tensor(float("nan"))
    assert not DirectionCheck(nan, nan, nan, 0.1).agrees()
