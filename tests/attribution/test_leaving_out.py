"""Retraining without the most helpful examples, by every method at once, against one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.attribution import CHANCE, LeaveKOut, Retrained, leave_k_out
from metalearn.attribution.leaving_out import change_in_words
from metalearn.errors import SettingError
from metalearn.evaluation.seeds import SeedMean

R, N, COUNTS = 3, 12, (2, 5)
TABLE = torch.randn(N, R, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SEEN: list[Tensor] = []


def retrain(weights: Tensor) -> Retrained:
    """Outputs are a sum over examples, losses another: both are known of every subset alone."""
    SEEN.append(weights)
    outputs = torch.einsum("mn,nrc->mrc", weights.double(), TABLE)
    return Retrained(outputs.square().sum(-1), outputs)


def scores(seed: int) -> Tensor:
    return torch.randn(R, N, generator=torch.Generator().manual_seed(seed))


def found(**changes: Any) -> LeaveKOut:
    SEEN.clear()
    given: dict[str, Any] = {"scores": {"one": scores(1), "two": scores(2)}, "counts": COUNTS}
    given |= {"retrain": retrain, "classes": True, "seed": 4, **changes}
    return leave_k_out(**given)


@pytest.mark.parametrize("method", ["one", "two"])
def test_it_is_what_each_subset_alone_gives(method: str) -> None:
    left, whole = found(), retrain(torch.ones(1, N))
    values = scores({"one": 1, "two": 2}[method])
    for r in range(R):
        for j, count in enumerate(COUNTS):
            helpful = values[r].argsort(descending=True)[:count]
            weights = torch.ones(1, N)
            weights[0, helpful] = 0
            alone = retrain(weights)
            change = float(alone.losses[0, r] - whole.losses[0, r])
            assert float(left.changes[method][r, j]) == pytest.approx(change)
            assert float(left.predicted[method][r, j]) == pytest.approx(
                float(values[r, helpful].sum())
            )
            flips = int(alone.outputs[0, r].argmax()) != int(whole.outputs[0, r].argmax())
            assert bool(left.flips[method].flipped[r, j]) == flips


def test_all_subsets_are_one_stack_with_as_many_by_chance() -> None:
    left = found()
    (weights,) = SEEN
    assert weights.shape == (1 + 2 + 2 * R * 2, N) and bool((weights[0] == 1).all())
    lacking = [set((row == 0).nonzero().flatten().tolist()) for row in weights[1:3]]
    assert [len(one) for one in lacking] == [2, 5] and lacking[0] < lacking[1]
    alone = retrain(weights[1:3])
    expected = (alone.losses - retrain(torch.ones(1, N)).losses).T
    torch.testing.assert_close(left.changes[CHANCE], expected)
    assert CHANCE not in left.predicted and set(left.flips) == {"one", "two", CHANCE}
    found(seed=5)
    assert not torch.equal(SEEN[0][1:3], weights[1:3])


def test_what_is_told() -> None:
    left = found()
    entries = left.as_json("one")
    assert [entry["left_out"] for entry in entries] == [2, 5]
    assert entries[1]["loss_change"] == pytest.approx(float(left.changes["one"][:, 1].mean()))
    assert "foretold" in entries[0] and "foretold" not in left.as_json(CHANCE)[0]
    of_target = left.of_target(2)["two"]
    assert of_target["loss_changes"] == left.changes["two"][2].tolist()
    smallest = [c for c, flips in zip(COUNTS, left.flips["two"].flipped[2]) if flips]
    assert of_target["smallest_that_flips"] == (smallest[0] if smallest else None)


@pytest.mark.parametrize(
    ("mean", "half", "words"),
    [
        (0.4123, 0.4, "+0.41 ± 0.40"),
        (-0.4123, 0.041, "−0.41 ± 0.04"),
        (1.9e-6, 0.0006, "+0.0000 ± 0.0006"),
        (12.3, 3.4, "+12.30 ± 3.40"),
        (0.0123, math.nan, "+0.012"),
        (-0.5, 0.0, "−0.5"),
    ],
)
def test_changes_in_words(mean: float, half: float, words: str) -> None:
    assert change_in_words(SeedMean(mean, half, 1.0)) == words


def test_of_numbers_nothing_flips_and_scores_that_are_not_finite_have_no_part() -> None:
    lost = scores(3)
    lost[0, 0] = torch.nan
    left = found(classes=False, scores={"one": scores(1), "lost": lost})
    assert left.flips == {} and set(left.changes) == {"one", CHANCE}
    assert "flipped" not in left.as_json("one")[0]
    assert "smallest_that_flips" not in left.of_target(0)["one"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": []}, "counts=.*at least one number of examples"),
        ({"counts": [N]}, f"counts={N}: a whole number of at most {N - 1}"),
        ({"scores": {}}, "scores=.*a method with finite scores is needed"),
        ({"scores": {CHANCE: scores(1)}}, "none is named chance"),
        ({"seed": -1}, "seed=-1"),
        ({"retrain": None}, "retrain=None"),
    ],
)
def test_mistakes_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        found(**changes)


def test_parts_that_do_not_fit_are_refused() -> None:
    left = found()
    with pytest.raises(SettingError, match="shape of changes"):
        LeaveKOut([1, 2, 3], left.changes, left.predicted, left.flips)
    with pytest.raises(SettingError, match="changes=.*and for chance"):
        LeaveKOut(left.counts, {"one": left.changes["one"]}, left.predicted, {})
    with pytest.raises(SettingError, match="flips="):
        LeaveKOut(left.counts, left.changes, left.predicted, {"one": left.flips["one"]})
