"""Sums of gradients that are there, each clipped by itself.

Axes: N samples or tasks.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from metalearn.core.samples.clipping_rule import clipped_sum, clipping_rule

PARAMS = {"body.weight": torch.zeros(2, 3), "body.bias": torch.zeros(2), "head": torch.zeros(())}


def rows(count: int) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    scale = 10.0 ** torch.linspace(-3, 2, max(count, 1), dtype=torch.float64)[:count]
    return {
        name: torch.randn(count, *p.shape, generator=made, dtype=torch.float64)
        * scale.view(count, *[1] * p.dim())
        for name, p in PARAMS.items()
    }


def by_hand(grads: Any, max_norm: float, clipping: str, parts: list[list[str]]) -> Any:
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in PARAMS.items()}
    limit = max_norm / math.sqrt(len(parts))
    for i in range(len(grads["head"])):
        for names in parts:
            norm = math.sqrt(sum(float((grads[name][i] ** 2).sum()) for name in names))
            factor = limit / (norm + 0.01) if clipping == "automatic" else 1.0
            if clipping == "flat" and norm > limit:
                factor = limit / norm
            for name in names:
                total[name] += factor * grads[name][i]
    return total


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize(
    ("groups", "parts"),
    [
        ("all", [list(PARAMS)]),
        ("layers", [["body.weight", "body.bias"], ["head"]]),
        ({"biases": "*.bias"}, [["body.bias"], ["body.weight", "head"]]),
    ],
)
def test_sums_are_those_of_a_loop(groups: Any, parts: Any, clipping: Any) -> None:
    grads = rows(7)
    found = clipped_sum(grads, 0.7, clipping_rule(PARAMS, clipping, groups))
    for name, wanted in by_hand(grads, 0.7, clipping, parts).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-12, atol=1e-14)


def test_nothing_and_zeros_are_sums_of_zero() -> None:
    rule = clipping_rule(PARAMS, "flat", "all")
    zeros = {name: torch.zeros(4, *p.shape) for name, p in PARAMS.items()}
    for grads in (rows(0), zeros):
        found = clipped_sum(grads, 1.0, rule)
        assert {n: v.shape for n, v in found.items()} == {n: p.shape for n, p in PARAMS.items()}
        assert not any(bool(value.any()) for value in found.values())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e200])
def test_what_is_not_finite_counts_as_none(bad: float) -> None:
    grads, rule = rows(5), clipping_rule(PARAMS, "flat", "all")
    kept = {name: value[[0, 1, 3, 4]] for name, value in grads.items()}
    grads["body.weight"][2, 1, 1] = bad
    found, wanted = (clipped_sum(part, 1.0, rule) for part in (grads, kept))
    for name in PARAMS:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0)


def test_no_row_adds_more_than_the_norm() -> None:
    for number in range(20):
        made = torch.Generator().manual_seed(number)
        grads = {n: 1e3 * torch.randn(1, *p.shape, generator=made) for n, p in PARAMS.items()}
        for groups in ("all", "layers"):
            found = clipped_sum(grads, 0.5, clipping_rule(PARAMS, "flat", groups))  # type: ignore[arg-type]
            norm = math.sqrt(sum(float((value**2).sum()) for value in found.values()))
            assert norm <= 0.5 * (1 + 1e-6)
