"""Confusions of tasks with names, and their picture."""

from __future__ import annotations

import pytest
import torch

from metalearn.errors import SettingError
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers.meta.confused import (
    NamedTask,
    confusion_lines,
    confusions_of,
    draw_confusions,
    named_tasks,
)
from tests.support.builders import patterns


def test_tasks_have_the_names_of_their_classes() -> None:
    tasks = FewShotTasks(patterns(), way=3, query=2)
    several = list(named_tasks(tasks, "test", 2))
    assert [task.names for task in several] == [tasks.class_names("test", i) for i in range(2)]
    drawn = tasks.sample("test", [0, 1])
    assert torch.equal(several[1].query[0], drawn.query[0][1])
    with pytest.raises(SettingError, match="0 is needed: the classes of the run's tasks have no"):
        next(named_tasks(SinusoidTasks(), "test", 2))


def test_a_class_that_is_not_there_may_be_predicted() -> None:
    """Of padding nothing is counted, and what is drawn of no class is empty."""
    pictures = torch.rand(4, 1, 4, 4)
    support, query = (pictures[:2], torch.tensor([0, 1])), (pictures, torch.tensor([0, 1, 1, -100]))
    task = NamedTask(("a", "b"), support, query)
    counts = confusions_of([task], [torch.tensor([3, 1, 0, 0])])
    several = counts.most_frequent(5)
    found = [(c.true, c.predicted, c.count, c.chances) for c in several]
    assert found == [("a", "no class of the task", 1, 1), ("b", "a", 1, 2)]
    assert counts.queries == 3 and "2 of 3 queries" in confusion_lines(counts, several)[0]
    figure = draw_confusions(several, [task])
    assert figure is not None and len(figure.axes) == 2 * 4


def test_nothing_is_drawn_of_no_confusions_or_no_pictures() -> None:
    assert draw_confusions([], []) is None
    vectors = torch.rand(2, 5), torch.tensor([0, 1])
    task = NamedTask(("a", "b"), vectors, vectors)
    counts = confusions_of([task], [torch.tensor([1, 1])])
    assert draw_confusions(counts.most_frequent(1), [task]) is None
