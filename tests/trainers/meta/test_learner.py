"""A learner's scores against plain torch, one task at a time; its settings; intervals.

Axes: T tasks, K inner steps, N query samples, C classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import MAML, MetaLearner, TaskScores, mean_interval
from metalearn.types import TaskBatch
from tests.support.builders import assert_same, labelled, patterns

WAY, SHOT, QUERY = 3, 2, 2


def batch_norm_net() -> nn.Module:
    """Normalises with the batch at hand."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, WAY),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(0.5 * torch.randn(value.shape, generator=generator))
    return net


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP((1, 4, 4), WAY, hidden=(8,)),
    "batch_norm": batch_norm_net,
}
nets = pytest.mark.parametrize("net", NETS)


def episodes(count: int = 3) -> TaskBatch:
    return FewShotTasks(patterns(), way=WAY, shot=SHOT, query=QUERY).sample("train", range(count))


def sinusoids(count: int = 3) -> TaskBatch:
    return SinusoidTasks(shot=4, query=5).sample("train", range(count))


def of_task(tasks: TaskBatch, row: int) -> tuple[Any, Any]:
    return tuple(tuple(leaf[row] for leaf in part) for part in tasks)  # type: ignore[return-value]


def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets) if targets.is_floating_point() else F.cross_entropy(
        outputs, targets
    )  # fmt: skip


def plain_adapt(
    module: nn.Module, support: Any, lr: float, steps: int, frozen: tuple[str, ...] = ()
) -> nn.Module:
    """A copy trained by torch.optim.SGD: what adaptation has to equal."""
    copied = copy.deepcopy(module)
    moving = [p for name, p in copied.named_parameters() if name not in frozen]
    optimizer = torch.optim.SGD(moving, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        criterion(copied(support[0]), support[1]).backward()
        optimizer.step()
    return copied


def assert_scores(one: TaskScores, other: TaskScores) -> None:
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-4, atol=1e-5)
    if one.accuracies is None:
        assert other.accuracies is None
        torch.testing.assert_close(one.predictions, other.predictions, rtol=1e-4, atol=1e-5)
    else:
        assert other.accuracies is not None
        torch.testing.assert_close(one.accuracies, other.accuracies)
        assert torch.equal(one.predictions, other.predictions)


# --- score --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_shapes_of_a_classification(steps: int) -> None:
    learner = MetaLearner(NETS["mlp"](), MAML(eval_steps=2))
    scores = learner.score(episodes(), steps=steps)
    assert scores.losses.shape == (3, steps + 1)
    assert scores.accuracies is not None and scores.accuracies.shape == (3, steps + 1)
    assert scores.predictions.shape == (3, steps + 1, WAY * QUERY)
    assert scores.predictions.dtype == torch.int64
    assert learner.score(episodes()).losses.shape == (3, 3)
    assert not scores.losses.requires_grad


def test_shapes_of_a_regression() -> None:
    learner = MetaLearner(MLP((1,), 1, hidden=(8,)), MAML(inner_lr=0.01), kind="regression")
    scores = learner.score(sinusoids(), steps=2)
    assert scores.losses.shape == (3, 3)
    assert scores.accuracies is None
    assert scores.predictions.shape == (3, 3, 5, 1)


@nets
def test_every_step_equals_plain_training(net: str) -> None:
    tasks, learner = episodes(), MetaLearner(NETS[net](), MAML(inner_lr=0.1))
    scores = learner.score(tasks, steps=3)
    assert scores.accuracies is not None
    for row in range(3):
        support, (x, y) = of_task(tasks, row)
        for k in range(4):
            outputs = plain_adapt(learner.module, support, 0.1, k)(x)
            torch.testing.assert_close(
                scores.losses[row, k], criterion(outputs, y).detach(), rtol=1e-4, atol=1e-5
            )
            assert torch.equal(scores.predictions[row, k], outputs.argmax(-1))
            right = (outputs.argmax(-1) == y).float().mean()
            torch.testing.assert_close(scores.accuracies[row, k], right)


def test_every_step_of_a_regression_equals_plain_training() -> None:
    tasks = sinusoids()
    learner = MetaLearner(MLP((1,), 1, hidden=(8,)), MAML(inner_lr=0.01), kind="regression")
    scores = learner.score(tasks, steps=2)
    for row in range(3):
        support, (x, y) = of_task(tasks, row)
        for k in range(3):
            outputs = plain_adapt(learner.module, support, 0.01, k)(x).detach()
            torch.testing.assert_close(scores.losses[row, k], criterion(outputs, y))
            torch.testing.assert_close(scores.predictions[row, k], outputs)


@nets
def test_before_any_step_the_module_is_as_it_is(net: str) -> None:
    learner, tasks = MetaLearner(NETS[net]()), episodes()
    for row, loss in enumerate(learner.score(tasks, steps=0).losses[:, 0]):
        _, (x, y) = of_task(tasks, row)
        torch.testing.assert_close(loss, F.cross_entropy(learner.module(x), y).detach())


@nets
@pytest.mark.parametrize("inner", ["sgd", "adam"])
@pytest.mark.parametrize("inductive", [False, True])
def test_a_loop_over_tasks_gives_the_same(net: str, inner: Any, inductive: bool) -> None:
    module, settings = NETS[net](), {"inner_lr": 0.05, "inner_optimizer": inner}
    scored = [
        MetaLearner(module, MAML(**settings, **way)).score(episodes(), inductive=inductive)
        for way in ({}, {"engine": "loop"}, {"chunk_size": 2})
    ]
    assert_scores(scored[0], scored[1])
    assert_scores(scored[0], scored[2])


def test_scores_do_not_depend_on_the_other_tasks() -> None:
    learner, tasks = MetaLearner(batch_norm_net()), episodes(3)
    alone = learner.score(TaskBatch(*([leaf[1:2] for leaf in part] for part in tasks)))
    together = learner.score(tasks)
    torch.testing.assert_close(alone.losses[0], together.losses[1], rtol=1e-4, atol=1e-5)


def test_scoring_leaves_the_learner_as_it_was() -> None:
    learner = MetaLearner(batch_norm_net())
    before = copy.deepcopy(learner.module.state_dict())
    learner.score(episodes(), inductive=True)
    assert_same(learner.module.state_dict(), before)
    assert all(p.grad is None for p in learner.module.parameters())


def test_a_learner_follows_its_module() -> None:
    learner, tasks = MetaLearner(NETS["mlp"]()), episodes()
    before = learner.score(tasks).losses
    with torch.no_grad():
        for value in learner.module.parameters():
            value.mul_(1.5)
    after = learner.score(tasks).losses
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, MetaLearner(learner.module).score(tasks).losses)


# --- transductive and inductive -----------------------------------------------------------------


def test_both_are_one_without_batch_statistics() -> None:
    learner, tasks = MetaLearner(NETS["mlp"]()), episodes()
    assert_scores(learner.score(tasks), learner.score(tasks, inductive=True))


def test_both_differ_with_batch_statistics() -> None:
    learner, tasks = MetaLearner(batch_norm_net()), episodes()
    one, other = learner.score(tasks).losses, learner.score(tasks, inductive=True).losses
    assert ((one - other).abs() > 1e-3).all()


