"""Whole curvature matrices by loops of .backward(), without torch.func.

Axes: N samples, C outputs, P parameters; flat dicts of parameters in their own order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.core import functionalize
from tests.support.oracles import Tree, draw, generator

Outputs = Callable[[Any, Any], Tensor]


def flat(tree: Tree) -> Tensor:
    return torch.cat([tree[name].detach().reshape(-1) for name in tree])


def leaves_of(params: Tree) -> Tree:
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def gradient(scalar: Tensor, params: Tree) -> Tensor:
    """One row [P], by .backward()."""
    for value in params.values():
        value.grad = None
    scalar.backward(retain_graph=True)
    parts = [torch.zeros_like(v) if v.grad is None else v.grad for v in params.values()]
    return torch.cat([part.reshape(-1) for part in parts]).clone()


def jacobians(outputs_fn: Outputs, params: Tree, inputs: Tensor) -> Tensor:
    """∂f(x_n)/∂θ of each sample alone, [N, C, P]."""
    params, rows = leaves_of(params), []
    for n in range(len(inputs)):
        outputs = outputs_fn(params, inputs[n : n + 1])[0]
        rows.append(torch.stack([gradient(value, params) for value in outputs]))
    return torch.stack(rows)


def log_density(outputs: Tensor, target: Tensor, likelihood: str, variance: float = 1.0) -> Tensor:
    """log p(y | f) of one sample."""
    if likelihood == "categorical":
        return torch.log(torch.exp(outputs[target]) / torch.exp(outputs).sum())
    constant = 0.5 * len(outputs) * math.log(2 * math.pi * variance)
    return -((outputs - target) ** 2).sum() / (2 * variance) - constant


def score(outputs_fn: Outputs, params: Tree, x: Tensor, y: Tensor, *rule: Any) -> Tensor:
    """∇ log p(y | f(x)), [P]."""
    params = leaves_of(params)
    return gradient(log_density(outputs_fn(params, x[None])[0], y, *rule), params)


def exact_fisher(
    outputs_fn: Outputs, params: Tree, inputs: Tensor, likelihood: str, variance: float = 1.0
) -> Tensor:
    """1/N Σ_n E_y[∇ log p ∇ log pᵀ]: over all classes by their probability; Gaussian by J."""
    total: Any = 0.0
    if likelihood == "gaussian":
        for rows in jacobians(outputs_fn, params, inputs):
            total = total + rows.mT @ rows / variance
        return total / len(inputs)
    for x in inputs:
        chances = outputs_fn(params, x[None])[0].detach().softmax(-1)
        for c, chance in enumerate(chances):
            row = score(outputs_fn, params, x, torch.tensor(c), likelihood)
            total = total + chance * torch.outer(row, row)
    return total / len(inputs)


def empirical_fisher(
    outputs_fn: Outputs, params: Tree, inputs: Tensor, targets: Tensor, *rule: Any
) -> Tensor:
    rows = [score(outputs_fn, params, x, y, *rule) for x, y in zip(inputs, targets)]
    return sum((torch.outer(row, row) for row in rows), torch.zeros(())) / len(rows)


def hessian(loss: Callable[[Tree], Tensor], params: Tree) -> Tensor:
    """[P, P], row by row through a graph of the gradient."""
    params = leaves_of(params)
    grads = torch.autograd.grad(loss(params), list(params.values()), create_graph=True)
    entries = torch.cat([g.reshape(-1) for g in grads])
    return torch.stack([gradient(entry, params) for entry in entries])


def matrix_of(operator: Callable[[Tree], Tree], like: Tree) -> Tensor:
    """An operator applied to one unit vector after another, [P, P]."""
    size = sum(value.numel() for value in like.values())
    columns = []
    for i in range(size):
        unit, tree, start = torch.zeros(size, dtype=torch.float64), {}, 0
        unit[i] = 1
        for name, value in like.items():
            tree[name] = unit[start : start + value.numel()].reshape(value.shape)
            start += value.numel()
        columns.append(flat(operator(tree)))
    return torch.stack(columns, dim=1)


# --- small problems --------------------------------------------------------------------------


def model(module: nn.Module) -> tuple[Outputs, Tree]:
    apply, params, buffers = functionalize(module)
    return lambda params, inputs: apply(params, buffers, inputs), params


def perceptron(inputs: int = 3, outputs: int = 3, seed: int = 0) -> nn.Module:
    layers = (nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs))
    return draw(nn.Sequential(*layers), seed)


def convolutional(seed: int = 0) -> nn.Module:
    """1×5×5 pictures, two convolutions (one without a bias), three outputs."""
    layers = (
        nn.Conv2d(1, 2, 3, padding=1, stride=2), nn.Tanh(),
        nn.Conv2d(2, 3, 2, bias=False, padding="same", dilation=1), nn.Softplus(), nn.Flatten(),
    )  # fmt: skip
    return draw(nn.Sequential(*layers, nn.Linear(27, 3)), seed)


def data(
    count: int, shape: tuple[int, ...], outputs: int, likelihood: str, seed: int = 0
) -> tuple[Tensor, Tensor]:
    source = generator(seed + 50)
    x = torch.randn((count, *shape), generator=source, dtype=torch.float64)
    if likelihood == "categorical":
        return x, torch.arange(count) % outputs
    return x, torch.randn((count, outputs), generator=source, dtype=torch.float64)


def stacked(trees: list[Tree]) -> Tree:
    return {name: torch.stack([tree[name] for tree in trees]) for name in trees[0]}


def member(tree: Any, index: int) -> Any:
    """Entry ``index`` of every leaf's first axis."""
    return torch.utils._pytree.tree_map(lambda leaf: leaf[index], tree)


def close(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Within ``tolerance``, relative to the largest entry."""
    size = max(float(torch.as_tensor(expected).abs().max()), 1e-12)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * size)
