"""Adapted modules answer one query as the inductive score does.

Axes: T tasks, M members, K inner steps.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4, Ensemble
from metalearn.trainers import MAML, InductiveModule, MemberLearner, MetaLearner
from tests.trainers.meta.test_learner import WAY, batch_norm_net, episodes, of_task


class ByHand(nn.Module):
    """Normalises with the batch at hand, which no layer tells."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.body, self.head = nn.Linear(16, 8), nn.Linear(8, WAY)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x.flatten(1))
        if self.how == "functional":
            x = F.batch_norm(x, None, None, self.scale, training=True)
        elif self.how == "mean":
            x = (x - x.mean(0)) * self.scale
        else:
            x = ((x @ x.T).softmax(-1) @ x) * self.scale
        out: Tensor = self.head(x)
        return out


def _batch_norm_1d() -> nn.Module:
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), norm, nn.ReLU(), nn.Linear(8, WAY))


MIXED: dict[str, Callable[[], nn.Module]] = {
    "batch_norm_2d": batch_norm_net,
    "batch_norm_1d": _batch_norm_1d,
    "functional": lambda: ByHand("functional"),
    "mean": lambda: ByHand("mean"),
    "attention": lambda: ByHand("attention"),
}
APART: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP((1, 4, 4), WAY, hidden=(8,)),
    "group_norm": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, WAY)
    ),
    "instance_norm": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Flatten(), nn.Linear(64, WAY)
    ),
    "running statistics": lambda: nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, WAY)
    ).eval(),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(3)
    return (MIXED | APART)[name]()


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("net", [*MIXED, *APART])
def test_one_query_is_answered_as_scored(net: str, engine: Any) -> None:
    learner = MetaLearner(make(net), MAML(inner_lr=0.1, engine=engine))
    tasks = episodes(2)
    for steps in (0, 2):
        scores = learner.score(tasks, steps=steps, inductive=True)
        for row in range(2):
            support, (x, y) = of_task(tasks, row)
            adapted = learner.adapt(support, steps=steps)
            assert not adapted.training
            assert isinstance(adapted, InductiveModule) == (net in MIXED)
            alone = torch.cat([adapted(query[None]) for query in x])
            torch.testing.assert_close(adapted(x), alone, rtol=1e-4, atol=1e-5)
            assert torch.equal(alone.argmax(-1), scores.predictions[row, -1])
            loss = F.cross_entropy(alone, y).detach()
            torch.testing.assert_close(loss, scores.losses[row, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", [*MIXED, *APART])
def test_transductive_gives_the_bare_network(net: str) -> None:
    learner, tasks = MetaLearner(make(net), MAML(inner_lr=0.1)), episodes(1)
    support, (x, _) = of_task(tasks, 0)
    adapted = learner.adapt(support, transductive=True)
    assert type(adapted) is type(learner.module)
    assert torch.equal(adapted(x).argmax(-1), learner.score(tasks).predictions[0, -1])


@pytest.mark.parametrize("net", ["batch_norm_2d", "batch_norm_1d", "mean", "mlp"])
def test_members_answer_one_query_as_scored(net: str) -> None:
    torch.manual_seed(1)
    model = Ensemble.from_modules([(MIXED | APART)[net]() for _ in range(2)])
    learner, tasks = MemberLearner(model, MAML(inner_lr=0.1)), episodes(2)
    scores = learner.score(tasks, inductive=True)
    for row in range(2):
        support, (x, _) = of_task(tasks, row)
        adapted = learner.adapt(support)
        assert isinstance(adapted, Ensemble) and len(adapted) == 2
        assert isinstance(adapted.member(1), InductiveModule) == (net in MIXED)
        alone = torch.cat([adapted(query[None]) for query in x], 1)
        torch.testing.assert_close(adapted(x), alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(adapted(x, engine="loop"), alone, rtol=1e-4, atol=1e-5)
        assert torch.equal(alone.softmax(-1).mean(0).argmax(-1), scores.predictions[row, -1])


def _adapted(row: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    learner = MetaLearner(make("batch_norm_2d").to(dtype), MAML(inner_lr=0.1))
    (inputs, targets), (x, _) = of_task(episodes(2), row)
    return learner.adapt((inputs.to(dtype), targets)), x


def test_the_support_set_is_saved_and_loaded() -> None:
    adapted, x = _adapted()
    assert "support" in adapted.state_dict()
    buffer = io.BytesIO()
    torch.save(adapted.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other, _ = _adapted(1)
    assert not torch.equal(other(x), adapted(x))
    other.load_state_dict(state)
    assert torch.equal(other(x), adapted(x))
    fresh = InductiveModule(batch_norm_net(), torch.zeros(2, 1, 4, 4))  # of another size
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), adapted(x))
    with pytest.raises(RuntimeError, match="size mismatch for support"):
        InductiveModule(batch_norm_net(), torch.zeros(3)).load_state_dict(state)


def test_it_is_an_ordinary_module_of_its_own() -> None:
    adapted, x = _adapted()
    support = of_task(episodes(2), 0)[0][0]
    expected = adapted(x).detach()
    copied = copy.deepcopy(adapted)
    support.zero_()
    assert torch.equal(copied(x), expected) and torch.equal(adapted(x), expected)
    double = copied.double()
    torch.testing.assert_close(double(x.double()), expected.double(), rtol=1e-4, atol=1e-5)
    before = F.cross_entropy(adapted(x), torch.zeros(len(x), dtype=torch.long))
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapted.parameters())
    assert adapted(x[:0]).shape == (0, WAY)


def test_one_shot_of_one_class_alone() -> None:
    """A support set of one sample, the least there is."""
    learner = MetaLearner(make("mean"), MAML(inner_lr=0.1, eval_steps=1))
    (inputs, targets), _ = of_task(episodes(1), 0)
    assert isinstance(learner.adapt((inputs[:1], targets[:1])), InductiveModule)
    learner = MetaLearner(make("mlp"), MAML(inner_lr=0.1, eval_steps=1))
    assert isinstance(learner.adapt((inputs[:1], targets[:1])), MLP)


def test_conv4_answers_one_picture() -> None:
    learner = MetaLearner(Conv4((1, 4, 4), WAY, filters=4), MAML(inner_lr=0.1))
    support, (x, _) = of_task(episodes(1), 0)
    assert learner.adapt(support)(x[:1]).shape == (1, WAY)


@pytest.mark.parametrize("net", ["batch_norm_2d", "mlp"])
def test_inference_mode(net: str) -> None:
    learner, tasks = MetaLearner(make(net), MAML(inner_lr=0.1)), episodes(2)
    support, (x, _) = of_task(tasks, 0)
    expected, scores = learner.adapt(support)(x), learner.score(tasks)
    grads = learner.meta_gradient(tasks).grads
    with torch.inference_mode():
        made_inside = episodes(2)
        torch.testing.assert_close(learner.adapt(support)(x), expected)
        torch.testing.assert_close(learner.adapt(of_task(made_inside, 0)[0])(x), expected)
        torch.testing.assert_close(learner.score(made_inside).losses, scores.losses)
        torch.testing.assert_close(learner.meta_gradient(made_inside).grads, grads)
    adapted = learner.adapt(support)
    F.cross_entropy(adapted(x), torch.zeros(len(x), dtype=torch.long)).backward()


class _Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, WAY)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x.flatten(1)).detach()
        return out


@pytest.mark.parametrize("method", ["auto", "mixed", "first_order", "implicit"])
@pytest.mark.parametrize("engine", ["auto", "batched", "vmap", "loop"])
def test_a_module_that_detaches_is_refused(engine: Any, method: Any) -> None:
    learner = MetaLearner(_Detached(), MAML(engine=engine, method=method))
    for run in (
        lambda: learner.meta_gradient(episodes()),
        lambda: learner.settle(episodes(), 3),
        lambda: learner.adapt(of_task(episodes(), 0)[0]),
        lambda: learner.score(episodes()),
    ):
        with pytest.raises(SettingError, match=r"^loss_fn='no parameter reached': a loss is"):
            run()
