"""Networks that are a body and a linear layer after it are taken apart by ANIL, and no others."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core.tree import tree_map
from metalearn.models import MLP, Conv4, Ensemble, ResNet12, ViT
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import ANIL, MAML
from metalearn.types import TaskBatch

WAVES: TaskBatch = tree_map(
    lambda x: x.double(), SinusoidTasks(shot=4, query=4).sample("train", range(2))
)
PICTURE = (1, 16, 16)


class Net(nn.Module):
    """A head that is called as a function says."""

    def __init__(self, use: Any) -> None:
        super().__init__()
        self.body, self.head, self.use = nn.Linear(1, 3), nn.Linear(3, 1), use
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.use(self, self.body(inputs).tanh(), inputs)
        return found


USES: dict[str, Any] = {
    "scaled": lambda net, h, x: net.head(h) * 2,
    "in place": lambda net, h, x: net.head(h).mul_(2),
    "a branch that starts at zero": lambda net, h, x: net.head(h).add_(net.gate * x),
    "twice": lambda net, h, x: net.head(h + net.head(h)),
    "as a function": lambda net, h, x: F.linear(h, net.head.weight, net.head.bias),
    "its weights besides": lambda net, h, x: net.head(h * net.head.weight.sum()),
}
STRAIGHT: dict[str, Any] = {
    "straight": lambda net, h, x: net.head(h),
    "a branch in the body": lambda net, h, x: net.head(h + net.gate * x),
}


def learner(module: Any, **settings: Any) -> ANIL:
    given = MAML(**{"inner_lr": 0.05, "inner_steps": 3, "eval_steps": 3, **settings})
    return ANIL(module, given, kind="regression")


def is_apart(one: ANIL) -> bool:
    return one.descended != one.loss


def test_gradients_are_those_of_the_network_as_a_whole() -> None:
    for module in (MLP((1,), 1, hidden=(5,)).double(), Net(STRAIGHT["straight"]).double()):
        one, whole = learner(module), learner(module)
        found = one.meta_gradient(WAVES)
        assert is_apart(one)
        wanted = whole.network.adaptation_gradient(
            whole.loss, whole.params, WAVES, **whole.gradient_settings()
        )
        for name, grad in wanted.grads.items():
            torch.testing.assert_close(found.grads[name], grad, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("use", [*USES, *STRAIGHT])
def test_only_a_head_after_all_else_is_taken_apart(use: str) -> None:
    module = Net((USES | STRAIGHT)[use]).double()
    one, whole = learner(module), learner(module)
    found = one.meta_gradient(WAVES)
    assert is_apart(one) == (use in STRAIGHT)
    wanted = whole.network.adaptation_gradient(
        whole.loss, whole.params, WAVES, **whole.gradient_settings()
    )
    for name, grad in wanted.grads.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("members", [0, 2])
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
@pytest.mark.parametrize("pool", ["mean", "flatten"])
def test_batch_statistics_are_those_of_each_set(members: int, engine: Any, pool: Any) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, *PICTURE, generator=draws, dtype=torch.float64)
    tasks = TaskBatch((x, torch.arange(3).repeat(2, 2)), (x.flip(1) + 1, torch.ones(2, 6).long()))
    make = lambda seed: Conv4(PICTURE, 3, filters=2, pool=pool, seed=seed).double()  # noqa: E731
    module: Any = Ensemble.from_factory(make, range(members)) if members else make(0)
    maml = MAML(inner_steps=2, engine=engine, learn="lr", lr_per="element")
    one, whole = ANIL(module, maml), ANIL(module, maml)
    found = one.meta_gradient(tasks)
    assert is_apart(one)
    wanted = whole.network.adaptation_gradient(
        whole.loss, whole.params, tasks, **whole.gradient_settings()
    )
    for name, grad in wanted.grads.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        partial(ResNet12, PICTURE, 2, filters=(2, 2, 2, 2)),
        partial(ViT, PICTURE, 2, patch=8, width=8, depth=1, heads=2),
    ],
)
def test_networks_that_are_there_are_taken_apart(make: Any) -> None:
    one = ANIL(make(), MAML(inner_steps=1))
    x = torch.randn(1, 4, *PICTURE, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[0, 1, 0, 1]])
    one.check(TaskBatch((x, y), (x, y)))
    assert is_apart(one)


def test_what_is_not_the_same_at_every_step_is_not_shared() -> None:
    parts = learner(MLP((1,), 1, hidden=(5,)).double(), support_batch=2)
    parts.meta_gradient(WAVES)
    two_layers = ANIL(MLP((1,), 1, hidden=(5, 5)).double(), kind="regression", head=["3.*", "5.*"])
    two_layers.meta_gradient(WAVES)
    assert not is_apart(parts) and not is_apart(two_layers)


def test_a_plan_says_so_and_another_mode_is_looked_at_anew() -> None:
    module = MLP((1,), 1, hidden=(5,)).double()
    one = learner(module)
    assert "features are computed once" in str(one.prepare(WAVES, 2, deterministic=True))
    before = one.descended
    one.check(WAVES)
    assert one.descended is before
    module.eval()
    one.check(WAVES)
    assert is_apart(one) and one.descended is not before
