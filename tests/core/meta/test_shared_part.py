"""A loss in parts has the gradient of the same loss as a whole, by every method and engine.

Axes: M members, T tasks, K inner steps.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import (
    adam,
    member_meta_gradient,
    meta_gradient,
    plan_meta_gradient,
    sgd,
    task_meta_gradients,
)
from metalearn.core.meta.inner_gradients import with_gradients
from metalearn.core.meta.shared_part import LossInParts
from metalearn.core.tree import tree_map
from metalearn.types import TaskBatch

Params = dict[str, Tensor]
calls: list[str] = []


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start(seed: int = 0) -> Params:
    shapes = {"body": (2, 4), "shift": (4,), "head": (4, 1)}
    return {n: random(*shape, seed=seed + i) for i, (n, shape) in enumerate(shapes.items())}


def tasks() -> TaskBatch:
    x, y = random(3, 5, 2, seed=7), random(3, 5, 1, seed=8)
    return TaskBatch((x, y), (x[:, :4] + 1, y[:, :4].sin()))


def features(params: Params, batch: Any) -> dict[str, Tensor]:
    """A tree, of which the loss uses both."""
    calls.append("features")
    hidden = (batch[0] @ params["body"] + params["shift"]).tanh()
    return {"hidden": hidden, "size": hidden.square().mean()}


def rest(params: Params, batch: Any, found: dict[str, Tensor]) -> Tensor:
    outputs = found["hidden"] @ params["head"]
    return ((outputs - batch[1]) ** 2).mean() * (1 + found["size"])


PARTS = LossInParts(features, rest)
FROZEN = ["body", "shift"]


def whole(params: Params, batch: Any) -> Tensor:
    return PARTS(params, batch)


def same(one: Any, other: Any) -> None:
    tree_map(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12), one, other)


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda: sgd(0.1),
    "learnt": lambda: sgd({"head": random(4, 1, seed=3).abs() / 9}, momentum=torch.tensor(0.5)),
    "adam": lambda: adam(0.05),
}
every_engine = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
METHODS = ["reverse", "mixed", "first_order", "implicit"]
CASES = [(m, o) for m in METHODS for o in OPTIMIZERS if (m, o) != ("implicit", "learnt")]


@every_engine
@pytest.mark.parametrize(("method", "optimizer"), CASES)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_it_is_the_loss_as_a_whole(engine: Any, method: Any, optimizer: str, steps: int) -> None:
    how = {"optimizer": OPTIMIZERS[optimizer](), "steps": steps, "frozen": FROZEN}
    how |= {"engine": engine, "method": method}
    found = meta_gradient(PARTS, start(), tasks(), **how)
    wanted = meta_gradient(whole, start(), tasks(), **how)
    same(found, wanted)
    assert found.grads["body"].abs().sum() > 0
    same(
        task_meta_gradients(PARTS, start(), tasks(), **how),
        task_meta_gradients(whole, start(), tasks(), **how),
    )
    many = tree_map(lambda a, b: torch.stack([a, b]), start(), start(20))
    same(
        member_meta_gradient(PARTS, many, tasks(), **how),
        member_meta_gradient(whole, many, tasks(), **how),
    )


@every_engine
@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])
def test_weights_of_all_steps_and_chunks(engine: Any, method: Any) -> None:
    how: Any = {"optimizer": sgd(0.1), "steps": 2, "frozen": FROZEN, "chunk_size": 2}
    how |= {"step_weights": (0.2, 0.3, 0.5), "engine": engine, "method": method}
    same(
        meta_gradient(PARTS, start(), tasks(), **how), meta_gradient(whole, start(), tasks(), **how)
    )


def test_it_is_taken_once_for_each_set() -> None:
    calls.clear()
    meta_gradient(PARTS, start(), tasks(), optimizer=sgd(0.1), steps=5, frozen=FROZEN)
    assert len(calls) == 2
    calls.clear()
    meta_gradient(whole, start(), tasks(), optimizer=sgd(0.1), steps=5, frozen=FROZEN)
    assert len(calls) == 6


def test_parts_of_the_support_set_have_it_at_every_step() -> None:
    optimizer = with_gradients(sgd(0.1), support_batch=2)
    how: Any = {"optimizer": optimizer, "steps": 3, "frozen": FROZEN}
    same(
        meta_gradient(PARTS, start(), tasks(), **how), meta_gradient(whole, start(), tasks(), **how)
    )


def test_plans_take_it() -> None:
    plan = plan_meta_gradient(
        PARTS, start(), tasks(), optimizer=sgd(0.1), steps=2, frozen=FROZEN, deterministic=True
    )
    assert plan.method == "reverse"
