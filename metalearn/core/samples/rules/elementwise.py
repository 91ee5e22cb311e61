"""Scales, shifts and positions: a parameter times, plus or minus what follows from the sample.

The gradients of such a parameter are no larger than those of the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn.core.samples.layer_rules import LayerCall, LayerRule, differs_by_sample
from metalearn.core.samples.sample_gradients import FormedGradients, SampleGradients

__all__ = ["RULES", "summed_to"]


def _combined(
    function: Callable[[Any, Any], Tensor], sides: tuple[Callable[..., Tensor], ...]
) -> LayerRule:
    """Of ``function(a, b)``, ``sides`` the gradients of a and of b, each given dz and the other."""

    def rule(input: Any, other: Any, **rest: Any) -> LayerCall | None:
        if rest or differs_by_sample(input) == differs_by_sample(other):
            return None
        first = differs_by_sample(other)
        sample, parameter = (other, input) if first else (input, other)
        if not isinstance(parameter, Tensor):
            return None
        shape, side = tuple(parameter.shape), sides[0 if first else 1]

        def of_parameter(dz: Tensor, sample: Tensor) -> SampleGradients:
            lead = (len(sample), *(1,) * (dz.dim() - sample.dim()))
            return FormedGradients(
                summed_to(side(dz, sample.view(*lead, *sample.shape[1:])), shape)
            )

        return LayerCall(
            run=lambda p: function(p, sample) if first else function(sample, p),
            inputs=(sample,),
            parameters=(parameter,),
            gradients=(of_parameter,),
        )

    return rule


def summed_to(dz: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``[N, *z]`` to ``[N, *shape]``: summed over what the shape was spread over."""
    extra = dz.dim() - 1 - len(shape)
    axes = [*range(1, 1 + extra)]
    axes += [i + 1 + extra for i, size in enumerate(shape) if size == 1 != dz.shape[i + 1 + extra]]
    return (dz.sum(axes) if axes else dz).reshape(len(dz), *shape)


def _same(dz: Tensor, other: Tensor) -> Tensor:
    return dz


_ADD = _combined(torch.add, (_same, _same))
_SUBTRACT = _combined(torch.sub, (_same, lambda dz, other: -dz))
_MULTIPLY = _combined(torch.mul, (torch.mul, torch.mul))

RULES: dict[Any, LayerRule] = {
    torch.add: _ADD, torch.Tensor.add: _ADD,
    torch.sub: _SUBTRACT, torch.Tensor.sub: _SUBTRACT,
    torch.mul: _MULTIPLY, torch.Tensor.mul: _MULTIPLY,
}  # fmt: skip
