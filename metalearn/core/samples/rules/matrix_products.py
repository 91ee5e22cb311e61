"""Linear layers and other products of an input with a matrix.

Axes: N samples, S positions, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.samples.layer_rules import LayerCall, LayerRule, differs_by_sample
from metalearn.core.samples.outer_products import OuterProducts, positions
from metalearn.core.samples.sample_gradients import FormedGradients, SampleGradients

__all__ = ["RULES"]


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> LayerCall | None:
    """``z = x·Wᵀ + b`` with any number of leading axes."""
    if weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    return LayerCall(
        run=lambda weight, bias: F.linear(input, weight, bias),
        inputs=(input,),
        parameters=(weight, bias),
        gradients=(OuterProducts, _summed),
        quick=True,
    )


def _addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> LayerCall | None:
    """``z = b + x·W``, as Conv1D of transformers calls it."""
    if (beta, alpha) != (1, 1) or mat2.dim() != 2 or not differs_by_sample(mat1):
        return None
    if input.shape != mat2.shape[1:]:
        return None
    return LayerCall(
        run=lambda bias, weight: torch.addmm(bias, mat1, weight),
        inputs=(mat1,),
        parameters=(input, mat2),
        gradients=(_summed, lambda dz, x: OuterProducts(x, dz, inputs_first=True)),
        quick=True,
    )


def _matmul(input: Tensor, other: Tensor) -> LayerCall | None:
    """``z = x·W`` or ``z = W·x``."""
    if not isinstance(input, Tensor) or not isinstance(other, Tensor):
        return None
    if other.dim() == 2 and input.dim() >= 1 and differs_by_sample(input):
        return LayerCall(
            run=lambda weight: torch.matmul(input, weight),
            inputs=(input,),
            parameters=(other,),
            gradients=(lambda dz, x: OuterProducts(x, dz, inputs_first=True),),
            quick=True,
        )
    if input.dim() == 2 and other.dim() in (1, 2) and differs_by_sample(other):
        rows = other.dim() == 2
        return LayerCall(
            run=lambda weight: torch.matmul(weight, other),
            inputs=(other,),
            parameters=(input,),
            gradients=(lambda dz, x: OuterProducts(dz.mT, x.mT) if rows else OuterProducts(dz, x),),
            quick=True,
        )
    return None


def _mm(input: Tensor, mat2: Tensor) -> LayerCall | None:
    return _matmul(input, mat2)


def _summed(dz: Tensor, x: Tensor) -> SampleGradients:
    return FormedGradients(positions(dz).sum(1))


RULES: dict[Any, LayerRule] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.Tensor.addmm: _addmm,
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.mm: _mm,
    torch.Tensor.mm: _mm,
}
