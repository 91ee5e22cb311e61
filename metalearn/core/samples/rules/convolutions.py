"""Convolutions and transposed convolutions of one to three axes, with groups.

Axes: n pictures of one sample, C channels, O outputs, ``[...]`` space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.samples.convolution_gradients import ConvolutionGradients, Geometry
from metalearn.core.samples.layer_rules import LayerCall, LayerRule
from metalearn.core.samples.sample_gradients import FormedGradients, SampleGradients

__all__ = ["RULES"]


def _convolution(function: Callable[..., Tensor], axes: int) -> LayerRule:
    """Of ``torch.conv1d`` to ``torch.conv3d``."""

    def rule(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> LayerCall | None:
        if input.dim() != axes + 2 or weight.dim() != axes + 2:
            return None
        size, stride = tuple(weight.shape[2:]), _spread(stride, axes)
        dilation = _spread(dilation, axes)
        if padding == "same" and any(step != 1 for step in stride):
            return None  # torch says what is wrong
        input, padding = _padded(input, size, padding, dilation)
        geometry = Geometry(size, stride, padding, dilation)
        fits = input.shape[1] == weight.shape[1] * groups and len(weight) % groups == 0
        reach = zip(input.shape[2:], geometry.read((1,) * axes), padding)
        if not fits or any(length + pad < least for length, least, pad in reach):
            return None  # torch says what is wrong
        return LayerCall(
            run=lambda weight, bias: function(
                input, weight, bias, stride, padding, dilation, groups
            ),
            inputs=(input,),
            parameters=(weight, bias),
            gradients=(lambda dz, x: ConvolutionGradients(x, dz, geometry, groups), _summed),
            quick=axes == 2 and groups == 1,
        )

    return rule


def _transposed(function: Callable[..., Tensor], axes: int) -> LayerRule:
    """Of ``torch.conv_transpose1d`` to 3d.

    It is the transpose of a convolution from its outputs to its inputs, so that the kernel's
    gradients are that convolution's, with the two in each other's place.
    """

    def rule(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> LayerCall | None:
        if input.dim() != axes + 2 or weight.dim() != axes + 2:
            return None
        stride, padding, dilation = (_spread(x, axes) for x in (stride, padding, dilation))
        geometry = Geometry(tuple(weight.shape[2:]), stride, padding, dilation)

        def of_weight(dz: Tensor, x: Tensor) -> SampleGradients:
            for axis, length in enumerate(geometry.read(tuple(x.shape[3:])), start=3):
                dz = dz.narrow(axis, 0, min(dz.shape[axis], length))
            return ConvolutionGradients(dz, x, geometry, groups, inputs_first=True)

        return LayerCall(
            run=lambda weight, bias: function(
                input, weight, bias, stride, padding, output_padding, groups, dilation
            ),
            inputs=(input,),
            parameters=(weight, bias),
            gradients=(of_weight, _summed),
        )

    return rule


def _padded(
    input: Tensor, size: tuple[int, ...], padding: Any, dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """The input with what is padded on one side alone, and the padding of both sides."""
    axes = len(size)
    if padding == "valid":
        return input, (0,) * axes
    if padding != "same":
        return input, _spread(padding, axes)
    totals = [apart * (length - 1) for apart, length in zip(dilation, size)]
    if not any(total % 2 for total in totals):
        return input, tuple(total // 2 for total in totals)
    sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return F.pad(input, sides), (0,) * axes


def _spread(value: Any, axes: int) -> tuple[int, ...]:
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * axes if len(numbers) == 1 else numbers


def _summed(dz: Tensor, x: Tensor) -> SampleGradients:
    return FormedGradients(dz.sum((1, *range(3, dz.dim()))))


RULES: dict[Any, LayerRule] = {
    torch.conv1d: _convolution(torch.conv1d, 1),
    torch.conv2d: _convolution(torch.conv2d, 2),
    torch.conv3d: _convolution(torch.conv3d, 3),
    torch.conv_transpose1d: _transposed(torch.conv_transpose1d, 1),
    torch.conv_transpose2d: _transposed(torch.conv_transpose2d, 2),
    torch.conv_transpose3d: _transposed(torch.conv_transpose3d, 3),
}
