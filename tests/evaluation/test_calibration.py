"""Calibration errors against slow loops and torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from metalearn.errors import SettingError
from metalearn.evaluation import (
    adaptive_calibration_error,
    expected_calibration_error,
    reliability_bins,
)


def _drawn(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    confidences = torch.rand(samples, generator=generator)
    hits = torch.rand(samples, generator=generator) < confidences**2
    return confidences, hits


def _slow_ece(confidences: list[float], hits: list[float], bins: int) -> float:
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidences) if b / bins < c <= (b + 1) / bins]
        if inside:
            accuracy = sum(hits[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(accuracy - confidence)
    return total


def _slow_adaptive(confidences: list[float], hits: list[float], bins: int) -> float:
    n = len(confidences)
    order = sorted(range(n), key=lambda i: confidences[i])
    alike = {c: [hits[j] for j in range(n) if confidences[j] == c] for c in confidences}
    fair = {c: sum(values) / len(values) for c, values in alike.items()}
    total, start = 0.0, 0
    for b in range(bins):
        size = n // bins + (b < n % bins)
        inside = order[start : start + size]
        start += size
        if inside:
            accuracy = sum(fair[confidences[i]] for i in inside) / size
            confidence = sum(confidences[i] for i in inside) / size
            total += size / n * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("samples", [1, 7, 400])
def test_both_errors_against_slow_loops(samples: int, bins: int) -> None:
    confidences, hits = _drawn(samples, seed=bins)
    lists = confidences.tolist(), hits.double().tolist()
    ece = float(expected_calibration_error(confidences, hits, bins=bins))
    assert ece == pytest.approx(_slow_ece(*lists, bins))
    adaptive = float(adaptive_calibration_error(confidences, hits, bins=bins))
    assert adaptive == pytest.approx(_slow_adaptive(*lists, bins))


def test_ties_share_their_accuracy_whatever_their_order() -> None:
    confidences, hits = _drawn(300)
    confidences = (confidences * 8).round() / 8
    adaptive = float(adaptive_calibration_error(confidences, hits, bins=7))
    assert adaptive == pytest.approx(
        _slow_adaptive(confidences.tolist(), hits.double().tolist(), 7)
    )
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    again = float(adaptive_calibration_error(confidences[order], hits[order], bins=7))
    assert again == pytest.approx(adaptive)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("bins", [5, 15])
def test_expected_error_against_torchmetrics(classes: int, bins: int) -> None:
    generator = torch.Generator().manual_seed(3)
    probabilities = torch.randn(500, classes, generator=generator).softmax(-1)
    targets = torch.randint(classes, (500,), generator=generator)
    confidences, guesses = probabilities.max(-1)
    ece = expected_calibration_error(confidences, guesses == targets, bins=bins)
    oracle = multiclass_calibration_error(probabilities, targets, classes, n_bins=bins)
    assert float(ece) == pytest.approx(float(oracle), abs=1e-6)


def test_diagram_counts_and_empty_bins() -> None:
    confidences = torch.tensor([0.05, 0.5, 0.6, 1.0, 1.0])
    hits = torch.tensor([False, True, False, True, True])
    bins = reliability_bins(confidences, hits, bins=4)
    assert bins.count.tolist() == [1, 1, 1, 2]  # 0.5 lies on an edge: the bin below; 1: the last
    assert bins.accuracy.tolist() == [0, 1, 0, 1]
    assert bins.confidence.tolist() == pytest.approx([0.05, 0.5, 0.6, 1.0])
    assert float(bins.error) == pytest.approx((0.05 + 0.5 + 0.6 + 0) / 5)
    sparse = reliability_bins(confidences[3:], hits[3:], bins=3)
    assert math.isnan(float(sparse.accuracy[0])) and sparse.count.tolist() == [0, 0, 2]
    assert float(sparse.error) == 0


@pytest.mark.parametrize("error", [expected_calibration_error, adaptive_calibration_error])
def test_rows_are_scored_side_by_side(error: object) -> None:
    rows = [_drawn(50, seed) for seed in range(6)]
    confidences = torch.stack([row[0] for row in rows]).reshape(2, 3, 50)
    hits = torch.stack([row[1] for row in rows]).reshape(2, 3, 50)
    together = error(confidences, hits, bins=6)  # type: ignore[operator]
    alone = torch.stack([error(*row, bins=6) for row in rows])  # type: ignore[operator]
    torch.testing.assert_close(together, alone.reshape(2, 3))
    confidences[1, 2, 7] = math.nan
    spoilt = error(confidences, hits, bins=6)  # type: ignore[operator]
    assert math.isnan(float(spoilt[1, 2]))
    torch.testing.assert_close(spoilt.flatten()[:5], together.flatten()[:5])


@pytest.mark.parametrize("error", [expected_calibration_error, adaptive_calibration_error])
def test_bad_inputs_get_a_sentence(error: object) -> None:
    confidences, hits = _drawn(5)
    with pytest.raises(SettingError, match="bins=0: a whole number of at least 1"):
        error(confidences, hits, bins=0)  # type: ignore[operator]
    with pytest.raises(SettingError, match=r"shape of confidences=\[0\]: .* one sample"):
        error(confidences[:0], hits[:0])  # type: ignore[operator]
    with pytest.raises(SettingError, match=r"shape of hits=\[4\]: \[5\] is needed"):
        error(confidences, hits[:4])  # type: ignore[operator]
