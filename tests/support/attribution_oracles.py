"""Scores of examples by slow loops over single samples, and small problems for them.

Axes: R targets, N examples, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import functionalize
from metalearn.core.tree import leaves, tree_map
from tests.support.oracles import draw, generator

Loss = Callable[[Any, Any], Tensor]


class Trained(NamedTuple):
    """A network in float64 with what scores are asked of."""

    module: nn.Module
    outputs_fn: Callable[[Any, Any], Tensor]
    loss_fn: Loss
    params: dict[str, Tensor]
    targets: Any
    examples: Any


def classifier(
    targets: int = 3, examples: int = 7, *, seed: int = 0, module: nn.Module | None = None
) -> Trained:
    """An MLP with a hidden layer on random inputs, cross-entropy with three classes."""
    layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    module = draw(layers if module is None else module, seed)
    apply, params, buffers = functionalize(module)

    def outputs_fn(params: Any, inputs: Any) -> Tensor:
        found: Tensor = apply(params, buffers, inputs)
        return found

    def loss_fn(params: Any, batch: Any) -> Tensor:
        return F.cross_entropy(outputs_fn(params, batch[0]), batch[1])

    x = torch.randn(targets + examples, 4, generator=generator(seed + 1), dtype=torch.float64)
    y = torch.arange(targets + examples) % 3
    r, i = slice(targets), slice(targets, None)
    return Trained(module, outputs_fn, loss_fn, params, (x[r], y[r]), (x[i], y[i]))


def samples(batch: Any) -> list[Any]:
    """Batches of one sample."""
    count = len(leaves(batch)[0])
    return [tree_map(lambda x, i=i: x[i : i + 1], batch) for i in range(count)]


def gradient_row(loss_fn: Loss, params: dict[str, Tensor], batch: Any) -> Tensor:
    """∇L ``[P]`` by an ordinary backward pass, in the order of the dict."""
    values = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    grads = torch.autograd.grad(
        loss_fn(values, batch), list(values.values()), materialize_grads=True
    )
    return torch.cat([grad.reshape(-1) for grad in grads])


def gradient_rows(loss_fn: Loss, params: dict[str, Tensor], batch: Any) -> Tensor:
    """Gradients of all samples, ``[N, P]``."""
    return torch.stack([gradient_row(loss_fn, params, sample) for sample in samples(batch)])


def chosen(params: dict[str, Tensor], prefix: str) -> Tensor:
    """Which of the P elements belong to parameters whose name begins so."""
    hits = [torch.full((p.numel(),), name.startswith(prefix)) for name, p in params.items()]
    return torch.cat(hits)


def others(params: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """So many other places, random ones, for checkpoints and models."""
    return [
        {n: torch.randn(p.shape, generator=generator(10 + s), dtype=p.dtype) for n, p in
         params.items()}
        for s in range(count)
    ]  # fmt: skip
