"""Confusions of classes, counted by hand."""

from __future__ import annotations

import pytest
import torch

from metalearn.errors import SettingError
from metalearn.evaluation import Confusion, ConfusionCounts


def test_confusions_are_counted_by_name_over_tasks() -> None:
    counts = ConfusionCounts()
    counts.update(["a", "b"], torch.tensor([0, 0, 1]), torch.tensor([1, 1, 1]))
    counts.update(["b", "a", "c"], torch.tensor([1, 0, 2, -100]), torch.tensor([0, 2, 2, 0]))
    counts.update(["a", "c"], torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert (counts.tasks, counts.queries, counts.errors) == (3, 8, 5)
    first, second, third = counts.most_frequent(9)
    assert first == Confusion("a", "b", 3, 3)  # all queries of a, where b stood beside it
    assert first.examples == ((0, 0), (0, 1), (1, 0))
    assert second == Confusion("b", "c", 1, 1)
    assert third == Confusion("c", "a", 1, 2)
    assert counts.most_frequent(1) == [first]
    assert first.as_json() == {"true": "a", "predicted": "b", "count": 3, "chances": 3}


def test_without_errors_there_is_nothing() -> None:
    counts = ConfusionCounts()
    assert counts.most_frequent(3) == [] and counts.errors == 0
    counts.update(["a", "b"], torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert counts.most_frequent(3) == [] and counts.queries == 2


@pytest.mark.parametrize(
    ("targets", "predictions"), [([0, 2], [0, 1]), ([0, 1], [0, 5]), ([0, 1], [-1, 1])]
)
def test_classes_out_of_range_are_refused(targets: list[int], predictions: list[int]) -> None:
    with pytest.raises(SettingError, match=r"a class in 0..1 is needed"):
        ConfusionCounts().update(["a", "b"], torch.tensor(targets), torch.tensor(predictions))


def test_a_count_below_one_is_refused() -> None:
    with pytest.raises(SettingError, match="count=0: a whole number of at least 1 is needed"):
        ConfusionCounts().most_frequent(0)
