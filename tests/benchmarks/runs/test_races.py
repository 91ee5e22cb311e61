"""Entrants of races find the same; what they give is right against oracles of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.attribution import rank_correlations
from metalearn.benchmarks.runs.races import RACES
from metalearn.benchmarks.runs.weighted_run import HyperProblem, WeightedRun
from metalearn.benchmarks.runs.written_out import retrained, trained, unrolled, walked

pytestmark = [pytest.mark.filterwarnings("ignore")]

HYPER: dict[str, Any] = {"steps": 5, "examples": 30, "batch": 10, "hidden": (6,)}
MINIMUM: dict[str, Any] = {"steps": 150, "examples": 40}
ATTRIBUTION: dict[str, Any] = {
    "steps": 24, "examples": 120, "targets": 3, "subsets": 6, "batch": 20, "hidden": (8,),
    "checkpoints": 2, "projection": 101, "left_out": 0.1, "damping": 1.0,
}  # fmt: skip
DIFFERENT = ("betty_cg", "kronecker_dattri")  # by faults of theirs, which the suite shows


def found(race: str, key: str, numbers: dict[str, Any]) -> Tensor:
    """What an entrant gives; skips where it cannot take part."""
    entrant, problem = RACES[race].entrants[key], RACES[race].problem(**numbers)
    if entrant.absent() or not entrant.takes(problem):
        pytest.skip(entrant.absent() or entrant.limit)
    return entrant.prepare(problem)().double()


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("losses", [1, 3])
@pytest.mark.parametrize("key", [k for k in RACES["hyper"].entrants if k != "reference"])
def test_every_gradient_through_a_run_is_the_same(key: str, losses: int) -> None:
    numbers = HYPER | {"losses": losses}
    close(found("hyper", key, numbers), found("hyper", "reference", numbers), 1e-4)


@pytest.mark.parametrize("losses", [1, 2])
def test_the_reference_is_that_of_finite_differences(losses: int) -> None:
    run = HyperProblem(**HYPER, losses=losses).run().to(torch.float64)
    direction = torch.randn(30, generator=torch.Generator().manual_seed(0)).double()

    def after(shift: float) -> Tensor:
        """Outer losses after a training that is written out here."""
        weights = 1 + shift * direction
        params = {n: p.requires_grad_() for n, p in run.params.items()}
        speeds = {n: torch.zeros_like(p) for n, p in params.items()}
        for rows in run.rows:
            loss = run.batch_loss(params, weights, rows)
            slopes = torch.autograd.grad(loss, list(params.values()))
            speeds = {n: 0.9 * v + g for (n, v), g in zip(speeds.items(), slopes)}
            moved = {n: (p - 0.1 * speeds[n]).detach() for n, p in params.items()}
            params = {n: p.requires_grad_() for n, p in moved.items()}
        return run.outer(params).detach().reshape(-1)

    slope = (after(1e-5) - after(-1e-5)) / 2e-5
    close(walked(run)() @ direction, slope, 1e-7)
    close(unrolled(run)() @ direction, slope, 1e-7)


@pytest.mark.parametrize("losses", [1, 2])
@pytest.mark.parametrize("key", [k for k in RACES["implicit"].entrants if k != "reference"])
def test_gradients_at_a_minimum_are_those_of_a_dense_solution(key: str, losses: int) -> None:
    numbers = MINIMUM | {"losses": losses}
    gradient, exact = found("implicit", key, numbers), found("implicit", "reference", numbers)
    if key in DIFFERENT:
        assert float((gradient - exact).norm() / exact.norm()) > 0.1
    else:
        close(gradient, exact, 2e-3)


def _written() -> WeightedRun:
    return RACES["attribution"].problem(**ATTRIBUTION).written.to(torch.float64)


def test_a_subset_is_retrained_as_if_its_examples_were_left_out() -> None:
    """Every batch without them, divided by B as before."""
    run = _written()
    weights = run.weights[None].repeat(2, 1)
    weights[1, ::4] = 0
    losses = retrained(run, weights)()
    close(losses[:, 0], run.target_loss(trained(run)()), 1e-10)
    params = run.params
    speeds = {name: torch.zeros_like(p) for name, p in params.items()}
    for rows, rate in zip(run.rows, run.rates):
        kept = rows[rows % 4 != 0]
        leaves = {n: p.requires_grad_() for n, p in params.items()}
        loss = run.batch_loss(leaves, run.weights, kept) * len(kept) / len(rows)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        speeds = {n: 0.9 * v + g for (n, v), g in zip(speeds.items(), slopes)}
        params = {n: (p - rate * speeds[n]).detach() for n, p in params.items()}
    close(losses[:, 1], run.outer(params), 1e-10)


@pytest.mark.parametrize("key", list(RACES["attribution"].entrants))
def test_entrants_of_one_quantity_agree(key: str) -> None:
    entrant = RACES["attribution"].entrants[key]
    mine = found("attribution", key, ATTRIBUTION)
    ours = found("attribution", entrant.beside, ATTRIBUTION)
    assert mine.shape == ours.shape and bool(mine.isfinite().all())
    ranks = float(rank_correlations(mine, ours).mean())
    if key in DIFFERENT:
        assert ranks < 0.9
    elif entrant.beside == "trak" and key != "trak":  # of other random projections
        assert 0.1 < ranks < 0.99
    else:
        assert ranks > 0.999
        if entrant.beside in ("training", "exact", "retraining"):
            close(mine, ours, 1e-3)
