"""A trained network, the batch on which its Hessian is taken, and that Hessian the slow way.

Axes: N samples, P parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from metalearn.core import functionalize, hessian_operator, tree
from metalearn.core.curvature.operators import Operator
from metalearn.models import Conv4

__all__ = ["CurvatureProblem", "ProblemNorm", "eigenvalues", "product_by_autograd", "trained_conv4"]

ProblemNorm = Literal["none", "batch_stats"]


@dataclass(frozen=True)
class CurvatureProblem:
    """A classifier and the batch on which its Hessian is taken."""

    title: str
    module: nn.Module
    inputs: Tensor
    targets: Tensor

    def params(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The parameters."""
        return {n: p.to(dtype) for n, p in functionalize(self.module)[1].items()}

    def direction(self, dtype: torch.dtype) -> Tensor:
        """A random vector ``[P]`` to multiply, the same at every call."""
        size = len(tree.ravel(self.params(dtype))[0])
        return torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)

    def loss(self, params: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy."""
        apply, _, buffers = functionalize(self.module)
        inputs = self.inputs.to(next(iter(params.values())).dtype)
        return nn.functional.cross_entropy(apply(params, buffers, inputs), self.targets)

    def operator(self, params: dict[str, Tensor]) -> Operator:
        """Hessian products."""
        batch = (self.inputs, self.targets)
        return hessian_operator(lambda p, _: self.loss(p), params, [batch])


def trained_conv4(
    *,
    norm: ProblemNorm = "batch_stats",
    filters: int = 8,
    size: int = 20,
    classes: int = 5,
    samples: int = 40,
    steps: int = 60,
) -> CurvatureProblem:
    """A conv4 in float32 after some steps of Adam on noisy pictures of a few patterns.

    ``norm="none"`` leaves the normalisation out.
    """
    source = torch.Generator().manual_seed(0)
    patterns = torch.randn(classes, 1, size, size, generator=source)
    targets = torch.arange(samples) % classes
    inputs = patterns[targets] + torch.randn(samples, 1, size, size, generator=source)
    module = Conv4((1, size, size), classes, filters=filters)
    if norm == "none":
        for block in module.blocks:
            cast(nn.Sequential, block)[1] = nn.Identity()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    count = sum(p.numel() for p in module.parameters())
    name = "conv4 with batch norm" if norm == "batch_stats" else "conv4 without norms"
    title = f"{name}, {filters} filters, P = {count}, N = {samples}"
    return CurvatureProblem(title, module, inputs, targets)


def eigenvalues(problem: CurvatureProblem) -> Tensor:
    """All P, ascending, from the whole Hessian in float64."""
    params = problem.params(torch.float64)
    operator = problem.operator(params)
    flat, unravel = tree.ravel(params)
    eye = torch.eye(len(flat), dtype=flat.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = partial(_flat_product, operator, unravel)
        rows = torch.vmap(row, chunk_size=16)(eye)
    values: Tensor = torch.linalg.eigvalsh(0.5 * (rows + rows.mT))
    return values


def _flat_product(
    operator: Callable[[Any], Any], unravel: Callable[[Tensor], Any], vector: Tensor
) -> Tensor:
    return tree.ravel(operator(unravel(vector)))[0]


def product_by_autograd(problem: CurvatureProblem) -> Tensor:
    """Hessian times `direction`, by two ordinary backward passes in float64."""
    params = [p.requires_grad_() for p in problem.params(torch.float64).values()]
    names = problem.params(torch.float64)
    loss = problem.loss(dict(zip(names, params)))
    grads = torch.autograd.grad(loss, params, create_graph=True)
    total = torch.cat([g.reshape(-1) for g in grads]) @ problem.direction(torch.float64)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, params)])
