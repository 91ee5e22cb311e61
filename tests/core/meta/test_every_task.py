"""The meta-gradient of every task, and that of what is learnt: its mean is that of all.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from metalearn.core import (
    InnerOptimizer,
    adam,
    adamw,
    meta_gradient,
    sgd,
    task_meta_gradients,
)
from metalearn.core.meta.every_task import task_loss_gradients
from metalearn.core.tree import leaves, tree_map
from tests.support import oracles
from tests.support.oracles import Problem, assert_trees

DOUBLE = torch.float64


def number(*values: float) -> Any:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=DOUBLE)


def problem() -> Problem:
    return oracles.classification(oracles.conv(torch.nn.Identity), (1, 4, 4), tasks=3)


def by_element(params: Any) -> Any:
    return {
        n: torch.linspace(0.1, 0.2, p.numel(), dtype=DOUBLE).view_as(p) for n, p in params.items()
    }


def of_ones_own(lr: Any) -> InnerOptimizer:
    """It has no form for rows of its own."""

    def update(grads: Any, state: Any, params: Any) -> Any:
        return tree_map(lambda g: -lr * g, grads), state

    return InnerOptimizer(lambda params: (), update, lr, of_ones_own, elementwise=True)


MAKES: dict[str, Callable[[Any], InnerOptimizer]] = {
    "nothing": lambda p: sgd(0.2, momentum=0.5),
    "rate": lambda p: sgd(number(0.2)),
    "schedule": lambda p: sgd(number(0.2, 0.1), momentum=number(0.5)),
    "leaves": lambda p: adam({n: number(0.1) for n in p}, betas=(number(0.8), number(0.9))),
    "elements": lambda p: adamw(by_element(p), weight_decay=number(0.1)),
    "own": lambda p: of_ones_own(number(0.2)),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop", "auto"])
def test_every_task_is_as_alone(engine: Any, method: Any, make: Any) -> None:
    case = problem()
    settings: dict[str, Any] = {"optimizer": make(case.params), "steps": 2, "method": method}
    grads, learnt = task_meta_gradients(*case, engine=engine, with_learnt=True, **settings)
    alone = [
        meta_gradient(
            case.loss_fn, case.params, tree_map(lambda v, t=t: v[t : t + 1], case.tasks),
            engine="loop", **settings,
        )
        for t in range(3)
    ]  # fmt: skip
    for t, wanted in enumerate(alone):
        assert_trees(tree_map(lambda v, t=t: v[t], grads), wanted.grads)
        found = leaves(tree_map(lambda v, t=t: v[t], learnt))
        assert len(found) == len(leaves(wanted.optimizer_grads))
        for one, other in zip(found, leaves(wanted.optimizer_grads)):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    bare = task_meta_gradients(*case, engine=engine, **settings)
    assert_trees(bare, grads)


@pytest.mark.parametrize("layer", [torch.nn.Identity, lambda width: torch.nn.GroupNorm(2, width)])
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop", "auto"])
def test_every_loss_of_a_task_is_as_alone(engine: Any, layer: Any) -> None:
    case = oracles.classification(oracles.conv(layer), (1, 4, 4), tasks=3)

    def loss(params: Any, support: Any, query: Any) -> Any:
        return case.loss_fn(params, query) + 0.5 * case.loss_fn(params, support) ** 2

    found = task_loss_gradients(loss, case.params, case.tasks, engine=engine)
    for t in range(3):
        params = tree_map(lambda v: v.detach().requires_grad_(), case.params)
        task = tree_map(lambda v, t=t: v[t], case.tasks)
        wanted = torch.autograd.grad(loss(params, *task), leaves(params))
        for one, other in zip(leaves(tree_map(lambda v, t=t: v[t], found)), wanted):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
