"""How often `mixed` takes a step again, and that its gradient is that of `reverse`.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn.core import adam, functionalize, meta_gradient, sgd, with_gradients
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.tree import leaves
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