def _values(query: int = 8) -> TaskBatch:
    """Regression on pictures: predictions are raw outputs, in which a small difference shows."""
    tasks = FewShotTasks(patterns(each=10), way=WAY, shot=SHOT, query=query)
    batch = tasks.sample("train", range(2))
    return TaskBatch(*((x, F.one_hot(y, WAY).float()) for x, y in batch))


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_alone_means_that_other_queries_do_not_count(engine: str) -> None:
    tasks = _values()
    queries = tasks.query[0].clone()
    queries[:, 1:] = 1 - queries[:, 1:]
    other = TaskBatch(tasks.support, (queries, tasks.query[1]))

    def first(which: TaskBatch, inductive: bool) -> Tensor:
        maml = MAML(inner_lr=0.1, engine=engine)
        learner = MetaLearner(batch_norm_net(), maml, kind="regression")
        return learner.score(which, inductive=inductive).predictions[:, :, 0]

    torch.testing.assert_close(first(tasks, True), first(other, True), rtol=1e-5, atol=1e-6)
    assert (first(tasks, False) - first(other, False)).abs().max() > 1e-2


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_alone_means_beside_the_support_set(engine: str) -> None:
    tasks, maml = _values(), MAML(inner_lr=0.1, engine=engine)
    learner = MetaLearner(batch_norm_net(), maml, kind="regression")
    scores = learner.score(tasks, steps=2, inductive=True)
    assert scores.predictions.shape == (2, 3, 24, WAY)
    for row in range(2):
        support, (x, y) = of_task(tasks, row)
        for k in range(3):
            adapted = plain_adapt(learner.module, support, 0.1, k)
            alone = torch.stack([adapted(torch.cat([support[0], one[None]]))[-1] for one in x])
            torch.testing.assert_close(
                scores.predictions[row, k], alone.detach(), rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(
                scores.losses[row, k], F.mse_loss(alone, y).detach(), rtol=1e-4, atol=1e-5
            )


def test_a_single_query_of_a_single_position_can_be_scored_alone() -> None:
    tasks = FewShotTasks(labelled(shape=(1, 16, 16)), way=2, shot=1, query=1)
    learner = MetaLearner(Conv4((1, 16, 16), 2, filters=2))
    assert learner.score(tasks.sample("train", [0]), inductive=True).losses.isfinite().all()


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner_lr": 0.0}, r"^inner_lr=0\.0: a finite number above 0 is needed"),
        ({"inner_lr": -0.1}, r"^inner_lr=-0\.1: a finite number above 0 is needed"),
        ({"inner_lr": math.inf}, "^inner_lr=inf: a finite number above 0 is needed"),
        ({"inner_lr": math.nan}, "^inner_lr=nan: a finite number above 0 is needed"),
        ({"inner_steps": -1}, "^inner_steps=-1: a whole number of at least 0 is needed"),
        ({"inner_steps": True}, "^inner_steps=True: a whole number of at least 0 is needed"),
        ({"eval_steps": 2.0}, r"^eval_steps=2\.0: a whole number of at least 0 is needed"),
        ({"chunk_size": 0}, "^chunk_size=0: a whole number of at least 1 is needed"),
        (
            {"inner_optimizer": "rprop"},
            "^inner_optimizer='rprop': one of sgd, adam, adamw is needed",
        ),
        ({"inner_optimizer": None}, "^inner_optimizer=None: one of sgd, adam, adamw is needed"),
        ({"norm": "rms"}, "^norm='rms': one of batch_stats, running, group, layer is needed"),
    ],
)
def test_settings_out_of_range(settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MAML(**settings)


def test_a_frozen_pattern_must_match() -> None:
    with pytest.raises(SettingError, match=r"^maml\.frozen='blocks\.\*': .*1\.weight"):
        MetaLearner(NETS["mlp"](), MAML(frozen="blocks.*"))


def test_an_unknown_kind() -> None:
    message = "^kind='ranking': classification or regression is needed"
    with pytest.raises(SettingError, match=message):
        MetaLearner(NETS["mlp"](), kind="ranking")  # type: ignore[arg-type]


# --- mean_interval ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (2,), (50, 4), (5, 2, 3)])
def test_interval_of_many_tasks(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, half = mean_interval(values)
    array = values.numpy()
    np.testing.assert_allclose(mean.numpy(), array.mean(0), rtol=1e-12)
    expected = 1.96 * array.std(0, ddof=1) / math.sqrt(shape[0])
    np.testing.assert_allclose(half.numpy(), expected, rtol=1e-12)


def test_interval_by_hand() -> None:
    mean, half = mean_interval(torch.tensor([1.0, 3.0]))
    assert mean.item() == 2
    assert half.item() == pytest.approx(1.96)  # s = √2, √2 / √2 = 1


def test_interval_of_one_task_is_the_task() -> None:
    mean, half = mean_interval(torch.tensor([[0.25, 0.75]]))
    assert mean.tolist() == [0.25, 0.75]
    assert half.tolist() == [0.0, 0.0]
