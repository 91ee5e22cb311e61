"""Inner loops with learnt hyperparameters, unrolled by hand with ordinary autograd in float64.

Formulas are those of the docstrings of ``torch.optim``, written out. Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.support.oracles import Problem, Tree, task_list

Rate = Callable[[str, int], Any]
"""The step size of a parameter, by its name, at step k."""
Update = Callable[[str, int, Tensor, Tensor, dict[str, Any]], Tensor]
"""A parameter after a step: of its name, k, its value, its gradient and what is remembered."""


def sgd(
    rate: Rate, *, momentum: Any = 0.0, weight_decay: Any = 0.0, nesterov: bool = False
) -> Update:
    def update(name: str, k: int, value: Tensor, grad: Tensor, memory: dict[str, Any]) -> Tensor:
        grad = grad + weight_decay * value
        buffer = grad if k == 0 else momentum * memory[name] + grad
        memory[name] = buffer
        return value - rate(name, k) * (grad + momentum * buffer if nesterov else buffer)

    return update


def adam(
    rate: Rate, *, beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 1e-16,
    weight_decay: Any = 0.0, decoupled: bool = False,
) -> Update:  # fmt: skip
    def update(name: str, k: int, value: Tensor, grad: Tensor, memory: dict[str, Any]) -> Tensor:
        start = value
        if decoupled:
            start = value - rate(name, k) * weight_decay * value
        else:
            grad = grad + weight_decay * value
        first, second = memory.get(name, (0.0, 0.0))
        first = beta1 * first + (1 - beta1) * grad
        second = beta2 * second + (1 - beta2) * grad**2
        memory[name] = (first, second)
        corrected = first / (1 - beta1 ** (k + 1)), second / (1 - beta2 ** (k + 1))
        return start - rate(name, k) * corrected[0] / ((corrected[1] + eps_root).sqrt() + eps)

    return update


class Unrolled(NamedTuple):
    grads: Tree
    """Mean over tasks, of the parameters."""
    learnt: list[Tensor]
    """Mean over tasks, of each tensor that is learnt."""
    query_losses: Tensor
    """``[T]``, the weighted sums."""


def unrolled(
    case: Problem, update: Update, steps: int, learnt: Sequence[Tensor] = (), *,
    weights: Sequence[Any] | None = None, first_order: bool = False, frozen: Sequence[str] = (),
) -> Unrolled:  # fmt: skip
    """The gradient through K steps by one backward pass through the whole loop.

    With ``first_order``, inner gradients are constants, and the gradient of the parameters is the
    weighted sum of those of the query loss at θ_k. What is learnt has to require gradients.
    """
    weights = [0.0] * steps + [1.0] if weights is None else weights
    start = {n: v.detach().clone().requires_grad_() for n, v in case.params.items()}
    objectives, direct = [], {n: torch.zeros_like(v) for n, v in start.items()}
    pairs = task_list(case.tasks)
    for support, query in pairs:
        values, memory, total = dict(start), {}, torch.zeros((), dtype=torch.float64)
        for k, weight in enumerate(weights):
            loss = case.loss_fn(values, query)
            total = total + weight * loss
            here = torch.autograd.grad(
                loss, list(values.values()), retain_graph=True, materialize_grads=True
            )
            for name, grad in zip(values, here):
                direct[name] = direct[name] + weight * grad.detach() / len(pairs)
            if k < steps:
                moving = [name for name in values if name not in frozen]
                grads = torch.autograd.grad(
                    case.loss_fn(values, support), [values[n] for n in moving],
                    create_graph=not first_order, retain_graph=True, materialize_grads=True,
                )  # fmt: skip
                moved = {
                    name: update(name, k, values[name], grad, memory)
                    for name, grad in zip(moving, grads)
                }
                values = {**values, **moved}
        objectives.append(total)
    losses = torch.stack(objectives)
    found = torch.autograd.grad(
        losses.mean(), [*start.values(), *learnt], materialize_grads=True, allow_unused=True
    )
    exact = dict(zip(start, found))
    detached = {name: grad.detach() for name, grad in direct.items()}
    return Unrolled(detached if first_order else exact, list(found[len(start) :]), losses.detach())
