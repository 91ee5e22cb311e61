"""The slow and obvious versions, in float64 and without torch.func: what the fast ones must equal.

Axes: T tasks, N samples, K inner steps, P parameters.
Parameters are flat dicts here, tasks are plain Python lists, loops are loops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metalearn.core import functionalize
from metalearn.types import TaskBatch
from tests.support.devices import DEVICE, on_device

Tree = dict[str, Tensor]
Loss = Callable[[Any, Any], Tensor]
Rule = Callable[[list[Tensor], list[Tensor], dict[str, Any]], list[Tensor]]


class Problem(NamedTuple):
    """A loss, the parameters to start from and a batch of tasks, all in float64."""

    loss_fn: Loss
    params: Tree
    tasks: TaskBatch


# --- inner optimisers, written from the textbook ---------------------------------------------


def sgd_rule(lr: float | Tensor, momentum: float = 0.0, weight_decay: float = 0.0) -> Rule:
    def step(values: list[Tensor], grads: list[Tensor], memory: dict[str, Any]) -> list[Tensor]:
        moved = []
        for i, (value, grad) in enumerate(zip(values, grads)):
            direction = grad + weight_decay * value
            if i in memory:
                direction = momentum * memory[i] + direction
            memory[i] = direction
            moved.append(value - lr * direction)
        return moved

    return step


def adam_rule(
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_root: float = 1e-16,
) -> Rule:
    def step(values: list[Tensor], grads: list[Tensor], memory: dict[str, Any]) -> list[Tensor]:
        memory["t"] = t = memory.get("t", 0) + 1
        moved = []
        for i, (value, grad) in enumerate(zip(values, grads)):
            first, second = memory.get(i, (0.0, 0.0))
            first = betas[0] * first + (1 - betas[0]) * grad
            second = betas[1] * second + (1 - betas[1]) * grad**2
            memory[i] = (first, second)
            root = torch.sqrt(second / (1 - betas[1] ** t) + eps_root)
            moved.append(value - lr * (first / (1 - betas[0] ** t)) / (root + eps))
        return moved

    return step


# --- MAML, one task after another ------------------------------------------------------------


def inner_loop(
    loss_fn: Loss, params: Tree, support: Any, rule: Rule, steps: int,
    frozen: Sequence[str] = (), create_graph: bool = True,
) -> tuple[Tree, list[Tensor]]:  # fmt: skip
    """Unrolled inner steps with ordinary autograd; the graph reaches back to ``params``."""
    params, memory, losses = dict(params), {}, []
    names = [name for name in params if name not in frozen]
    for _ in range(steps):
        loss = loss_fn(params, support)
        grads = torch.autograd.grad(
            loss,
            [params[name] for name in names],
            create_graph=create_graph,
            materialize_grads=True,
        )
        moved = rule([params[name] for name in names], list(grads), memory)
        if not create_graph:
            moved = [value.detach().requires_grad_() for value in moved]
        params.update(zip(names, moved))
        losses.append(loss)
    return params, losses


def tree_map(function: Callable[[Tensor], Any], batch: Any) -> Any:
    if isinstance(batch, dict):
        return {name: tree_map(function, part) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)([tree_map(function, part) for part in batch])
    return function(batch)


def task_list(tasks: TaskBatch) -> list[tuple[Any, Any]]:
    leaf = tasks.support
    while not isinstance(leaf, Tensor):
        leaf = next(iter(leaf.values())) if isinstance(leaf, dict) else leaf[0]
    return [
        (tree_map(itemgetter(t), tasks.support), tree_map(itemgetter(t), tasks.query))
        for t in range(len(leaf))
    ]


def maml(
    problem: Problem, rule: Rule, steps: int, *, first_order: bool = False, **inner: Any
) -> tuple[Tree, Tensor, Tensor]:
    """Meta-gradient, query losses [T] and support losses [T, K] of MAML or FOMAML."""
    loss_fn, params, tasks = problem
    start = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    queries, supports = [], []
    pairs = task_list(tasks)
    for support, query in pairs:
        end, losses = inner_loop(loss_fn, start, support, rule, steps, **inner)
        if first_order:  # the query gradient at the adapted parameters, which are cut loose
            end = {name: value.detach().requires_grad_() for name, value in end.items()}
        query_loss = loss_fn(end, query)
        at = end if first_order else start
        grads = torch.autograd.grad(query_loss, list(at.values()), materialize_grads=True)
        for name, grad in zip(at, grads):
            total[name] += grad / len(pairs)
        queries.append(query_loss.detach())
        supports.append([float(loss.detach()) for loss in losses])
    losses = torch.stack(queries)
    return total, losses, losses.new_tensor(supports).reshape(len(pairs), steps)


def meta_loss(problem: Problem, rule: Rule, steps: int, **inner: Any) -> float:
    """Mean query loss after adaptation."""
    params = {name: value.detach().requires_grad_() for name, value in problem.params.items()}
    losses = []
    for support, query in task_list(problem.tasks):
        with torch.enable_grad():
            end, _ = inner_loop(
                problem.loss_fn, params, support, rule, steps, create_graph=False, **inner
            )
        with torch.no_grad():
            losses.append(float(problem.loss_fn(end, query)))
    return sum(losses) / len(losses)


def central_differences(
    function: Callable[[Tree], float], params: Tree, width: float = 1e-5
) -> Tree:
    """(f(θ + h e_i) − f(θ − h e_i)) / 2h for each of the P coordinates."""
    grads = {}
    for name, value in params.items():
        flat, grad = value.detach().clone().reshape(-1), []
        for i in range(flat.numel()):
            ends = []
            for sign in (1, -1):
                moved = flat.clone()
                moved[i] += sign * width
                ends.append(function({**params, name: moved.reshape(value.shape)}))
            grad.append((ends[0] - ends[1]) / (2 * width))
        grads[name] = value.new_tensor(grad, dtype=torch.float64).reshape(value.shape)
    return grads


def finite_difference_maml(problem: Problem, rule: Rule, steps: int, **inner: Any) -> Tree:
    return central_differences(
        lambda params: meta_loss(problem._replace(params=params), rule, steps, **inner),
        problem.params,
    )


# --- small problems --------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64, its parameters drawn from a generator (norms are not at 1 and 0)."""
    source = generator(seed)
    module = module.double().to(DEVICE)
    with torch.no_grad():
        for value in module.parameters():
            fan = math.prod(value.shape[1:]) if value.dim() > 1 else 4
            noise = torch.randn(value.shape, generator=source, dtype=torch.float64)
            value.copy_(noise / math.sqrt(fan) + (0.8 if value.dim() == 1 else 0.0))
    return module


