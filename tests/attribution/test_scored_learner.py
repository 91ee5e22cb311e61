"""Support examples of every learner by the methods that it has; training tasks, some at a time.

Axes: T tasks, Q queries, S support examples, M members.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metalearn.attribution import (
    learner_scores,
    learner_support_scores,
    leave_one_support_out,
    rank_correlations,
    task_scores,
)
from metalearn.attribution.scored_learner import ADAPTATION, LEFT_OUT
from metalearn.attribution.trained_tasks import scored_trained_tasks, task_pictures
from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.trainers import LEARNERS, MetaLearner
from metalearn.types import TaskBatch
from tests.contracts.test_learners import TASKS, doubled, learner, network, network_of

close = torch.testing.assert_close


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_has_a_method(name: str) -> None:
    one, tasks = learner(name, network(name, 0), "vmap"), doubled(name, "train")
    found = learner_scores(one, tasks)
    through = isinstance(one, MetaLearner)
    assert list(found.by_member) == ([ADAPTATION] if through else []) + [LEFT_OUT]
    assert set(found.seconds) == set(found.by_member)
    close(found.scores[LEFT_OUT], leave_one_support_out(one, tasks))
    if through:
        close(found.scores[ADAPTATION], learner_support_scores(one, tasks))
        assert found.agreement is not None and found.reasons == {}
    else:
        assert found.agreement is None
        assert "leave_one_support_out takes every learner" in found.reasons[ADAPTATION]
    close(found.losses[0].mean(1), one.score(tasks).losses[:, -1])
    assert found.disagreement == {}


@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_members_are_scored_each_and_where_they_disagree_is_known(name: str) -> None:
    tasks = doubled(name, "train")
    together = learner(name, network_of(name, 3), "auto")
    found = learner_scores(together, tasks, members=[2, 0])
    alone = [learner(name, together.network.copies()[m], "auto") for m in (2, 0)]
    expected = torch.stack([leave_one_support_out(one, tasks) for one in alone])
    close(found.by_member[LEFT_OUT], expected)
    close(found.scores[LEFT_OUT], expected.mean(0))
    one, other = (part - part.mean(-1, keepdim=True) for part in expected)
    wanted = 1 - torch.cosine_similarity(one, other, dim=-1)
    close(found.disagreement[LEFT_OUT], wanted)
    with pytest.raises(SettingError, match="members=3: numbers from 0 to 2"):
        learner_scores(together, tasks, members=[3])


def test_the_check_is_a_rank_correlation_and_can_be_left_out() -> None:
    one, tasks = learner("maml", network("maml", 0), "auto"), doubled("maml", "train")
    found = learner_scores(one, tasks)
    each = rank_correlations(
        found.scores[ADAPTATION].flatten(0, 1), found.scores[LEFT_OUT].flatten(0, 1)
    )
    assert found.agreement is not None
    assert found.agreement.mean == pytest.approx(float(each.reshape(3, -1).nanmean(1).mean()))
    alone = learner_scores(one, tasks, check=False)
    assert list(alone.by_member) == [ADAPTATION] and alone.agreement is None
    headless = learner("protonet", network("protonet", 0), "auto")
    assert list(learner_scores(headless, tasks, check=False).by_member) == [LEFT_OUT]


def padded(tasks: TaskBatch, support: int, query: int) -> TaskBatch:
    """The same tasks with so many samples of padding before the last of each set."""

    def more(batch: Any, count: int) -> Any:
        x, y = batch
        x = torch.cat([x[:, :-1], x[:, :1].repeat_interleave(count, 1), x[:, -1:]], 1)
        return x, torch.cat(
            [y[:, :-1], torch.full_like(y[:, :1], -100).expand(-1, count), y[:, -1:]], 1
        )

    return TaskBatch(more(tasks.support, support), more(tasks.query, query))


@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_padding_has_no_part_in_what_is_made_of_scores(name: str) -> None:
    tasks, many = doubled(name, "train"), learner(name, network_of(name, 2), "auto")
    plain, found = learner_scores(many, tasks), learner_scores(many, padded(tasks, 5, 2))
    real = found.real_queries
    assert real.sum(1).tolist() == [plain.losses.shape[2]] * 3 and not real.all()
    for method, values in plain.disagreement.items():
        close(found.disagreement[method][real].reshape(values.shape), values)
        assert found.disagreement[method][~real].isnan().all()
    if name == "maml":
        assert plain.agreement is not None and found.agreement is not None
        assert found.agreement.mean == pytest.approx(plain.agreement.mean, abs=1e-9)


def test_scores_that_are_not_finite_are_left_out_of_the_check() -> None:
    one, tasks = learner("maml", network("maml", 0), "auto"), doubled("maml", "train")
    found = learner_scores(one, tasks)
    found.by_member[ADAPTATION][:, 0] = torch.nan
    found.by_member[LEFT_OUT][:, 1] = torch.inf
    agreement = found.agreement
    assert agreement is not None and -1 <= agreement.mean <= 1
    assert agreement.interval95 != agreement.interval95  # of one task that is left
    found.by_member[LEFT_OUT][:, 2] = torch.nan
    assert found.agreement is None


def test_what_cannot_be_has_its_reason() -> None:
    single = tree_map(lambda x: x[:, ::2], doubled("protonet", "train").support)
    tasks = TaskBatch(single, doubled("protonet", "train").query)
    found = learner_scores(learner("protonet", network("protonet", 0), "auto"), tasks)
    assert found.by_member == {} and set(found.reasons) == {ADAPTATION, LEFT_OUT}
    assert "needs two of every class" in found.reasons[LEFT_OUT]


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_training_tasks_are_drawn_some_at_a_time(at_once: int) -> None:
    one = learner("maml", network("maml", 0), "auto")
    targets, seen = doubled("maml", "test"), [0, 3, 4, 9, 11]

    def sample(numbers: Any) -> TaskBatch:
        assert len(numbers) <= at_once
        drawn = TASKS.sample("train", numbers)
        found: TaskBatch = tree_map(lambda x: x.double() if x.is_floating_point() else x, drawn)
        return found

    other = {name: 1.1 * value for name, value in one.params.items()}
    found = scored_trained_tasks(
        sample, seen, targets, gradients_fn=one.task_gradients,
        checkpoints=[[one.params, other], [other, one.params]], learning_rates=[0.1, 0.2],
        names=lambda number: ("a", f"b{number}"), at_once=at_once,
    )  # fmt: skip
    whole = tree_map(
        lambda x: x.double() if x.is_floating_point() else x, TASKS.sample("train", seen)
    )
    each = [
        task_scores(one.task_gradients, states, targets, whole, learning_rates=[0.1, 0.2])
        for states in ([one.params, other], [other, one.params])
    ]
    close(found.scores, torch.stack(each).mean(0))
    assert found.numbers == seen and found.names is not None and found.names[1] == "a, b3"
    assert found.pictures is not None and len(found.pictures) == 5


def test_pictures_of_training_tasks_are_as_large_where_classes_are_fewer() -> None:
    one, targets = learner("maml", network("maml", 0), "auto"), doubled("maml", "test")

    def sample(numbers: Any) -> TaskBatch:
        (x, y), (asked, wanted) = doubled("maml", "train")[:2]
        if numbers[0]:  # the last class is not there
            y, wanted = (torch.where(labels == 2, -100, labels) for labels in (y, wanted))
        return TaskBatch((x[:1], y[:1]), (asked[:1], wanted[:1]))

    found = scored_trained_tasks(
        sample, [0, 1], targets, gradients_fn=one.task_gradients, checkpoints=[[one.params]],
        learning_rates=[0.1], names=None, at_once=1,
    )  # fmt: skip
    whole, fewer = (task_pictures(sample([n])) for n in (0, 1))
    assert found.pictures is not None and whole is not None and fewer is not None
    assert torch.equal(found.pictures[0], whole[0])
    for columns in (slice(4), slice(5, 9)):  # of both classes that are there, side by side
        assert torch.equal(found.pictures[1, :, :4, columns], fewer[0, :, :4, columns])
    assert (found.pictures[1, :, 4:] == found.pictures.max()).all()


def test_a_picture_of_a_task_has_an_example_of_each_class() -> None:
    tasks = TASKS.sample("train", [0, 1])
    pictures = task_pictures(tasks)
    assert pictures is not None
    x, y = tasks.support
    _, channels, height, width = x[0].shape
    assert pictures.shape == (2, channels, 2 * height + 1, 2 * width + 1)
    for label, (top, left) in enumerate([(0, 0), (0, width + 1), (height + 1, 0)]):
        wanted = x[1][(y[1] == label).nonzero()[0, 0]]
        assert torch.equal(pictures[1, :, top : top + height, left : left + width], wanted)
    assert task_pictures(doubled("cnp", "train")) is None


def test_a_class_that_a_task_does_not_have_is_blank() -> None:
    x, y = TASKS.sample("train", [0, 1]).support
    fewer = TaskBatch((x, torch.where((y == 1) & (torch.arange(2) == 1)[:, None], -100, y)), ())
    pictures, whole = (task_pictures(found) for found in (fewer, TaskBatch((x, y), ())))
    assert pictures is not None and whole is not None
    width = x.shape[-1]
    assert torch.equal(pictures[0], whole[0])
    assert (pictures[1, :, :width, width + 1 :] == pictures.max()).all()
    assert torch.equal(pictures[1, :, :, :width], whole[1, :, :, :width])
