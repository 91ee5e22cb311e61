"""Support examples left out really, for every learner, against adapting one task after another.

Axes: T tasks, S support examples, Q queries.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.attribution import learner_support_scores, leave_one_support_out
from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP
from metalearn.trainers import LEARNERS, MAML, R2D2, Learner, MetaLearner, ProtoNet
from metalearn.types import TaskBatch
from tests.contracts.test_learners import doubled, learner, network, network_of
from tests.support.oracles import draw, task_list

close = torch.testing.assert_close
every_learner = pytest.mark.parametrize("name", LEARNERS)


def losses_after(one: Learner, support: Any, query: Any) -> Tensor:
    """Query losses ``[Q]`` of the module that `Learner.adapt` makes of one support set."""
    with torch.no_grad():
        outputs = one.adapt(support, transductive=True)(query[0])
    if one.kind == "regression":
        return (outputs - query[1]).square().flatten(1).mean(1)
    return nn.functional.cross_entropy(outputs, query[1], reduction="none")


def by_adapting(one: Learner, tasks: TaskBatch) -> Tensor:
    rows = []
    for support, query in task_list(tasks):
        whole, count = losses_after(one, support, query), len(support[1])
        kept = [torch.arange(count) != s for s in range(count)]
        without = [losses_after(one, tree_map(lambda x, k=k: x[k], support), query) for k in kept]
        rows.append(torch.stack(without, -1) - whole[:, None])
    return torch.stack(rows)


@every_learner
def test_it_is_what_adapt_gives_for_smaller_support_sets(name: str) -> None:
    one, tasks = learner(name, network(name, 0), "vmap"), doubled(name, "train")
    found = leave_one_support_out(one, tasks)
    close(found, by_adapting(one, tasks), rtol=1e-8, atol=1e-10)
    assert bool(found.any())
    close(leave_one_support_out(one, tasks, reduction="mean"), found.mean(1))


@every_learner
@pytest.mark.parametrize("engine", ["loop", "vmap", "batched"])
def test_every_engine_and_chunk_finds_the_same(name: str, engine: str) -> None:
    tasks = tree_map(lambda x: x[:2], doubled(name, "train"))
    expected = leave_one_support_out(learner(name, network(name, 0), "vmap"), tasks)
    one = learner(name, network(name, 0), engine)
    close(leave_one_support_out(one, tasks, chunk_size=5), expected)


@pytest.mark.parametrize("chunk_size", [1, 4, 100, None, "auto"])
def test_pairs_of_several_tasks_share_a_chunk(chunk_size: Any) -> None:
    one, tasks = learner("maml", network("maml", 0), "auto"), doubled("maml", "train")
    found = leave_one_support_out(one, tasks, chunk_size=chunk_size)
    close(found, leave_one_support_out(one, tasks, chunk_size=None))


@pytest.mark.parametrize("name", ["maml", "protonet", "cnp"])
def test_members_are_learners_alone(name: str) -> None:
    tasks = doubled(name, "train")
    together = learner(name, network_of(name, 2), "auto")
    found = leave_one_support_out(together, tasks)
    for member, module in enumerate(together.network.copies()):
        close(found[member], leave_one_support_out(learner(name, module, "auto"), tasks))


def test_scores_by_gradients_foretell_it() -> None:
    """A small step of adaptation; the mean over S − 1 takes back that the others count more."""
    module = MLP((1, 4, 4), 3, hidden=(6,), activation="tanh", seed=0).double()
    one = MetaLearner(module, MAML(inner_lr=1e-4, inner_steps=1, eval_steps=2))
    tasks = doubled("maml", "train")
    scores = learner_support_scores(one, tasks)
    count = scores.shape[-1]
    expected = (scores - scores.mean(-1, keepdim=True)) * count / (count - 1)
    found = leave_one_support_out(one, tasks)
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_padding_left_out_changes_nothing() -> None:
    one, tasks = learner("maml", network("maml", 0), "auto"), doubled("maml", "train")
    targets, asked = tasks.support[1].clone(), tasks.query[1].clone()
    targets[:, 2], asked[:, 1] = -100, -100
    padded = TaskBatch((tasks.support[0], targets), (tasks.query[0], asked))
    found = leave_one_support_out(one, padded)
    close(found[..., 2], torch.zeros(3, 6, dtype=torch.float64))
    assert not found[:, 1].any()
    kept = [q for q in range(6) if q != 1]
    close(leave_one_support_out(one, padded, reduction="mean"), found[:, kept].mean(1))


def test_the_learner_is_as_it_was() -> None:
    one, tasks = learner("protonet", network("protonet", 0), "vmap"), doubled("protonet", "train")
    before, scores = {n: p.clone() for n, p in one.params.items()}, one.score(tasks)
    leave_one_support_out(one, tasks)
    assert all(torch.equal(p, before[n]) for n, p in one.params.items())
    close(one.score(tasks).losses, scores.losses)
    assert one.criterion.classes == 3


@pytest.mark.parametrize("kind", [ProtoNet, R2D2])
def test_the_only_example_of_a_class_is_refused_where_each_needs_one(kind: Any) -> None:
    tasks = doubled("protonet", "train")
    targets = tasks.support[1].clone()
    targets[1, int((targets[1] == 2).nonzero()[0])] = 0
    lonely = TaskBatch((tasks.support[0], targets), tasks.query)
    with pytest.raises(SettingError, match="support='one of class 2 in task 1': .* needs two of"):
        leave_one_support_out(kind(network("protonet", 0)), lonely)
    logits = learner("maml", network("maml", 0), "auto")
    assert leave_one_support_out(logits, lonely).isfinite().all()


def first_of(sets: Any, count: int) -> Any:
    return tree_map(lambda x: x[:, :count], sets)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner": None}, "learner=None: a Learner is needed"),
        ({"tasks": None}, "tasks=None: a TaskBatch is needed"),
        ({"steps": -1}, "steps=-1: a whole number of at least 0"),
        ({"reduction": "sum"}, "reduction='sum': one of none, mean"),
        ({"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
        ({"memory": 1}, "memory=1: one pair of task and example takes"),
    ],
)
def test_mistakes_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    given: Any = {
        "learner": learner("maml", network("maml", 0), "auto"),
        "tasks": doubled("maml", "train"),
    }
    with pytest.raises(SettingError, match=message):
        leave_one_support_out(**{**given, **changes})


def test_one_example_cannot_be_left_out() -> None:
    one, tasks = learner("maml", network("maml", 0), "auto"), doubled("maml", "train")
    with pytest.raises(SettingError, match="support='1 example': at least 2 are needed"):
        leave_one_support_out(one, TaskBatch(first_of(tasks.support, 1), tasks.query))
    none = TaskBatch(first_of(tasks.support, 0), tasks.query)
    with pytest.raises(SettingError, match="support=.*it needs samples"):
        leave_one_support_out(one, none)


def test_statistics_of_batch_norms_are_of_the_others() -> None:
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), norm, nn.Tanh(), nn.Linear(6, 3))
    one = MetaLearner(draw(layers), MAML(inner_lr=0.2, inner_steps=1, eval_steps=1))
    tasks = doubled("maml", "train")
    close(leave_one_support_out(one, tasks), by_adapting(one, tasks), rtol=1e-8, atol=1e-10)
