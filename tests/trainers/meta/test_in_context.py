"""A transformer over support sets: against masked attention of torch's own, and its invariances."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4, Ensemble, InContextTransformer
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import MAML, InContextLearner, MetaTrainer
from metalearn.types import TaskBatch
from tests.support.builders import (
    assert_goes_on,
    patterns,
)

TASKS = FewShotTasks(patterns(), way=3, shot=2, query=2)
WAVES = SinusoidTasks(shot=4, query=3)
SETTINGS: dict[str, Any] = {
    "steps": 4, "meta_batch": 3, "validation_tasks": 4, "progress": False, "eval_every": 2,
}  # fmt: skip
both_kinds = pytest.mark.parametrize("kind", ["classification", "regression"])


def network(kind: Any = "classification", seed: int = 0) -> MLP:
    return MLP((1,) if kind == "regression" else (1, 4, 4), 8, hidden=(6,), seed=seed)


def doubled(kind: str, count: int) -> TaskBatch:
    batch = tuple((WAVES if kind == "regression" else TASKS).sample("train", range(count)))
    return TaskBatch(*tree_map(lambda x: x.double() if x.is_floating_point() else x, batch))


def learner(kind: Any, **settings: Any) -> InContextLearner:
    given: dict[str, Any] = {"heads": 2, "classes": 4} | settings
    return InContextLearner(network(kind).double(), kind=kind, **given)


def by_hand(module: Any, task: Any, way: int | None) -> tuple[Tensor, Tensor]:
    """Loss and outputs: one sequence with a mask, through torch's own attention."""
    (x, y), (queries, targets) = task
    n, size = len(x), len(x) + len(queries)
    told = F.one_hot(y, module.targets.in_features).double() if way else y
    seen = torch.zeros(size, size, dtype=torch.bool)
    seen[:, :n] = True
    seen[range(size), range(size)] = True

    def rms(h: Tensor, layer: Any) -> Tensor:
        return h / (h.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight

    centre = module.network(x).mean(0)
    support = rms(module.network(x) - centre, module.embedded) + told @ module.targets.weight.T
    asked = rms(module.network(queries) - centre, module.embedded) + module.query
    tokens = torch.cat([support, asked])
    for block in module.blocks:
        q, k, v = block.project(rms(tokens, block.before)).chunk(3, -1)
        heads = [
            F.softmax(
                (a @ b.T / math.sqrt(a.shape[-1])).masked_fill(~seen, -math.inf), -1
            ) @ c
            for a, b, c in zip(*(part.chunk(block.heads, -1) for part in (q, k, v)))
        ]  # fmt: skip
        tokens = tokens + block.joined(torch.cat(heads, -1))
        tokens = tokens + block.narrow(F.gelu(block.wide(rms(tokens, block.between))))
    outputs = module.head(rms(tokens[n:], module.norm))[:, :way]
    if way:
        return F.cross_entropy(outputs, targets), outputs
    return (outputs - targets).pow(2).mean(), outputs


@both_kinds
@pytest.mark.parametrize("engine", ["auto", "batched", "vmap", "loop"])
def test_the_gradient_is_that_of_one_masked_sequence(kind: Any, engine: Any) -> None:
    one, tasks = learner(kind, engine=engine, chunk_size=2), doubled(kind, 3)
    way = 3 if kind == "classification" else None
    found = one.meta_gradient(tasks)
    rows = [by_hand(one.module, tree_map(lambda x, t=t: x[t], tasks), way)[0] for t in range(3)]
    mean = torch.stack(rows).mean()
    torch.testing.assert_close(found.loss, mean.detach(), rtol=1e-10, atol=0)
    grads = torch.autograd.grad(mean, list(one.module.parameters()))
    for (name, _), grad in zip(one.module.named_parameters(), grads):
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-8, atol=1e-11)


