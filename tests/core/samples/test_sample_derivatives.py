"""Derivatives of per-sample gradients and of what is made from them.

Axes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import (
    clipped_gradient,
    functionalize,
    per_sample_gradients,
    per_sample_norms,
)
from tests.support.sample_oracles import build, noise

close = partial(torch.testing.assert_close, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["mlp", "many channels, large", "norms", "embedding", "tied"])
def test_gradients_can_be_differentiated(name: str) -> None:
    """Σ_i ‖g_i‖⁴, by torch.func in both modes and by .backward() through the parameters."""
    _, loss, params, batch = build(name)

    def quartic(params: Any) -> Tensor:
        norms: Any = per_sample_norms(loss, params, batch)
        grads = per_sample_gradients(loss, params, batch)
        squares = [g.reshape(len(g), -1).square().sum(1) for g in grads.values()]
        return (norms.square() * torch.stack(squares).sum(0)).sum()

    def plain(params: Any) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(len(batch[0])):
            one = tuple(part[i : i + 1] for part in batch)
            grads = torch.autograd.grad(loss(params, one), list(params.values()), create_graph=True)
            total = total + torch.cat([g.flatten() for g in grads]).square().sum().square()
        return total

    leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
    wanted = torch.autograd.grad(plain(leaves), list(leaves.values()))
    found = torch.func.grad(quartic)(params)
    torch.autograd.backward(quartic(leaves))
    for n, g in zip(params, wanted):
        close(found[n], g, rtol=1e-9, atol=1e-9, msg=n)
        close(leaves[n].grad, g, rtol=1e-9, atol=1e-9, msg=n)
    directions = {n: noise(*p.shape, seed=7) for n, p in params.items()}
    if name == "embedding":  # the row of padding has no gradient, by convention
        directions["0.weight"][0] = 0
    _, slope = torch.func.jvp(quartic, (params,), (directions,))
    close(slope, sum((directions[n] * g).sum() for n, g in zip(params, wanted)), rtol=1e-9)


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: nn.LayerNorm(6), (6,)),
    "layer, bare": (lambda: nn.LayerNorm((2, 3), elementwise_affine=False), (2, 3)),
    "instance": (lambda: nn.InstanceNorm1d(2, affine=True), (2, 3)),
    "instance, bare": (lambda: nn.InstanceNorm1d(2), (2, 3)),
    "group": (lambda: nn.GroupNorm(2, 2), (2, 3)),
    "batch": (lambda: nn.BatchNorm1d(2, track_running_stats=False), (2, 3)),
    "evaluated": (lambda: nn.BatchNorm1d(6).eval(), (6,)),
    "instance, evaluated": (lambda: nn.InstanceNorm1d(2, track_running_stats=True).eval(), (2, 3)),
}


@pytest.mark.parametrize("method", ["layers", "vmap"])
@pytest.mark.parametrize("name", NORMS)
def test_derivatives_through_norms(name: str, method: Any) -> None:
    """Torch's own are wrong behind a vmap: norms and clipped gradients, by differences."""
    norm, shape = NORMS[name]
    apply, affine, buffers = functionalize(norm().double())
    params = {"w": noise(6, 6)} | {n: noise(*p.shape, seed=3) for n, p in affine.items()}

    def loss(params: Any, batch: Any) -> Tensor:
        z = F.linear(batch[0], params["w"]).reshape(-1, *shape)
        return apply(params, buffers, z).sin().square().sum() / len(z)

    def value(params: Any) -> Tensor:
        batch = (noise(4, 6, seed=4),)
        norms: Any = per_sample_norms(loss, params, batch, method=method)
        clipped = clipped_gradient(loss, params, batch, max_norm=0.8, method=method)
        return norms.square().sum() + sum(g.square().sum() for g in clipped.grads.values())

    directions = {n: noise(*p.shape, seed=7) for n, p in params.items()}
    ends = [{n: p + h * directions[n] for n, p in params.items()} for h in (1e-6, -1e-6)]
    found = torch.func.grad(value)(params)
    slope = sum((directions[n] * found[n]).sum() for n in params)
    close(slope, (value(ends[0]) - value(ends[1])) / 2e-6, rtol=1e-5)
