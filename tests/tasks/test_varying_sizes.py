"""Tasks whose sizes vary: what is padding, what stays as it was, which learners take them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metalearn.data import LabelledImages
from metalearn.data.feature_table import FeatureTable
from metalearn.errors import SettingError
from metalearn.models import MLP
from metalearn.tasks import FewShotTasks
from metalearn.trainers import (
    MAML,
    BaselinePlusPlus,
    MetaOptNet,
    MetaTrainer,
    ProtoMAML,
    ProtoNet,
)
from metalearn.trainers.meta.feature_learner import FeatureLearner
from metalearn.trainers.meta.uncertainty import ConformalSets
from metalearn.types import Split, TaskBatch
from tests.support.builders import labelled

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MOST: dict[str, Any] = {"way": 4, "shot": 3, "query": 2}
LEAST: dict[str, Any] = {"way": 2, "shot": 1, "query": 1}
FOUR_A_SPLIT: Any = {"train": (0, 1, 2, 3), "validation": (4, 5, 6, 7), "test": (8, 9, 10, 11)}


def pictures(*counts: int) -> LabelledImages:
    """Twelve classes, four a split."""
    return labelled(counts or (6,) * 12, splits=FOUR_A_SPLIT)


def tasks(least: Any = LEAST, data: LabelledImages | None = None, **given: Any) -> FewShotTasks:
    return FewShotTasks(data or pictures(), least=least, **MOST | given)


def counts(batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Real samples of each class of each task, ``[T, W]``, of support and query sets."""
    classes = torch.arange(MOST["way"])
    found = [(y[..., None] == classes).sum(1) for y in (batch.support[1], batch.query[1])]
    return found[0], found[1]


@pytest.mark.parametrize("split", SPLITS)
def test_every_size_comes_and_no_other(split: Split) -> None:
    support, query = counts(tasks().sample(split, range(200)))
    ways = (support > 0).sum(1)
    assert set(ways.tolist()) == {2, 3, 4}
    assert torch.equal(support > 0, query > 0)
    assert torch.equal(support > 0, torch.arange(4) < ways[:, None]), "the first classes are there"
    assert set(support[support > 0].tolist()) == {1, 2, 3}
    assert set(query[query > 0].tolist()) == {1, 2}


def test_what_is_there_is_what_a_task_without_padding_has() -> None:
    varied, whole = (t.sample("train", range(30)) for t in (tasks(), tasks(None)))
    for (x, y), (every_x, every_y) in zip(
        (varied.support, varied.query), (whole.support, whole.query)
    ):
        real = y != -100
        assert 0 < int(real.sum()) < real.numel()
        assert torch.equal(y[real], every_y[real]) and torch.equal(x[real], every_x[real])
    first = varied.support[0][:, :1]
    padded = varied.support[1] == -100
    assert torch.equal(varied.support[0][padded], first.expand_as(varied.support[0])[padded])
    assert varied.class_ids is not None and torch.equal(varied.class_ids, whole.class_ids)


def test_the_address_is_all_that_counts() -> None:
    one, other = tasks().sample("test", [7, 2]), tasks().sample("test", [2])
    assert torch.equal(one.support[1][1], other.support[1][0])
    assert torch.equal(one.query[0][1], other.query[0][0])
    assert not torch.equal(tasks(seed=1).sample("test", [2]).support[1], other.support[1])


def test_names_are_those_of_the_classes_that_are_there() -> None:
    source = tasks()
    support, _ = counts(source.sample("train", range(20)))
    for index, row in enumerate(support):
        assert len(source.class_names("train", index)) == int((row > 0).sum())


def test_sizes_by_split_and_those_that_do_not_vary() -> None:
    source = tasks({"shot": {"train": 3, "test": 1}, "way": None})
    support, query = counts(source.sample("train", range(20)))
    assert (support == 3).all() and (query == 2).all()
    support, query = counts(source.sample("test", range(40)))
    assert set(support.unique().tolist()) == {1, 2, 3} and (query == 2).all()


def test_classes_may_have_fewer_pictures_than_the_most() -> None:
    data = pictures(*[2, 3, 4, 9] * 3)
    source = tasks({"shot": 1, "query": 1}, data)
    batch = source.sample("train", range(100))
    support, query = counts(batch)
    there = torch.tensor([2, 3, 4, 9])[batch.class_ids]  # of class c of the training split
    assert (support + query <= there).all() and (support > 0).all() and (query > 0).all()
    assert (support + query == there)[there == 2].all()
    assert set(support[there == 9].tolist()) == {1, 2, 3}
    for index in range(100):
        (x, y), (qx, qy) = ((p[0][index], p[1][index]) for p in (batch.support, batch.query))
        every = torch.cat([x[y >= 0], qx[qy >= 0]]).flatten(1)
        assert len(every.unique(dim=0)) == len(every), "no picture stands twice in a task"
    with pytest.raises(SettingError, match=r"shot \+ query=5: class class0 has 2 pictures"):
        tasks(None, data)
    with pytest.raises(SettingError, match=r"shot \+ query=3: class class0 has 2 pictures"):
        tasks({"shot": 2, "query": 1}, data)