@both_kinds
@pytest.mark.parametrize("inductive", [False, True])
def test_neither_the_order_of_the_support_set_nor_other_queries_matter(
    kind: Any, inductive: bool
) -> None:
    one, tasks = learner(kind), doubled(kind, 2)
    way = 3 if kind == "classification" else None
    scores = one.score(tasks, inductive=inductive)
    for t in range(2):
        (x, y), (queries, targets) = tree_map(lambda v, t=t: v[t], tasks)
        loss, outputs = by_hand(one.module, ((x, y), (queries, targets)), way)
        torch.testing.assert_close(scores.losses[t, 0], loss.detach(), rtol=1e-10, atol=0)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
        adapted = one.adapt((x[order], y[order]), transductive=not inductive)
        torch.testing.assert_close(adapted(queries), outputs, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(adapted(queries[1:2]), outputs[1:2], rtol=1e-10, atol=1e-12)


def test_exchanged_labels_need_exchanged_rows() -> None:
    one, tasks = learner("classification", classes=3), doubled("classification", 1)
    (x, y), (queries, _) = tree_map(lambda v: v[0], tasks)
    wanted, turned = one.adapt((x, y))(queries), torch.tensor([1, 2, 0])
    params = dict(one.params)
    params["targets.weight"] = torch.empty_like(params["targets.weight"])
    params["targets.weight"][:, turned] = one.params["targets.weight"]
    for name in ("head.weight", "head.bias"):
        params[name] = torch.empty_like(params[name])
        params[name][turned] = one.params[name]
    (state,) = one.fit(params, (x, turned[y]))
    found = one.predict(state, queries)[:, turned]
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    (state,) = one.fit(one.params, (x, turned[y]))
    assert not torch.allclose(one.predict(state, queries)[:, turned], wanted)


def test_padding_is_not_attended_to() -> None:
    module = InContextTransformer(network().double(), 8, classes=3, heads=2)
    (x, y), (queries, _) = tree_map(lambda v: v[0], doubled("classification", 1))
    noise = torch.full_like(x[:2], 50.0)
    padded = torch.cat([x, noise]), torch.cat([y, torch.tensor([-100, -100])])
    torch.testing.assert_close(module(queries, *padded), module(queries, x, y))
    same = module(queries, x, F.one_hot(y, 3).double())
    torch.testing.assert_close(same, module(queries, x, y))


def test_second_derivatives_and_members_of_a_transformer() -> None:
    one, tasks = learner("regression"), doubled("regression", 2)

    def total(params: Any) -> Tensor:
        losses = torch.vmap(one.task_loss, in_dims=(None, 0, 0))(params, *tasks)
        return losses.mean()

    way = {n: torch.ones_like(p) for n, p in one.params.items()}
    grad = torch.func.grad(total)
    _, curved = torch.func.jvp(grad, (one.params,), (way,))
    size = 1e-6
    ahead, back = (grad({n: p + s * way[n] for n, p in one.params.items()}) for s in (size, -size))
    for name, value in curved.items():
        wanted = (ahead[name] - back[name]) / (2 * size)
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-6)


def test_fewer_classes_than_there_is_room_for_and_ways_that_differ() -> None:
    tasks = FewShotTasks(patterns(40), way={"train": 4, "test": 3}, shot=1, query=3)
    fast: Any = lambda ps: torch.optim.Adam(ps, lr=3e-3)  # noqa: E731
    settings = {**SETTINGS, "steps": 80, "meta_batch": 8, "eval_every": 80, "optimizer": fast}
    trainer = MetaTrainer(MLP((1, 4, 4), 64), tasks, learner="in_context", **settings)
    before = trainer.test(60).losses[0, 0]
    trainer.fit()
    assert trainer.test(60).losses[0, 0] < 0.9 * before
    assert int(trainer.learner.score(tasks.sample("test", range(9))).predictions.max()) < 3


def test_queries_are_answered_alone_beside_a_network_that_normalises_with_the_batch() -> None:
    tasks = doubled("classification", 2)
    one = InContextLearner(Conv4((1, 4, 4), 8, filters=4).double(), heads=2)
    alone, together = one.score(tasks, inductive=True), one.score(tasks)
    assert not torch.equal(alone.losses, together.losses)
    for t in range(2):
        (x, y), (queries, targets) = tree_map(lambda v, t=t: v[t], tasks)
        adapted = one.adapt((x, y))
        answers = torch.cat([adapted(query[None]) for query in queries])
        torch.testing.assert_close(alone.losses[t, 0], one.criterion(answers, targets))


def test_members_and_resumed_runs(tmp_path: Path) -> None:
    def trainer(**settings: Any) -> MetaTrainer:
        made = lambda seed: network(seed=seed)  # noqa: E731
        given = {**SETTINGS, "diagnostics": ["gradient_norms"], **settings}
        model = Ensemble.from_factory(made, range(2))
        return MetaTrainer(model, TASKS, learner="in_context", **given)

    assert_goes_on(trainer, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "^heads=3: a divisor of the 8 features is needed"),
        ({"heads": 0}, "^heads=0: a whole number of at least 1"),
        ({"depth": 0}, "^depth=0: a whole number of at least 1"),
        ({"classes": 0}, "^classes=0: a whole number of at least 1"),
        ({"values": 0}, "^values=0: a whole number of at least 1"),
        ({"features": 0}, "^features=0: a whole number of at least 1"),
        ({"engine": "fast"}, "^engine='fast': one of auto"),
    ],
)
def test_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        learner("classification", **settings)


def test_tasks_and_networks_that_do_not_fit() -> None:
    with pytest.raises(
        SettingError, match="^learner.classes=2: at least 3 are needed for these tasks"
    ):
        learner("classification", classes=2).score(doubled("classification", 1))
    with pytest.raises(SettingError, match="^learner.values=2: 1 are needed for these tasks"):
        learner("regression", values=2).score(doubled("regression", 1))
    with pytest.raises(SettingError, match="^maml=.*in_context has none, so None is needed"):
        MetaTrainer(network(), TASKS, learner="in_context", maml=MAML())
    with pytest.raises(SettingError, match="^features=None: a whole number is needed for a netw"):
        InContextLearner(torch.nn.Flatten())
    with pytest.raises(SettingError, match="^steps=1: in_context has no inner loop, so 0"):
        learner("classification").score(TASKS.sample("test", [0]), steps=1)
