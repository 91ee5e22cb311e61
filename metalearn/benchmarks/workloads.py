"""What is timed: a network, a batch of tasks, a number of inner steps, and its floor.

Axes: T tasks, B samples, N = B·positions rows, K columns, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import functionalize
from metalearn.models import MLP, Conv4, ResNet12
from metalearn.signatures import known_fields
from metalearn.types import Batch, LossFn, TaskBatch

__all__ = ["WORKLOADS", "Workload"]

Criterion = Callable[[Tensor, Tensor], Tensor]


@known_fields
@dataclass(frozen=True)
class Workload:
    """One meta-gradient to be timed; weights and data follow from its numbers."""

    title: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    way: int | None
    """Classes; None for regression."""
    support: int
    query: int
    """Samples of a task's support and query set."""
    tasks: int
    steps: int
    lr: float = 0.1
    first: int = 0
    """Where in the sequence of tasks the batch begins."""
    device: str = "cpu"
    """Where weights and data are."""

    def module(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network, the same at every call."""
        return self.make().to(self.device, dtype)

    def batch(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> TaskBatch:
        """Tasks of noise, labels in turn; a task is the same in every batch."""
        sources = [
            torch.Generator().manual_seed(1_000_000 * seed + self.first + t)
            for t in range(self.tasks)
        ]

        def half(samples: int) -> Batch:
            shape = (samples, *self.input_shape)
            draws = [torch.randn(shape, generator=g, dtype=torch.float64) for g in sources]
            x = torch.stack(draws).to(self.device, dtype)
            if self.way is None:
                return x, torch.sin(x)
            labels = torch.arange(samples, device=self.device) % self.way
            return x, labels.repeat(self.tasks, 1)

        return TaskBatch(half(self.support), half(self.query))

    @property
    def criterion(self) -> Criterion:
        """Mean loss of outputs and targets."""
        return F.mse_loss if self.way is None else F.cross_entropy

    def problem(self, module: nn.Module) -> tuple[LossFn, dict[str, Tensor]]:
        """Loss function and parameters."""
        apply, params, buffers = functionalize(module)

        def loss_fn(params: dict[str, Tensor], batch: Batch) -> Tensor:
            return self.criterion(apply(params, buffers, batch[0]), batch[1])

        return loss_fn, params

    def floor(self, *, second_order: bool) -> Callable[[], None]:
        """The matrix products that the arithmetic needs and nothing else, as one function.

        A layer z = columns·w needs 1 product forward and 2 backward, and a Hessian product needs 2
        forward and 4 backward: 9 a step in second order, 3 in first, 3 for the query. The first
        layer's input needs no gradient: 4, 2 and 2.
        """
        products: list[tuple[Tensor, Tensor, int]] = []
        for samples, steps in ((self.support, self.steps), (self.query, 0)):
            for first, (rows, columns, outputs) in self._layers(samples):
                each = (4 if first else 9) if second_order else (2 if first else 3)
                count = each * steps if steps else (2 if first else 3)
                a = torch.ones(self.tasks, rows, columns, device=self.device)
                b = torch.ones(self.tasks, columns, outputs, device=self.device)
                products.append((a, b, count))

        def run() -> None:
            for a, b, count in products:
                for _ in range(count):
                    torch.bmm(a, b)

        return run

    @property
    def has_convolutions(self) -> bool:
        """Whether its network has some."""
        return any(isinstance(layer, nn.Conv2d) for layer in self.module().modules())

    def _layers(self, samples: int) -> list[tuple[bool, tuple[int, int, int]]]:
        """For each layer with weights: whether it is the first, and its product's N, K, O."""
        found: list[tuple[int, int, int]] = []

        def note(layer: nn.Module, _: object, output: Tensor) -> None:
            weight = layer.get_parameter("weight")
            outputs = len(weight)
            found.append((output.numel() // outputs, weight[0].numel(), outputs))

        module = self.module()
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(note)
        with torch.no_grad():
            module(torch.zeros(samples, *self.input_shape, device=self.device))
        return [(i == 0, shape) for i, shape in enumerate(found)]


_PICTURE, _PHOTO = (1, 28, 28), (3, 84, 84)
_conv4 = partial(Conv4, _PICTURE, pool="flatten")

WORKLOADS: dict[str, Workload] = {
    "W1": Workload(
        "5-way 1-shot 1 query, 32 tasks, 1 step", partial(_conv4, 5), _PICTURE, 5, 5, 5, 32, 1
    ),
    "W2": Workload(
        "20-way 1-shot 1 query, 8 tasks, 5 steps", partial(_conv4, 20), _PICTURE, 20, 20, 20, 8, 5
    ),
    "max_pool": Workload(
        "max-pool conv4, 5-way 1-shot 1 query, 8 tasks, 1 step",
        partial(_conv4, 5, downsample="max_pool"), _PICTURE, 5, 5, 5, 8, 1,
    ),
    "queries": Workload(
        "5-way 1-shot 15 queries, 16 tasks, 1 step", partial(_conv4, 5), _PICTURE, 5, 5, 75, 16, 1
    ),
    "sinusoid": Workload(
        "sinusoid MLP 40-40, 10 shots, 25 tasks, 1 step",
        partial(MLP, (1,), 1), (1,), None, 10, 10, 25, 1, 0.01,
    ),
    "mini_imagenet": Workload(
        "max-pool conv4 of 32 filters on 3×84×84, 5-way 1-shot 15 queries, 4 tasks, 5 steps",
        partial(Conv4, _PHOTO, 5, filters=32, downsample="max_pool", pool="flatten"),
        _PHOTO, 5, 5, 75, 4, 5,
    ),
    "resnet12": Workload(
        "ResNet-12 of 16-32-64-128 filters on 3×84×84, 5-way 1-shot 1 query, 4 tasks, 2 steps",
        partial(ResNet12, _PHOTO, 5, filters=(16, 32, 64, 128)), _PHOTO, 5, 5, 5, 4, 2,
    ),
}  # fmt: skip