@pytest.mark.parametrize(
    ("least", "sentence"),
    [
        ({"way": 1}, "least.way=1: a whole number of at least 2 is needed"),
        ({"way": 5}, "least.way=5: at most 4, the way of the train split"),
        ({"shot": 0}, "least.shot=0: a whole number of at least 1 is needed"),
        ({"query": {"train": 1}}, "least.query={'train': 1}: a number for the validation split"),
        ({"query": {"train": 1, "test": 3}}, "least.query=3: at most 2, the query of the valida"),
        ({"shots": 1}, "least.shots='shots': known are way, shot, query; did you mean shot?"),
    ],
)
def test_sizes_that_cannot_be(least: Any, sentence: str) -> None:
    with pytest.raises(SettingError) as error:
        tasks(least)
    assert sentence in str(error.value)


# --- learners ------------------------------------------------------------------------------------


def trainer(least: Any, **given: Any) -> MetaTrainer:
    source = tasks(least)
    few: dict[str, Any] = {"steps": 2, "meta_batch": 3, "eval_every": 2, "validation_tasks": 2}
    model = getattr(given.get("learner"), "module", None)
    model = model or MLP(source.input_shape, 4, hidden=(6,))
    return MetaTrainer(model, source, progress=False, **few | given)


def shortened(batch: TaskBatch, task: int) -> TaskBatch:
    """One task without its padding."""
    pairs = []
    for x, y in (batch.support, batch.query):
        real = y[task] != -100
        pairs.append((x[task : task + 1, real], y[task : task + 1, real]))
    return TaskBatch(*pairs)


