"""How often `mixed` takes a step again, and that its gradient is that of `reverse`.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn.core import adam, functionalize, meta_gradient, sgd, with_gradients
from metalearn.core.autodiff.backend import Eager
from metalearn.core.memory import peak_memory
from metalearn.core.meta.adaptation import InnerLoop
from metalearn.core.meta.backward_walk import BackwardWalk
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.tree import leaves, tree_map
from metalearn.types import TaskBatch

RATE = torch.tensor(0.1, dtype=torch.float64)
OPTIMIZERS: dict[str, Callable[[], InnerOptimizer]] = {
    "sgd": lambda: sgd(0.1),
    "decayed": lambda: sgd(0.1, weight_decay=0.1),
    "momentum": lambda: sgd(0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda: sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: adam(0.01),
    "learnt": lambda: sgd(RATE.clone()),
    "learnt momentum": lambda: sgd(0.1, momentum=torch.tensor(0.5, dtype=torch.float64)),
    "schedule": lambda: sgd(torch.tensor([0.1, 0.05, 0.02], dtype=torch.float64)),
    "learnt adam": lambda: adam(RATE.clone() / 10),
    "clipped": lambda: with_gradients(sgd(0.1), clip_norm=0.5),
    "parts": lambda: with_gradients(sgd(0.1), support_batch=3),
}


def _network() -> nn.Module:
    torch.manual_seed(0)
    body = [
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.ReLU(),
    ]
    body += [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()]
    body += [nn.MaxPool2d(2)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 3)).double()


def _problem(tasks: int = 3) -> tuple[Any, Any, TaskBatch]:
    apply, params, buffers = functionalize(_network())

    def loss(params: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(apply(params, buffers, batch[0]), batch[1])

    draw = torch.Generator().manual_seed(1)
    half = lambda: (  # noqa: E731
        torch.randn(tasks, 6, 2, 8, 8, generator=draw, dtype=torch.float64),
        torch.arange(6).remainder(3).repeat(tasks, 1),
    )
    return loss, params, TaskBatch(half(), half())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("further", [{}, {"frozen": "0.*"}, {"chunk_size": 2}])
@pytest.mark.parametrize("steps", [1, 3])
def test_is_reverse_for_every_optimiser(name: str, further: dict[str, Any], steps: int) -> None:
    if name == "schedule" and steps != 3:
        pytest.skip("rates are of three steps")
    loss, params, tasks = _problem()
    given: dict[str, Any] = {"optimizer": OPTIMIZERS[name](), "steps": steps}
    of_all = {name: value for name, value in further.items() if name == "frozen"}
    right = meta_gradient(loss, params, tasks, method="reverse", engine="loop", **given, **of_all)
    found = meta_gradient(loss, params, tasks, method="mixed", engine="batched", **given, **further)
    for a, b in zip(leaves(tuple(found)), leaves(tuple(right)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_the_newest_step_is_not_taken_again(steps: int) -> None:
    loss, params, tasks = _problem(tasks=1)
    calls = {"mixed": 0, "reverse": 0}
    for method in ("mixed", "reverse"):

        def counted(params: Any, batch: Any, method: str = method) -> Tensor:
            calls[method] += 1
            return loss(params, batch)

        settings: dict[str, Any] = {"method": method, "engine": "batched", "steps": steps}
        meta_gradient(counted, params, tasks, optimizer=sgd(0.1), **settings)
    assert calls["mixed"] - calls["reverse"] == max(0, steps - 1)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "clipped"])
def test_of_weights_that_are_computed_too(name: str) -> None:
    draw = torch.Generator().manual_seed(2)
    weight = torch.randn(3, 2, 3, 3, generator=draw, dtype=torch.float64)
    _, _, tasks = _problem()

    def loss(params: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        normed = params["w"] / params["w"].norm()
        hidden = F.conv2d(batch[0], normed, padding=1).tanh()
        outputs = F.conv2d(hidden, params["v"]).tanh().flatten(2).mean(-1)
        return F.cross_entropy(outputs, batch[1]) + params["v"].square().sum() ** 2

    params = {"w": weight, "v": weight[:, :1].repeat(1, 3, 1, 1)}
    given: dict[str, Any] = {"optimizer": OPTIMIZERS[name](), "steps": 3}
    found = meta_gradient(loss, params, tasks, method="mixed", engine="batched", **given)
    right = meta_gradient(loss, params, tasks, method="reverse", engine="loop", **given)
    for a, b in zip(leaves(found.grads), leaves(right.grads), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


class _Products(TorchDispatchMode):
    """How many batched matrix products are taken."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
        self.count += "bmm" in function.__name__
        return function(*args, **(kwargs or {}))


