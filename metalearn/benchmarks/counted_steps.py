"""Bytes and floating-point operations of training steps, counted on networks without values.

The bytes are those that the library hands to `metalearn.ranks.Ranks.sums`, the operations what
torch counts under the library's own gradients: products and convolutions, a multiplication and an
addition being two. Nothing is computed: tensors are torch's fake ones.

Axes: T tasks, N samples, M members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from metalearn.core import clipped_gradient, meta_gradient, sgd
from metalearn.core.module.norms import convert_norm
from metalearn.core.tree import tree_map
from metalearn.models import Conv4, ResNet12, ViT
from metalearn.ranks import OneRank
from metalearn.ranks.processes import messages_of
from metalearn.trainers.loop.reduction import reduced
from metalearn.trainers.loop.step import StepGradient
from metalearn.types import TaskBatch

__all__ = ["NETWORKS", "CountedStep", "counted_steps", "messages", "task_operations"]

_WAY, _SHOT, _QUERIES, _STEPS = 5, 1, 15, 5
"""Of a task: 5-way 1-shot, 15 queries of each class, five inner steps."""
_TASKS, _SAMPLES, _MEMBERS, _MEMBER_BATCH = 512, 32768, 512, 64


@dataclass(frozen=True)
class CountedNetwork:
    """A network of the library, and the pictures that it sees."""

    title: str
    make: Callable[[], nn.Module]
    side: int


NETWORKS = {
    "conv4": CountedNetwork("conv4, 84×84", lambda: Conv4((3, 84, 84), _WAY), 84),
    "resnet12": CountedNetwork("ResNet-12, 84×84", lambda: ResNet12((3, 84, 84), _WAY), 84),
    "vit_s": CountedNetwork(
        "ViT-S/16, 224×224",
        lambda: ViT((3, 224, 224), _WAY, patch=16, width=384, depth=12, heads=6, hidden=4),
        224,
    ),
}


@dataclass(frozen=True)
class CountedStep:
    """A step that ranks share."""

    title: str
    batch: int
    """Tasks, samples or members of a step: what is divided."""
    operations: float
    """Floating-point operations for each of them."""
    messages: tuple[int, ...]
    """Bytes of each sum over ranks in a step."""


def counted_steps() -> list[CountedStep]:
    """Meta-gradients, clipped gradients and members of each of the networks."""
    found = []
    for one in NETWORKS.values():
        sent = messages(one)
        title = f"{one.title}: tasks"
        found.append(CountedStep(title, _TASKS, task_operations(one), sent))
    for one in NETWORKS.values():
        title = f"{one.title}: samples, clipped"
        found.append(CountedStep(title, _SAMPLES, sample_operations(one), messages(one)))
    for one in NETWORKS.values():
        title = f"{one.title}: members"
        found.append(CountedStep(title, _MEMBERS, member_operations(one), ()))
    return found


class _Counting(OneRank):
    """The first of two ranks, which hears what is to be summed."""

    count = 2

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def sums(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values; the bytes of every message are kept."""
        for names in messages_of(values):
            self.sizes.append(sum(values[n].numel() * values[n].element_size() for n in names))
        return dict(values)


def messages(network: CountedNetwork) -> tuple[int, ...]:
    """Bytes of the messages in which a network's gradients are summed in a step on cards."""
    module, ranks = network.make(), _Counting()
    grads = {name: value.detach().to("meta") for name, value in module.named_parameters()}
    losses = torch.zeros(1, device="meta")  # which is no processor, as a card is none
    reduced(StepGradient(grads, losses, count=1), ranks)
    return tuple(ranks.sizes)


def task_operations(network: CountedNetwork) -> float:
    """Of one task's meta-gradient of second order, K inner steps.

    They are F(0) + K·(F(1) − F(0)) exactly, as every inner step does the same.
    """

    def count(loss: Any, params: Any, pictures: Callable[[int], Any]) -> list[int]:
        parts: Any = [pictures(_WAY * size) for size in (_SHOT, _QUERIES)]
        tasks = TaskBatch(*tree_map(lambda part: part[None], parts))
        how: Any = {"optimizer": sgd(0.1), "engine": "loop", "method": "reverse"}
        run = partial(meta_gradient, loss, params, tasks, **how)
        return [_operations(partial(run, steps=steps)) for steps in (0, 1)]

    none, one = _without_values(network.make(), network.side, count)
    return float(none + _STEPS * (one - none))


def sample_operations(network: CountedNetwork) -> float:
    """Of one sample's part of a clipped gradient, batch norms being group norms."""

    def count(loss: Any, params: Any, pictures: Callable[[int], Any]) -> int:
        return _operations(lambda: clipped_gradient(loss, params, pictures(8), max_norm=1.0))

    module = convert_norm(network.make(), "group")
    return float(_without_values(module, network.side, count)) / 8


def member_operations(network: CountedNetwork) -> float:
    """Of a member's gradient of its batch."""

    def count(loss: Any, params: Any, pictures: Callable[[int], Any]) -> int:
        return _operations(lambda: torch.func.grad(loss)(params, pictures(_MEMBER_BATCH)))

    return float(_without_values(network.make(), network.side, count))


def _operations(function: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def _without_values(module: nn.Module, side: int, count: Callable[..., Any]) -> Any:
    """What is counted, given the loss, the parameters and pictures of a network of fake tensors."""

    def loss(params: Any, batch: Any) -> Tensor:
        return F.cross_entropy(functional_call(module, params, (batch[0],)), batch[1])

    def pictures(number: int) -> tuple[Tensor, Tensor]:
        return torch.empty(number, 3, side, side), torch.empty(number, dtype=torch.long)

    mode = FakeTensorMode()
    known = {name: value.detach() for name, value in module.named_parameters()}
    params = {name: mode.from_tensor(value) for name, value in known.items()}
    with mode:
        return count(loss, params, pictures)
