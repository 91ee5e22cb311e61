"""Scores of support examples by a plain loop over tasks, and small problems for them.

Axes: T tasks, S support examples, Q queries, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import functionalize
from metalearn.types import TaskBatch
from tests.support.oracles import Rule, Tree, draw, generator, inner_loop, task_list

Losses = Callable[[Any, Any], Tensor]


SHAPES = [(5, 4), (3, 7)]
"""Support examples and queries, fewer of either: derivatives are taken backward, or forward."""


class FewShot(NamedTuple):
    """Losses ``[N]`` of samples, a start and tasks, all in float64."""

    losses_fn: Losses
    params: Tree
    tasks: TaskBatch


def few_shot(
    module: nn.Module | None = None, shape: Sequence[int] = (4,), *, tasks: int = 3,
    support: int = 5, query: int = 4, seed: int = 0,
) -> FewShot:  # fmt: skip
    """Cross-entropy with three classes; by default an MLP with a hidden layer."""
    layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    apply, params, buffers = functionalize(draw(layers if module is None else module, seed))

    def losses_fn(params: Any, batch: Any) -> Tensor:
        return F.cross_entropy(apply(params, buffers, batch[0]), batch[1], reduction="none")

    source = generator(seed + 1)

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(tasks, count, *shape, generator=source, dtype=torch.float64)
        return x, torch.randint(3, (tasks, count), generator=source)

    return FewShot(losses_fn, params, TaskBatch(drawn(support), drawn(query)))


def adapted_losses(
    known: FewShot, task: tuple[Any, Any], weights: Tensor, rule: Rule, steps: int, **inner: Any
) -> Tensor:
    """Query losses ``[Q]`` after steps on (1/S)·Σ w_s·ℓ_s, with their graph."""

    def inner_loss(params: Any, batch: Any) -> Tensor:
        return (weights * known.losses_fn(params, batch)).sum() / len(weights)

    start = {n: p.detach().clone().requires_grad_() for n, p in known.params.items()}
    end, _ = inner_loop(inner_loss, start, task[0], rule, steps, **inner)
    return known.losses_fn(end, task[1])


def scores_by_loops(known: FewShot, rule: Callable[[], Rule], steps: int, **inner: Any) -> Tensor:
    """−∂ℓ_q/∂w_s ``[T, Q, S]`` by ordinary autograd, one task and query after another."""
    rows = []
    for task in task_list(known.tasks):
        weights = torch.ones(len(task[0][1]), dtype=torch.float64, requires_grad=True)
        losses = adapted_losses(known, task, weights, rule(), steps, **inner)
        grads = [
            torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)[0]
            for loss in losses
        ]
        rows.append(-torch.stack(grads))
    return torch.stack(rows)
