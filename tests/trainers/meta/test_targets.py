"""Targets of tasks: padding counts nowhere, probabilities are taken, what does not fit is refused.

Axes: T tasks, N samples, C classes, M members, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.evaluation import expected_calibration_error
from metalearn.models import Ensemble
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import MAML, MemberLearner, MetaLearner, MetaTrainer, mean_interval
from metalearn.trainers.meta.diagnostics import shot_units
from metalearn.trainers.meta.scores import joined_scores
from metalearn.types import TaskBatch
from tests.support.builders import patterns

C, FEATURES = 3, 4
engines = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, C)).double()


def learner(engine: Any = "auto") -> MetaLearner:
    return MetaLearner(net(), MAML(inner_lr=0.3, inner_steps=2, eval_steps=2, engine=engine))


def member_learner(engine: Any = "auto") -> MemberLearner:
    model = Ensemble.from_modules([net(seed) for seed in range(3)])
    return MemberLearner(model, MAML(inner_lr=0.3, inner_steps=2, eval_steps=2, engine=engine))


def draw(count: int, samples: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(samples)
    x = torch.randn(count, samples, FEATURES, dtype=torch.float64, generator=draws)
    return x, torch.randint(C, (count, samples), generator=draws)


def padded() -> tuple[TaskBatch, list[TaskBatch]]:
    """Three tasks with sets of different sizes, and each of them alone without its padding."""
    (sx, sy), (qx, qy) = draw(3, 6), draw(3, 8)
    for row in range(3):
        sy[row, 6 - row :] = -100
        qy[row, : 2 * row] = -100
    alone = []
    for row in range(3):
        s, q = sy[row] >= 0, qy[row] >= 0
        alone.append(
            TaskBatch((sx[row, s][None], sy[row, s][None]), (qx[row, q][None], qy[row, q][None]))
        )
    return TaskBatch((sx, sy), (qx, qy)), alone


@engines
@pytest.mark.parametrize("make", [learner, member_learner])
def test_padding_counts_nowhere(make: Callable[[Any], MetaLearner], engine: Any) -> None:
    model = make(engine)
    tasks, alone = padded()
    found, rows = model.meta_gradient(tasks), [model.meta_gradient(task) for task in alone]
    for name, value in found.grads.items():
        expected = torch.stack([row.grads[name] for row in rows]).mean(0)
        torch.testing.assert_close(value, expected, msg=name)
    for inductive in (False, True):
        scores = model.score(tasks, inductive=inductive)
        for row, task in enumerate(alone):
            wanted = model.score(task, inductive=inductive)
            torch.testing.assert_close(scores.losses[row], wanted.losses[0])
            torch.testing.assert_close(scores.accuracies[row], wanted.accuracies[0])  # type: ignore[index]
            kept = tasks.query[1][row] >= 0
            assert torch.equal(scores.predictions[row][:, kept], wanted.predictions[0])
            if scores.members is not None:
                assert wanted.members is not None
                for one, other in zip(scores.members, wanted.members):
                    torch.testing.assert_close(one[row], other[0])


def test_padded_scores_against_plain_torch() -> None:
    tasks, _ = padded()
    scores = learner().score(tasks, steps=0)
    for row in range(3):
        logits, y = net()(tasks.query[0][row]), tasks.query[1][row]
        real = y >= 0
        torch.testing.assert_close(scores.losses[row, 0], F.cross_entropy(logits, y).detach())
        right = (logits.argmax(-1) == y)[real].double().mean()
        torch.testing.assert_close(scores.accuracies[row, 0], right)  # type: ignore[index]
    members = member_learner().score(tasks, steps=0).members
    assert members is not None and members.calibration is not None
    y = tasks.query[1][1]
    p = torch.stack([net(seed)(tasks.query[0][1]).softmax(-1) for seed in range(3)]).mean(0)
    hits = (p.argmax(-1) == y)[y >= 0]
    expected = expected_calibration_error(p.amax(-1)[y >= 0].detach(), hits)
    torch.testing.assert_close(members.calibration[1], expected)


def test_gradients_of_padding_shots_are_zero() -> None:
    tasks, _ = padded()
    (block,) = shot_units(learner(), tasks).blocks()
    grads = [torch.cat(parts, 1) for parts in zip(*(chunk.values() for chunk in block))]
    padding = tasks.support[1] < 0
    for grad in grads:
        assert not grad[padding].any() and grad[~padding].any()


@engines
@pytest.mark.parametrize("make", [learner, member_learner])
def test_certain_probabilities_are_labels(make: Callable[[Any], MetaLearner], engine: Any) -> None:
    model = make(engine)
    hard = TaskBatch(draw(2, 6), draw(2, 8))
    soft = TaskBatch(*((x, F.one_hot(y, C).double()) for x, y in hard))
    torch.testing.assert_close(model.meta_gradient(soft).grads, model.meta_gradient(hard).grads)
    for one, other in zip(model.score(soft), model.score(hard)):
        torch.testing.assert_close(one, other)
    x, y = hard.support[0][0], hard.support[1][0]
    adapted = model.adapt((x, F.one_hot(y, C).double()))
    torch.testing.assert_close(adapted(x), model.adapt((x, y))(x))


@pytest.mark.parametrize("make", [learner, member_learner])
def test_accuracy_of_probabilities_is_of_the_argmax(make: Callable[[], MetaLearner]) -> None:
    tasks = TaskBatch(draw(2, 6), draw(2, 8))
    q = torch.softmax(torch.randn(2, 8, C, dtype=torch.float64), -1)
    scores = make().score(tasks._replace(query=(tasks.query[0], q)))
    right = (scores.predictions == q.argmax(-1)[:, None]).double().mean(-1)
    torch.testing.assert_close(scores.accuracies, right)
    if scores.members is None:
        logits = net()(tasks.query[0][0])
        torch.testing.assert_close(scores.losses[0, 0], F.cross_entropy(logits, q[0]).detach())


def _classes(change: Callable[[Tensor], Any]) -> TaskBatch:
    (x, y), query = draw(2, 6), draw(2, 8)
    return TaskBatch((x, change(y)), query)


def _with(value: int) -> Callable[[Tensor], Tensor]:
    return lambda y: torch.where(torch.arange(6) == 2, value, y)


BAD: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "too large": (_with(7), r"targets of the support set=7: a class in 0..2 is needed, or -100"),
    "one-based": (lambda y: torch.where(y == 0, 3, y), r"targets of the support set=3: a class in"),
    "negative": (_with(-1), r"targets of the support set=-1: a class in 0..2"),
    "padding alone": (
        lambda y: torch.cat([torch.full_like(y[:1], -100), y[1:]]),
        r"targets of the support set='-100 alone': every set needs a target",
    ),
    "floats": (lambda y: y.double(), r"targets='torch.float64 \[6\]': int64 class indices \[6\]"),
    "int32": (lambda y: y.int(), r"targets='torch.int32 \[6\]': int64 class indices \[6\] or prob"),
    "bool": (lambda y: y > 0, r"targets='torch.bool \[6\]'"),
    "a column": (lambda y: y[..., None], r"targets='torch.int64 \[6, 1\]'"),
    "whole numbers in a matrix": (lambda y: F.one_hot(y, C), r"targets='torch.int64 \[6, 3\]'"),
    "other classes": (lambda y: F.one_hot(y, 5).double(), r"targets='torch.float64 \[6, 5\]'"),
    "no sum of 1": (lambda y: 2.0 * F.one_hot(y, C), r"support set=\[.*: probabilities that add"),
    "below 0": (
        lambda y: torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64).expand(2, 6, 3),
        r"support set=\[1.5, -0.5, 0.0\]: probabilities",
    ),
}


@pytest.mark.parametrize("engine", ["auto", "batched", "vmap", "loop"])
@pytest.mark.parametrize("make", [learner, member_learner])
@pytest.mark.parametrize("bad", BAD)
def test_classes_that_do_not_fit(bad: str, make: Callable[[Any], MetaLearner], engine: Any) -> None:
    change, message = BAD[bad]
    tasks = _classes(change)
    swapped = TaskBatch(tasks.query, tasks.support)
    alone = tuple(part[0] for part in tasks.support)
    model = make(engine)
    for run in (
        lambda: make(engine).meta_gradient(tasks),
        lambda: model.meta_gradient(tasks),
        lambda: model.settle(tasks, 2),
        lambda: model.score(tasks),
        lambda: model.score(tasks, inductive=True),
        lambda: model.adapt(alone),
    ):
        with pytest.raises(SettingError, match=message):
            run()
    with pytest.raises(SettingError, match=message.replace("support", "query")):
        model.score(swapped)


@pytest.mark.parametrize("shape", [(5,), (5, 1, 1), (1, 5), (5, 2), "whole", "complex"])
@pytest.mark.parametrize("engine", ["auto", "batched", "vmap", "loop"])
def test_values_that_do_not_fit(shape: Any, engine: Any) -> None:
    model = MetaLearner(nn.Linear(1, 1), MAML(engine=engine), kind="regression")
    kinds = {"whole": torch.int64, "complex": torch.complex64}
    y = torch.ones((2, 5, 1) if shape in kinds else (2, *shape), dtype=kinds.get(shape))
    tasks = TaskBatch((torch.randn(2, 5, 1), y), (torch.randn(2, 5, 1), y))
    message = r"^targets='torch.*': floating-point \[5, 1\] is needed, the shape of the outputs"
    for run in (
        lambda: model.meta_gradient(tasks),
        lambda: model.settle(tasks, 2),
        lambda: model.score(tasks),
        lambda: model.adapt((tasks.support[0][0], y[0])),
    ):
        with pytest.raises(SettingError, match=message):
            run()


class _Changed:
    """Tasks with other targets."""

    def __init__(self, tasks: Any, change: Callable[[Tensor], Tensor], *, query: bool) -> None:
        self.tasks, self.change, self.query = tasks, change, query
        self.kind, self.input_shape, self.outputs = tasks.kind, tasks.input_shape, tasks.outputs

    def sample(self, split: Any, indices: Any, *, device: Any = "cpu") -> TaskBatch:
        support, query = self.tasks.sample(split, indices, device=device)
        if self.query:
            return TaskBatch(support, (query[0], self.change(query[1])))
        return TaskBatch((support[0], self.change(support[1])), query)


@pytest.mark.parametrize("query", [False, True])
def test_a_trainer_looks_at_its_tasks_before_it_trains(query: bool) -> None:
    tasks = _Changed(SinusoidTasks(), lambda y: y[..., 0], query=query)
    with pytest.raises(SettingError, match=r"^targets='torch.float32 .*shape of the outputs"):
        MetaTrainer(nn.Linear(1, 1), tasks, steps=1, meta_batch=2, validation_tasks=2)
    few_shot = FewShotTasks(patterns(), way=3, shot=1, query=2)
    shifted = _Changed(few_shot, lambda y: y + 1, query=query)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, few_shot.outputs))
    with pytest.raises(SettingError, match=r"^targets of the .* set=\d: a class in"):
        MetaTrainer(model, shifted, steps=1, meta_batch=2, validation_tasks=2)


def test_a_bad_label_in_a_later_batch_is_found() -> None:
    model = learner()
    model.meta_gradient(TaskBatch(draw(2, 6), draw(2, 8)))
    with pytest.raises(SettingError, match="targets of the support set=7"):
        model.meta_gradient(_classes(_with(7)))


def test_nothing_to_take_a_mean_of() -> None:
    model = learner()
    tasks = TaskBatch(draw(2, 6), draw(2, 8))
    none = TaskBatch(*((x[:0], y[:0]) for x, y in tasks))
    bare = tasks._replace(support=tuple(part[:, :0] for part in tasks.support))
    for run, message in (
        (lambda: model.meta_gradient(none), r"^tasks=\[0\]: every leaf"),
        (lambda: model.score(none), r"^tasks=\[0\]: every leaf"),
        (lambda: model.score(bare), r"^support=\[\(2, 0, 4\).*it needs samples"),
        (lambda: model.adapt(tuple(part[0, :0] for part in tasks.support)), "^support=.*needs sam"),
        (
            lambda: model.adapt(tasks.support[0][0]),
            "^support=.Tensor.: a pair .inputs, targets.",
        ),
        (lambda: mean_interval(torch.zeros(0, 3)), r"^values=\[0, 3\]: at least one task"),
        (lambda: joined_scores([]), "^parts=0: scores of at least one batch"),
    ):
        with pytest.raises(SettingError, match=message):
            run()
