"""CAVIA: against a loop in float64, by finite differences, in every engine, and its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4, Ensemble, WithContext
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import CAVIA, MAML, MetaLearner, MetaTrainer
from metalearn.types import TaskBatch
from tests.support.builders import (
    assert_goes_on,
    patterns,
)

TASKS = SinusoidTasks(shot=4, query=3)
SETTINGS: dict[str, Any] = {
    "steps": 4, "meta_batch": 3, "validation_tasks": 4, "progress": False, "eval_every": 2,
}  # fmt: skip


def network(seed: int = 0) -> MLP:
    return MLP((1,), 1, hidden=(6, 5), seed=seed, init_bias=0.3)


def doubled(count: int, tasks: Any = TASKS) -> TaskBatch:
    batch = tuple(tasks.sample("train", range(count)))
    return TaskBatch(*tree_map(lambda x: x.double() if x.is_floating_point() else x, batch))


def learner(module: nn.Module, *, size: int = 3, kind: Any = "regression", **maml: Any) -> CAVIA:
    settings: dict[str, Any] = {"inner_lr": 0.3, "inner_steps": 2, "eval_steps": 2} | maml
    return CAVIA(module, MAML(**settings), kind=kind, context_size=size)


def by_hand(module: Any, x: Tensor, context: Tensor) -> Tensor:
    """A multilayer perceptron of inputs and context side by side."""
    first, *rest = [layer for layer in module.network if isinstance(layer, nn.Linear)]
    both = torch.cat([x, context.expand(len(x), -1)], 1)
    h = both @ torch.cat([first.weight, module.weight], 1).T + first.bias
    for layer in rest:
        h = h.relu() @ layer.weight.T + layer.bias
    return h


def loss_by_hand(module: Any, task: Any, *, first_order: bool) -> tuple[Tensor, Tensor]:
    (x, y), (queries, targets) = task
    context = torch.zeros(module.size, dtype=x.dtype, requires_grad=True)
    for _ in range(2):
        loss = (by_hand(module, x, context) - y).pow(2).mean()
        (grad,) = torch.autograd.grad(loss, context, create_graph=True)
        context = context - 0.3 * (grad.detach() if first_order else grad)
    outputs = by_hand(module, queries, context)
    return (outputs - targets).pow(2).mean(), outputs


@pytest.mark.parametrize("engine", ["auto", "batched", "vmap", "loop"])
@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])
def test_the_gradient_is_that_of_a_loop(engine: Any, method: Any) -> None:
    one, tasks = learner(network().double(), engine=engine, method=method, chunk_size=2), doubled(3)
    found, first = one.meta_gradient(tasks), method == "first_order"
    rows = [
        loss_by_hand(one.module, tree_map(lambda x, t=t: x[t], tasks), first_order=first)[0]
        for t in range(3)
    ]
    mean = torch.stack(rows).mean()
    torch.testing.assert_close(found.loss, mean.detach(), rtol=1e-10, atol=0)
    grads = torch.autograd.grad(mean, list(one.module.parameters()))
    names = [name for name, _ in one.module.named_parameters()]
    assert sorted(found.grads) == sorted(names) == sorted(one.params)
    for name, grad in zip(names, grads):
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inductive", [False, True])
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_scores_are_those_of_adapted_modules(engine: Any, inductive: bool) -> None:
    one, tasks = learner(network().double(), engine=engine), doubled(4)
    scores = one.score(tasks, inductive=inductive)
    assert scores.losses.shape == (4, 3)
    for t in range(4):
        task = tree_map(lambda x, t=t: x[t], tasks)
        loss, outputs = loss_by_hand(one.module, task, first_order=False)
        torch.testing.assert_close(scores.losses[t, -1], loss.detach(), rtol=1e-10, atol=0)
        adapted = one.adapt(task.support, transductive=not inductive)
        torch.testing.assert_close(adapted(task.query[0]), outputs, rtol=1e-10, atol=1e-12)
        order = torch.tensor([2, 0, 3, 1])
        other = one.adapt((task.support[0][order], task.support[1][order]))
        torch.testing.assert_close(other(task.query[0]), outputs, rtol=1e-10, atol=1e-12)


def test_a_context_of_zeros_is_the_bare_network() -> None:
    bare, tasks = network().double(), doubled(3)
    one = learner(bare)
    plain = MetaLearner(bare, MAML(), kind="regression").score(tasks, steps=0)
    torch.testing.assert_close(one.score(tasks, steps=0).losses, plain.losses)
    torch.testing.assert_close(one.score(tasks).losses[:, 0], plain.losses[:, 0])


def test_it_is_maml_of_a_parameter_that_starts_at_zero() -> None:
    class Start(nn.Module):
        def __init__(self, module: WithContext) -> None:
            super().__init__()
            self.module = module
            self.context = nn.Parameter(torch.zeros(module.size).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x, self.context)

    one, tasks = learner(network().double()), doubled(3)
    maml = MAML(inner_lr=0.3, inner_steps=2, frozen="module.*")
    other = MetaLearner(Start(one.module), maml, kind="regression")  # type: ignore[arg-type]
    found, wanted = one.meta_gradient(tasks), other.meta_gradient(tasks)
    for name, grad in found.grads.items():
        torch.testing.assert_close(grad, wanted.grads[f"module.{name}"], rtol=1e-10, atol=1e-12)


def test_channels_are_scaled_and_shifted() -> None:
    module = WithContext(Conv4((1, 8, 8), 3, filters=4), 2)
    assert module.layer == "blocks.2.1"
    context, h = torch.tensor([0.7, -0.4]), torch.randn(2, 4, 2, 2)
    change = module.weight @ context
    scale, shift = change[:4, None, None], change[4:, None, None]
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    blocks = module.network.blocks  # type: ignore[union-attr]
    handle = blocks[2][2].register_forward_pre_hook(lambda layer, given: seen.append(given[0]))  # type: ignore[index, union-attr]
    module(x)
    module(x, context)
    handle.remove()
    torch.testing.assert_close(seen[1], (1 + scale) * seen[0] + shift)
    assert module(h[:, :1].expand(2, 1, 2, 2), 0 * context).equal(module(h[:, :1]))


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_pictures(engine: Any) -> None:
    tasks = doubled(2, FewShotTasks(patterns(), way=3, shot=2, query=2))
    one = learner(Conv4((1, 4, 4), 3, filters=3).double(), kind="classification", engine=engine)
    grads = one.meta_gradient(tasks).grads
    way = {n: torch.ones_like(p) for n, p in one.params.items()}

    def loss(size: float) -> float:
        moved = {n: p + size * way[n] for n, p in one.params.items()}
        return float(one.gradient(moved, tasks).loss)

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert sum(float(g.sum()) for g in grads.values()) == pytest.approx(slope, rel=1e-4)
    assert float(grads["weight"].abs().max()) > 0


def test_members_and_resumed_runs(tmp_path: Path) -> None:
    maml = MAML(inner_lr=0.3, learn=["lr"])

    def trainer(**settings: Any) -> MetaTrainer:
        model = Ensemble.from_factory(network, range(2))
        given = {**SETTINGS, "diagnostics": ["gradient_norms", "gradient_cosines"], **settings}
        return MetaTrainer(model, TASKS, learner="cavia", maml=maml, **given)

    whole = assert_goes_on(trainer, tmp_path)
    assert "stacks.0.network.weight" in whole.module.state_dict()
    assert not [name for name in whole.module.state_dict() if name.endswith("context")]


def test_it_learns() -> None:
    fast: Any = lambda ps: torch.optim.Adam(ps, lr=1e-2)  # noqa: E731
    settings = {**SETTINGS, "steps": 250, "meta_batch": 16, "eval_every": 250, "optimizer": fast}
    model = MLP((1,), 1, hidden=(24, 24))
    maml = MAML(inner_lr=1.0, inner_steps=2, eval_steps=2)
    trainer = MetaTrainer(model, SinusoidTasks(), learner="cavia", maml=maml, **settings)
    trainer.fit()
    losses = trainer.test(100).losses[0]
    assert losses[2] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("maml", "settings", "message"),
    [
        ({"frozen": "1.*"}, {}, r"^maml.frozen='1.\*': null is needed: cavia adapts a context"),
        ({"method": "implicit"}, {}, "^maml.method='implicit': .*cavia learns no starting point"),
        ({}, {"context_size": 0}, "^context_size=0: a whole number of at least 1"),
        ({}, {"layer": "2"}, "^learner.layer='2': the name of a Linear, .*one of 1, 3, 5"),
        ({}, {"layer": ""}, "^learner.layer='': the name of a Linear, .*one of 1, 3, 5"),
        ({}, {"seed": -1}, "^seed=-1: "),
    ],
)
def test_bad_input(maml: Any, settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        CAVIA(network(), MAML(**maml), kind="regression", **settings)


def test_layers_that_cannot_read_a_context() -> None:
    with pytest.raises(SettingError, match="^layer=None: .*; Embedding has none"):
        WithContext(nn.Embedding(3, 2), 2)
    with pytest.raises(SettingError, match="^layer='blocks.2.0': blocks.2.1 is needed, since that"):
        WithContext(Conv4((1, 8, 8), 3), 2, layer="blocks.2.0")