def classification(
    module: nn.Module, shape: Sequence[int], *, tasks: int = 2, samples: int = 4, classes: int = 2,
    seed: int = 0, vectorize: bool = True,
) -> Problem:  # fmt: skip
    """Cross-entropy of a module on pictures of noise with labels in turn."""
    source = generator(seed + 100)
    apply, params, buffers = functionalize(module, vectorize=vectorize)

    def loss_fn(params: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(apply(params, buffers, batch[0]), batch[1])

    def half() -> tuple[Tensor, Tensor]:
        x = torch.randn((tasks, samples, *shape), generator=source, dtype=torch.float64)
        return on_device((x, (torch.arange(samples) % classes).repeat(tasks, 1)))

    return Problem(loss_fn, params, TaskBatch(half(), half()))


def mlp(seed: int = 0) -> nn.Module:
    """Smooth, so that finite differences are trustworthy; P = 23."""
    return draw(
        nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Softplus(), nn.Linear(2, 2)),
        seed,
    )


def conv(norm: Callable[[int], nn.Module] | None = None, seed: int = 0) -> nn.Module:
    """Convolution, normalisation, smooth activation, linear head; 1×4×4 pictures."""
    norm = norm or (lambda channels: nn.BatchNorm2d(channels, track_running_stats=False))
    layers = (nn.Conv2d(1, 2, 3, stride=2, padding=1), norm(2), nn.Softplus(), nn.Flatten())
    return draw(nn.Sequential(*layers, nn.Linear(8, 2)), seed)


def assert_trees(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Same structure, and every leaf within ``tolerance``, relative to the largest entry."""
    largest = max(float(value.detach().abs().max()) for value in expected.values() if value.numel())
    assert set(actual) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=0, atol=tolerance * max(largest, 1e-3),
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip
