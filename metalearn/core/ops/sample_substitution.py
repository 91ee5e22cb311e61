"""Torch's layer functions answered by those of `sample_layers` where their weight is a parameter.

The functions are met at the call, so that no module has to be known: whatever the loss calls
``F.linear``, ``F.conv2d`` or ``F.embedding`` with a parameter as its weight is answered, everything
else runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from metalearn.core.ops.columns import window_of
from metalearn.core.ops.sample_layers import Convolution, Embedding, Layer, Linear, affine

__all__ = ["LayerCalls", "fast_gradients", "watched"]

Answer = Callable[[int, Layer, Tensor, Tensor | None], Tensor | None]
"""(which parameter is the weight, layer, input, bias) to the output, or None to let it run."""


class LayerCalls(TorchFunctionMode):
    """While in force, layer calls whose weight is one of ``values`` are answered by ``answer``."""

    def __init__(self, values: Sequence[Tensor], answer: Answer) -> None:
        super().__init__()
        self._index = {id(value): i for i, value in enumerate(values)}
        self._answer = answer

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        read = _READERS.get(function)
        if read is not None:
            call = read(*args, **kwargs)
            if call is not None:
                layer, x, weight, bias = call
                index = self._index.get(id(weight))
                if index is not None:
                    output = self._answer(index, layer, x, bias)
                    if output is not None:
                        return output
        return function(*args, **kwargs)


def fast_gradients(values: Sequence[Tensor]) -> LayerCalls:
    """Linear layers and convolutions with weights among ``values`` have quick weight gradients."""

    def answer(index: int, layer: Layer, x: Tensor, bias: Tensor | None) -> Tensor | None:
        if isinstance(layer, Embedding):
            return None
        return affine(layer, x, values[index], bias)

    return LayerCalls(values, answer)


def watched(values: Sequence[Tensor], on_gradient: Callable[[int], None]) -> list[Tensor]:
    """The same values; ``on_gradient(i)`` is called when a gradient arrives at value i."""
    return [_Watch.apply(value, i, on_gradient) for i, value in enumerate(values)]


class _Watch(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, index: int, on_gradient: Callable[[int], None]) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.index, ctx.on_gradient = inputs
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None, None]:
        if gradient is not None:
            ctx.on_gradient(ctx.index)
        return gradient, None, None


Call = tuple[Layer, Tensor, Tensor, Tensor | None]


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call:
    return Linear(), input, weight, bias


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Call | None:
    if groups != 1 or input.dim() != 4 or weight.dim() != 4:
        return None
    window = window_of(weight.shape[-2:], stride, padding, dilation)
    even = all(before == after for before, after in window.padding)
    fits = input.shape[1] == weight.shape[1] and min(window.positions(*input.shape[2:])) >= 1
    return (Convolution(window), input, weight, bias) if even and fits else None


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Call | None:
    if max_norm is not None or scale_grad_by_freq or sparse:
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    return Embedding(padding_idx), input, weight, None


_READERS: dict[Any, Callable[..., Call | None]] = {
    F.linear: _linear,
    torch.conv2d: _conv2d,
    F.conv2d: _conv2d,
    F.embedding: _embedding,
}
