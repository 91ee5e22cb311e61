"""The check by two runs: it agrees with exact gradients, and finds others out."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core import DirectionCheck, adam, check_hyper_gradient, hyper_gradient, sgd
from metalearn.core.tree import tree_map
from tests.support.weighted_run import (
    HYPER,
    OUTER,
    K,
    X,
    Y,
    batch,
    each,
    found_by,
    inner,
    network,
    outer,
    start,
)


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


def bent(scale: float, p: Tensor, h: Tensor, b: Any) -> Tensor:
    """What θ_K = h is taken to: a slope that holds for changes far below 1 / scale."""
    return (scale * (p - 0.3)).tanh().sum() / scale


def nearing(p: Tensor, h: Tensor, b: Any) -> Tensor:
    return (p - h).square().sum()


def quadratic(outer_loss: Any, dtype: torch.dtype = torch.float32) -> Any:
    start = torch.zeros(3, dtype=dtype), torch.full((3,), 0.3, dtype=dtype)
    return (nearing, outer_loss, *start, [0] * 3, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 300.0, 2000.0])
def test_a_slope_that_bends_is_met_at_a_smaller_spacing(dtype: torch.dtype, scale: float) -> None:
    run = quadratic(partial(bent, scale), dtype)
    generator = torch.Generator().manual_seed(2)
    found = hyper_gradient(*run, optimizer=sgd(0.5))
    report = check_hyper_gradient(found, *run, optimizer=sgd(0.5), generator=generator)
    assert report.agrees(), str(report)
    first = torch.finfo(dtype).eps ** (1 / 3)
    if dtype == torch.float32 and scale > 1:
        assert report.spacing < first and len(report.tried) == 4 and "at 0.005" in str(report)
    wrong = found._replace(hyper_grads=found.hyper_grads * 1.2)
    report = check_hyper_gradient(wrong, *run, optimizer=sgd(0.5), generator=generator)
    assert not report.agrees() and len(report.tried) == 4


@pytest.mark.parametrize("optimizer", [sgd(0.05), sgd(0.05, momentum=0.9), adam(0.02)])
@pytest.mark.parametrize("steps", [7, 60])
def test_smooth_runs_in_float32_pass_whatever_the_direction(optimizer: Any, steps: int) -> None:
    run: Any = tree_map(lambda x: x.float(), (start(), HYPER))
    data = X.float(), OUTER[0].float()

    def inner32(p: Any, h: Any, which: Tensor) -> Tensor:
        losses = F.cross_entropy(network(p, data[0][which]), Y[which], reduction="none")
        return (h["weights"][which] * losses).mean() + h["decay"] * (p["a"] ** 2).sum()

    def each32(p: Any, h: Any, test: Any) -> Tensor:
        return F.cross_entropy(network(p, data[1]), OUTER[1], reduction="none")

    given: Any = {"optimizer": optimizer, "steps": steps, "frozen": "unmoved"}
    found = hyper_gradient(inner32, each32, *run, batch, None, **given)
    wrong = found._replace(hyper_grads=tree_map(lambda g: 1.2 * g, found.hyper_grads))
    for seed in range(3):
        how = {**given, "generator": torch.Generator().manual_seed(seed)}
        report = check_hyper_gradient(found, inner32, each32, *run, batch, None, **how)
        assert report.agrees(), str(report)
        how["generator"].manual_seed(seed)
        report = check_hyper_gradient(wrong, inner32, each32, *run, batch, None, **how)
        assert not report.agrees() and report.spread < 0.05, str(report)


def test_kinks_are_told_from_a_gradient_that_is_wrong() -> None:
    """An inner gradient that jumps where h stands: no spacing says the slope."""

    def jumping(p: Tensor, h: Tensor, b: Any) -> Tensor:
        slope = torch.where(h > 0.3, 2.0, 1.0)
        return (slope * (p - h).square()).sum()

    _, _, *rest = quadratic(None)
    run: Any = (jumping, lambda p, h, b: p.sum(), *rest)
    found = hyper_gradient(*run, optimizer=sgd(0.1))
    generator = torch.Generator().manual_seed(0)
    report = check_hyper_gradient(found, *run, optimizer=sgd(0.1), generator=generator)
    assert not report.agrees() and report.spread > 0.05, str(report)


def test_a_spacing_of_ones_own_is_the_only_one() -> None:
    run = quadratic(partial(bent, 300.0))
    found = hyper_gradient(*run, optimizer=sgd(0.5))
    how: Any = {"optimizer": sgd(0.5), "generator": torch.Generator().manual_seed(0)}
    report = check_hyper_gradient(found, *run, spacing=0.05, **how)
    assert report.spacing == 0.05 and not report.tried and not report.agrees()
