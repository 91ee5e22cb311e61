"""Batch normalisation with running statistics of its own for each state of an inner loop.

Axes: K inner steps, N samples, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.core.module.copying import copy_module
from metalearn.errors import SettingError

__all__ = [
    "Readings",
    "StepNorm",
    "batch_moments",
    "normalized_by",
    "reading_statistics",
    "step_norms",
    "with_step_norms",
]

Readings = dict[int, list[tuple[Tensor, Tensor]]]
"""Mean and variance of the batches that a layer was called with, by its key."""
_readings: ContextVar[Readings | None] = ContextVar("statistics that are read", default=None)


class StepNorm(nn.Module):
    """y = γ·(x − m_k)/√(v_k + eps) + β with moments of the state after k inner steps, k = 0 … K.

    Its buffers ``step_mean`` and ``step_var`` have them all, ``[K+1, C]``. A call that is given
    those of one state in their place, ``[C]``, normalises by these, any other by those of θ_0. A
    forward pass writes nothing; `reading_statistics` reads the moments of its inputs.

    Args:
        layer: gives channels, eps, momentum, scale and shift.
        steps: K.
        key: by which copies of it are known.

    Raises:
        SettingError: a layer without momentum, which averages over all batches.
    """

    step_mean: Tensor
    step_var: Tensor

    def __init__(self, layer: _BatchNorm, steps: int, key: int) -> None:
        super().__init__()
        if layer.momentum is None:
            accepted = "a momentum is needed for statistics of each step"
            raise SettingError("module", type(layer).__name__, accepted)
        self.eps, self.momentum, self.key = layer.eps, float(layer.momentum), key
        self.weight, self.bias = layer.weight, layer.bias
        like = torch.empty(0) if layer.weight is None else layer.weight.detach()
        self.register_buffer("step_mean", like.new_zeros(steps + 1, layer.num_features))
        self.register_buffer("step_var", like.new_ones(steps + 1, layer.num_features))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        read = _readings.get()
        if read is not None:
            read.setdefault(self.key, []).append(batch_moments(x))
        mean, variance = (m if m.dim() == 1 else m[0] for m in (self.step_mean, self.step_var))
        return normalized_by(x, mean, variance, self.weight, self.bias, eps=self.eps)


def normalized_by(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
) -> Tensor:
    """γ·(x − m)/√(v + eps) + β of inputs ``[N, C, ...]`` by moments ``[C]``; None is γ 1, β 0."""
    shape = (-1, *[1] * (x.dim() - 2))
    slope = (variance + eps).rsqrt()
    slope = slope if weight is None else slope * weight
    y = (x - mean.view(shape)) * slope.view(shape)
    return y if bias is None else y + bias.view(shape)


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance ``[C]`` of inputs ``[N, C, ...]``, without a graph."""
    each = x.detach().transpose(0, 1).flatten(1)
    return each.mean(1), each.var(1, correction=min(1, each.shape[1] - 1))


@contextmanager
def reading_statistics(read: Readings | None) -> Iterator[None]:
    """A block in which layers add the moments of their batches to ``read``; None stops that."""
    token = _readings.set(read)
    try:
        yield
    finally:
        _readings.reset(token)


def with_step_norms(module: nn.Module, steps: int) -> nn.Module:
    """A copy of a module with `StepNorm` in the place of batch norms.

    Args:
        module: left as it is.
        steps: K.

    Raises:
        SettingError: a module without batch norms, a layer without momentum.
    """
    root = nn.ModuleDict({"module": copy_module(module)})
    made: dict[nn.Module, StepNorm] = {}  # a layer used twice stays one layer
    for name, layer in list(root.named_modules(remove_duplicate=False)):
        if isinstance(layer, _BatchNorm):
            if layer not in made:
                made[layer] = StepNorm(layer, steps, len(made))
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, made[layer].train(layer.training))
    if not made:
        accepted = "batch normalisation is needed for statistics of each step"
        raise SettingError("module", type(module).__name__, accepted)
    return root["module"]


def step_norms(module: nn.Module) -> dict[str, StepNorm]:
    """The layers of a module, by name."""
    return {name: m for name, m in module.named_modules() if isinstance(m, StepNorm)}