def gradient_alone(made: MetaTrainer, batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over tasks, each without its padding, of losses and of the gradient of one weight."""
    every = [
        made.learner.gradient(made.learner.params, shortened(batch, t), step=0) for t in range(3)
    ]
    name = next(iter(every[0].grads))
    losses = torch.cat([result.query_losses.reshape(1) for result in every])
    return losses, torch.stack([result.grads[name] for result in every]).mean(0)


FEATURES = ("protonet", "cosine", "protomaml", "r2d2", "metaoptnet", "logistic", "own")
"""The last one reads labels alone."""


class Nearest(FeatureLearner):
    """A learner of a user's own that knows nothing of absent classes."""

    def fit(self, params: Any, support: Any, *, steps: Any = None) -> Any:
        features = self.apply(params, self.buffers, support[0])
        every = torch.arange(self.criterion.classes_of(support[1]))
        member = (support[1][:, None] == every).to(features)
        yield params, member.mT @ features

    def predict(self, state: Any, inputs: Any) -> Any:
        return self.apply(state[0], self.buffers, inputs) @ state[1].mT


def made_learner(name: str) -> Any:
    """A learner by its name, or a head that is a setting of one."""
    module = MLP((1, 4, 4), 4, hidden=(6,))
    made: dict[str, Any] = {
        "cosine": lambda: ProtoNet(module, distance="cosine"),
        "logistic": lambda: MetaOptNet(module, head="logistic"),
        "own": lambda: Nearest(module),
        "baseline_pp": lambda: BaselinePlusPlus(module, head_steps=3),
        "protomaml": lambda: ProtoMAML(module, MAML(inner_lr=0.01, inner_steps=2)),
    }
    return made[name]() if name in made else name


@pytest.mark.parametrize("learner", ["maml", "fomaml", "anil", *FEATURES])
@pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
def test_padding_has_no_part_in_training(learner: str, engine: Any) -> None:
    made = trainer(LEAST, learner=made_learner(learner))
    made.learner._engine = engine
    batch = tasks(LEAST).sample("train", range(3))
    batch = TaskBatch(batch.support, batch.query)  # without ids: a short task has fewer classes
    result = made.learner.gradient(made.learner.params, batch, step=0)
    losses, grads = gradient_alone(made, batch)
    assert torch.allclose(result.query_losses.reshape(-1), losses, rtol=1e-5)
    assert torch.allclose(result.grads[next(iter(result.grads))], grads, rtol=1e-4, atol=1e-6)


def test_a_learner_trains_and_is_scored_on_classes_that_vary() -> None:
    made = trainer(LEAST)
    made.fit()
    assert 0 <= float(made.test(5).accuracies[0, -1]) <= 1


@pytest.mark.parametrize("learner", [*FEATURES, "rfs", "baseline_pp"])
@pytest.mark.parametrize("inductive", [False, True])
@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_scores_are_those_of_tasks_without_padding(
    learner: str, inductive: bool, engine: Any
) -> None:
    made = trainer(LEAST, learner=made_learner(learner)).learner
    made._engine = engine
    batch = tasks().sample("test", range(9))
    found = made.score(batch, inductive=inductive)
    present = (batch.support[1][..., None] == torch.arange(4)).any(1)
    assert set(present.sum(1).tolist()) == {2, 3, 4}
    for t in range(9):
        alone = made.score(shortened(batch, t), inductive=inductive)
        torch.testing.assert_close(found.losses[t], alone.losses[0])
        torch.testing.assert_close(found.accuracies[t], alone.accuracies[0])
        chosen = found.predictions[t, -1]
        assert bool(present[t][chosen].all()), "no class is predicted that is not there"


@pytest.mark.parametrize("learner", ["protonet", "rfs", "protomaml"])
def test_heads_that_features_make_train_on_classes_that_vary(learner: str) -> None:
    made = trainer(LEAST, learner=learner)
    made.fit()
    report = made.test(8)
    assert 0 <= float(report.accuracies[0, -1]) <= 1
    assert bool(torch.isfinite(report.losses).all())


def test_a_class_that_queries_alone_have_is_refused() -> None:
    made = trainer(LEAST, learner="protonet").learner
    x = torch.rand(1, 3, 1, 4, 4)
    for support, query, message in (
        ([[0, 1, 1]], [[0, 1, 2]], "none of class 2.: every class of a task needs a support"),
        ([[0, 2, 2]], [[0, 2, 2]], "none of class 1.: every class of a task needs a support"),
    ):
        task = TaskBatch((x, torch.tensor(support)), (x, torch.tensor(query)), torch.zeros(1, 4))
        with pytest.raises(SettingError, match=message):
            made.score(task)


SOFT = torch.tensor([[0.5, 0, 0.5, 0], [1, 0, 0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize("learner", [*FEATURES[:-1], "rfs", "baseline_pp"])
def test_probabilities_may_lack_any_class(learner: str) -> None:
    """As scores do, the module that is adapted predicts among the classes that are there."""
    made = trainer(LEAST, learner=made_learner(learner)).learner
    source = torch.Generator().manual_seed(0)
    x, queries = (torch.randn(n, 1, 4, 4, generator=source) for n in (3, 40))
    logits = made.adapt((x, SOFT))(queries)
    assert set(logits.argmax(-1).tolist()) <= {0, 2} and bool(torch.isfinite(logits).all())
    asked = SOFT[None].repeat(1, 14, 1)[:, :40]
    found = made.score(TaskBatch((x[None], SOFT[None]), (queries[None], asked)))
    assert found.queries is not None
    torch.testing.assert_close(found.queries.probabilities[0], logits.softmax(-1))
    unknown = torch.full((1, 40, 4), 0.25)
    with pytest.raises(SettingError, match="none of class [13].: every class of a task needs a"):
        made.score(TaskBatch((x[None], SOFT[None]), (queries[None], unknown)))


@pytest.mark.parametrize("rule", ["thr", "aps", "raps"])
@pytest.mark.parametrize("coverage", [0.8, 0.999])
def test_sets_hold_classes_of_the_task_alone(rule: Any, coverage: float) -> None:
    """Where all classes are in every set, the sizes are the ways of the tasks."""
    made = trainer(LEAST, learner="protonet", validation_tasks=10)
    sets = made.test(10, conformal=ConformalSets(coverage, rule)).sets
    present = (tasks().sample("test", range(10)).support[1][..., None] == torch.arange(4)).any(1)
    ways = present.sum(1).double().mean()
    assert sets is not None and bool(sets.size[0] <= ways + 1e-9)
    assert bool(sets.size[0] == ways) == (coverage > 0.9)


def test_features_of_tasks_that_vary_are_padded_by_their_first() -> None:
    source = tasks()
    values = torch.arange(len(source.data.images) * 3.0).view(1, -1, 3)
    found = source.with_features(FeatureTable(values, torch.nn.Identity()))
    one, other = source.sample("test", range(20)), found.sample("test", range(20))
    assert torch.equal(one.support[1], other.support[1])
    assert other.support[0].shape == (20, 12, 3)
    absent = other.support[1] == -100
    assert bool(absent.any())
    first = other.support[0][:, :1].expand_as(other.support[0])
    assert torch.equal(other.support[0][absent], first[absent])