def test_inner_gradients_that_nobody_reads_are_not_computed() -> None:
    loss, params, tasks = _problem()
    counts = {}
    for name, limit in (("sgd", None), ("clipped", 1e9)):
        optimizer = sgd(0.1) if limit is None else with_gradients(sgd(0.1), clip_norm=limit)
        with _Products() as products:
            settings: dict[str, Any] = {"method": "mixed", "engine": "batched", "steps": 4}
            meta_gradient(loss, params, tasks, optimizer=optimizer, **settings)
        counts[name] = products.count
    assert counts["clipped"] - counts["sgd"] >= 3  # of each step but the newest


def _cubic(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    return tree_map(lambda grad: -0.1 * grad - 0.1 * grad**3, grads), state


def _normalised(own: InnerOptimizer) -> Callable[..., tuple[Any, Any]]:
    assert own.fused is not None
    step = own.fused

    def fused(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        small = tree_map(lambda grad: grad / (1e-3 + grad.abs()), grads)
        return step(small, state, params)

    return fused


class _Scaling(InnerOptimizer):
    def step(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        squared = tree_map(lambda grad: 10 * grad * grad.abs(), grads)
        return super().step(squared, state, params)


MADE_OF_OURS: dict[str, Callable[[], InnerOptimizer]] = {
    "another fused step": lambda: replace(sgd(0.1), fused=_normalised(sgd(0.1))),
    "another update": lambda: replace(sgd(0.1), update=_cubic, fused=None),
    "a subclass": lambda: _Scaling(**{f.name: getattr(sgd(0.1), f.name) for f in fields(sgd(0.1))}),
    "by position": lambda: InnerOptimizer(lambda params: (), _cubic, (), None, True, 0.1),
}


@pytest.mark.parametrize("name", MADE_OF_OURS)
def test_an_optimiser_that_is_made_of_ours_is_not_taken_for_it(name: str) -> None:
    """Its updates are not linear in gradients, whose values are needed then."""
    loss, params, tasks = _problem()
    given: dict[str, Any] = {"optimizer": MADE_OF_OURS[name](), "steps": 3}
    right = meta_gradient(loss, params, tasks, method="reverse", engine="loop", **given)
    found = meta_gradient(loss, params, tasks, method="mixed", engine="batched", **given)
    for a, b in zip(leaves(tuple(found)), leaves(tuple(right)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert sgd(0.1).is_linear
    assert not with_gradients(sgd(0.1), clip_norm=1.0).is_linear


def test_where_queries_are_many_no_graph_is_kept_beside_theirs() -> None:
    """So that `mixed` takes less memory than `reverse` by one step too."""
    loss, params, tasks = _problem()
    (x, y) = tasks.support
    many = TaskBatch(tasks.support, (x.repeat(1, 4, 1, 1, 1), y.repeat(1, 4)))
    given: dict[str, Any] = {"optimizer": sgd(0.1), "steps": 1, "engine": "batched"}
    peaks = {
        method: peak_memory(
            partial(meta_gradient, loss, params, many, method=method, **given), torch.device("cpu")
        )
        for method in ("reverse", "mixed")
    }
    assert peaks["mixed"] < 0.95 * peaks["reverse"]


@pytest.mark.parametrize("kind", [{"constant_slopes": True}, {"many": True}])
def test_a_walk_of_another_kind_records_nothing(kind: dict[str, Any]) -> None:
    way, begin = _walk()
    for name, value in kind.items():
        setattr(way, name, value)
    way.forward(begin, recorded=True)
    assert way.recorded is None


def test_what_was_recorded_is_of_the_last_step_alone() -> None:
    way, begin = _walk()
    values, state = way.forward(begin, recorded=True)
    assert way.recorded is not None
    way.begin([torch.ones_like(value) for value in values], state, at=2)
    assert way.recorded is None


def _walk() -> tuple[BackwardWalk, list[Tensor]]:
    def loss(values: list[Tensor], batch: Any) -> Tensor:
        return (values[0] * batch[0]).square().sum()

    begin = [torch.ones(3, dtype=torch.float64)]
    loop = InnerLoop(loss, [True], sgd(0.1), Eager())
    return BackwardWalk(loop, (torch.ones(3, dtype=torch.float64),), 3), begin
