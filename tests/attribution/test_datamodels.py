"""Rank correlations against slow ones; subsets and their outcomes read back by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.attribution import (
    brittleness,
    leave_out_changes,
    leave_top_out,
    linear_datamodeling_score,
    random_subsets,
    rank_correlations,
)
from metalearn.errors import SettingError
from tests.contracts.calls import draw


def slow_ranks(values: list[float]) -> list[float]:
    """Mean of the places that equal values take in order, from 1."""
    return [
        sum(1 for v in values if v < own) + (sum(1 for v in values if v == own) + 1) / 2
        for own in values
    ]


def slow_spearman(one: list[float], other: list[float]) -> float:
    a, b = slow_ranks(one), slow_ranks(other)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b))
    sizes = [sum((x - m) ** 2 for x in c) for c, m in ((a, mean_a), (b, mean_b))]
    return top / math.sqrt(sizes[0] * sizes[1])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [2, 3, 17])
def test_rank_correlations_are_those_of_a_slow_loop(count: int, ties: bool) -> None:
    one, other = draw(6, count), draw(6, count, seed=1)
    if ties:
        one, other = one.mul(1.5).round(), other.round()
        one[:, 0], one[:, 1], other[:, 0], other[:, 1] = 0, 9, -9, 3  # none is constant
    found = rank_correlations(one, other)
    expected = [slow_spearman(a, b) for a, b in zip(one.tolist(), other.tolist())]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    stats = pytest.importorskip("scipy.stats")
    theirs = [stats.spearmanr(a, b).statistic for a, b in zip(one.numpy(), other.numpy())]
    torch.testing.assert_close(found, torch.tensor(theirs, dtype=torch.float64))


def test_limits_of_rank_correlations() -> None:
    x = draw(1, 9)
    both = lambda a, b: float(rank_correlations(a, b))  # noqa: E731
    assert both(x, x.exp()) == pytest.approx(1) and both(x, -x) == pytest.approx(-1)
    assert math.isnan(both(x, torch.ones(1, 9)))
    assert math.isnan(both(torch.ones(1, 9), torch.ones(1, 9)))
    assert both(torch.ones(1, 9), x) == 0
    assert both(torch.tensor([[0.0, -0.0, 1.0]]), torch.tensor([[2.0, 2.0, 3.0]])) == 1
    assert rank_correlations(x.float(), x.int()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outcomes_that_are_linear_in_what_is_left_out_score_1(dtype: torch.dtype) -> None:
    scores, weights = draw(5, 30).to(dtype), random_subsets(12, 30, leave_out=0.2).to(dtype)
    outcomes = (2.0 + 3.0 * (1 - weights) @ scores.T).exp()
    found = linear_datamodeling_score(scores, weights, outcomes)
    torch.testing.assert_close(found.correlations, torch.ones(5, dtype=torch.float64))
    assert found.mean == pytest.approx(1) and found.interval95 == pytest.approx(0, abs=1e-9)
    assert linear_datamodeling_score(-scores, weights, outcomes).mean == pytest.approx(-1)


def test_the_score_is_the_mean_with_an_interval_over_targets() -> None:
    scores, weights = draw(4, 20), random_subsets(15, 20, leave_out=0.25, seed=2)
    outcomes = (1 - weights).double() @ scores.T + draw(15, 4, seed=3)
    found = linear_datamodeling_score(scores, weights, outcomes)
    predicted = [
        [sum((1 - w) * s for w, s in zip(row, mine)) for row in weights.tolist()]
        for mine in scores.tolist()
    ]
    expected = [slow_spearman(p, o) for p, o in zip(predicted, outcomes.T.tolist())]
    torch.testing.assert_close(found.correlations, torch.tensor(expected, dtype=torch.float64))
    mean = sum(expected) / 4
    deviation = math.sqrt(sum((e - mean) ** 2 for e in expected) / 3)
    assert found.mean == pytest.approx(mean)
    assert found.interval95 == pytest.approx(3.1824 * deviation / 2, rel=1e-4)


def test_fractional_weights_count_by_what_they_lack() -> None:
    scores = torch.tensor([[1.0, 2.0]])
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.4], [2.0, 1.0], [1.0, 1.0]])
    outcomes = torch.tensor([[1.0], [1.2], [-1.0], [0.0]])
    assert linear_datamodeling_score(scores, weights, outcomes).mean == pytest.approx(1)


def test_targets_of_equal_outcomes_are_left_out_and_constant_predictions_score_0() -> None:
    scores, weights = draw(3, 10), random_subsets(6, 10, leave_out=0.3)
    scores[1] = 0
    outcomes = (1 - weights).double() @ draw(3, 10).T
    outcomes[:, 2] = 0.7
    found = linear_datamodeling_score(scores, weights, outcomes)
    assert found.correlations[0] == pytest.approx(1) and found.correlations[1] == 0
    assert found.correlations[2].isnan() and found.mean == pytest.approx(0.5)
    alone = linear_datamodeling_score(scores[:1], weights, outcomes[:, :1])
    assert alone.mean == pytest.approx(1) and math.isnan(alone.interval95)
    with pytest.raises(SettingError, match="outcomes='all equal': a target is needed whose"):
        linear_datamodeling_score(scores, weights, torch.ones(6, 3))


# --- the most helpful examples left out ---------------------------------------------------------


def test_subsets_lack_the_most_helpful_examples_of_each_target() -> None:
    scores = torch.tensor([[1.0, 5.0, -2.0, 5.0], [0.0, -1.0, -3.0, -2.0]])
    expected = [
        [1, 1, 1, 1],
        [1, 0, 1, 1],  # of equal scores the first
        [0, 0, 1, 0],
        [0, 1, 1, 1],
        [0, 0, 1, 0],
    ]
    assert leave_top_out(scores, [1, 3]).tolist() == expected
    assert leave_top_out(scores.half(), (3,)).tolist() == [expected[i] for i in (0, 2, 4)]


def test_changes_are_read_from_each_targets_own_rows() -> None:
    scores, counts = draw(3, 8), [1, 4]
    losses = draw(7, 3, seed=5)
    found = leave_out_changes(scores, counts, losses)
    for r in range(3):
        highest = sorted(scores[r].tolist(), reverse=True)
        for j, count in enumerate(counts):
            real = losses[1 + 2 * r + j, r] - losses[0, r]
            assert float(found.changes[r, j]) == pytest.approx(float(real))
            assert float(found.predicted[r, j]) == pytest.approx(sum(highest[:count]))


def test_a_linear_model_of_outcomes_changes_as_was_said() -> None:
    scores, counts = draw(3, 8), [2, 5, 7]
    weights = leave_top_out(scores, counts)
    losses = 4 + (1 - weights).double() @ scores.T
    found = leave_out_changes(scores, counts, losses)
    torch.testing.assert_close(found.changes, found.predicted)


def test_brittleness_by_hand() -> None:
    counts = [4, 1]
    classes = torch.tensor([[0, 1], [2, 2], [0, 0], [1, 1], [2, 1]])  # [1 + R·K, R]
    outputs = torch.nn.functional.one_hot(classes, 3).double()
    found = brittleness(outputs, counts)
    assert found.flipped.tolist() == [[True, False], [False, False]]
    assert found.share.tolist() == [0.5, 0.0]
    assert found.smallest.tolist() == [4, -1]
    z = 1.959963984540054
    low = (0.5 + z**2 / 4 - z * math.sqrt(0.25 / 2 + z**2 / 16)) / (1 + z**2 / 2)
    torch.testing.assert_close(
        found.interval95[0], torch.tensor([low, 1 - low], dtype=torch.float64)
    )
    assert found.interval95[1, 0] == 0
    assert float(found.interval95[1, 1]) == pytest.approx(z**2 / 2 / (1 + z**2 / 2))


def test_the_smallest_count_is_so_in_any_order() -> None:
    classes = torch.tensor([[0], [1], [0], [1]])
    found = brittleness(torch.nn.functional.one_hot(classes, 2).float(), [9, 2, 5])
    assert found.smallest.tolist() == [5]


MATRIX = torch.ones(3, 8)
LDS: Any = linear_datamodeling_score


def spoilt(value: float) -> Tensor:
    found = MATRIX.clone()
    found[1, 1] = value
    return found


@pytest.mark.parametrize(
    ("call", "given", "message"),
    [
        (LDS, (MATRIX[0], MATRIX, MATRIX), r"shape of scores=\[8\]: \[R, N\]"),
        (LDS, (MATRIX, MATRIX[:, 1:], MATRIX), r"shape of weights=\[3, 7\]: \["),
        (LDS, (MATRIX, MATRIX, MATRIX), r"shape of outcomes=\[3, 8\]: \[3, 3\]"),
        (LDS, (MATRIX, MATRIX[:1], MATRIX), "subsets=1: at least 2 are needed"),
        (LDS, (spoilt(math.nan), MATRIX, MATRIX), "scores='torch.float32': fin"),
        (LDS, (MATRIX * 1j, MATRIX, MATRIX), "scores='torch.complex64': fin"),
        (rank_correlations, (MATRIX, MATRIX[:2]), r"shape of real=\[2, 8\]: \[3, 8\] is needed"),
        (rank_correlations, (MATRIX[:0], MATRIX[:0]), r"shape of predicted=\[0, 8\]: \[R, M\]"),
        (rank_correlations, (MATRIX, spoilt(math.inf)), "real='torch.float32': finite real"),
        (leave_top_out, (MATRIX, []), r"counts=\[\]: at least one number of examples"),
        (leave_top_out, (MATRIX, [0]), "counts=0: a whole number of at least 1"),
        (leave_top_out, (MATRIX, [8]), "counts=8: a whole number of at most 7"),
        (leave_top_out, (MATRIX, [True]), r"counts=.*: "),
        (leave_out_changes, (MATRIX, [1], MATRIX[:, :3]), r"shape of losses=\[3, 3\]: \[4, 3\] is"),
        (brittleness, (torch.ones(4, 2, 3), [1]), r"shape of outputs=\[4, 2, 3\]: \[1 \+ R·1, R"),
        (brittleness, (torch.ones(3, 2, 1), [1]), r"shape of outputs=\[3, 2, 1\]: \[1 \+ R·1, R"),
        (brittleness, (torch.ones(3, 2, 2) * math.nan, [1]), "outputs='torch.float32': finite"),
    ],
)  # fmt: skip
def test_what_does_not_fit_gets_one_sentence(call: Any, given: Any, message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}") as caught:
        call(*given)
    assert "\n" not in str(caught.value)
