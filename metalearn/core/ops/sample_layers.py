"""Layers whose weight gradients are quick to take for many samples at once.

Each layer is one affine map of columns, z = A·wᵀ + b; the gradient of w for one sample is Bᵀ·A with
B the gradient of z. Under ``vmap`` over samples, torch's own backward takes these products one
way for all shapes; here they are taken the quickest way, or their norms without them.
Axes: N samples, S positions of a sample, I columns, O outputs, ``[C, H, W]`` of a picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from metalearn.core.ops.columns import Window, to_columns

__all__ = ["Convolution", "Embedding", "Layer", "Linear", "affine"]

_SLICE = 2**22  # elements of gradients that are held at once where norms need them


def affine(
    layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, slot: Tensor | None = None
) -> Tensor:
    """The layer's output for one sample.

    Args:
        layer: which.
        x: its input.
        weight: may be shared by all samples.
        bias: or None.
        slot: a scalar without effect on the output; the "gradient" that comes back to it is the
            squared norm of the weight's gradient, which is not formed.
    """
    z: Tensor = _Affine.apply(layer, x, weight, bias, slot)
    return z


class Layer(ABC):
    """What is particular to a kind of layer; hashable, without tensors."""

    @abstractmethod
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Output z of one sample."""

    @abstractmethod
    def input_gradient(self, dz: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of x."""

    @abstractmethod
    def bias_gradient(self, dz: Tensor) -> Tensor:
        """Gradient of the bias."""

    @abstractmethod
    def weight_gradient(self, x: Tensor, dz: Tensor) -> Tensor:
        """Gradient of the weight for one sample, by torch: what is differentiated in turn."""

    @abstractmethod
    def weight_gradients(self, x: Tensor, dz: Tensor) -> Tensor:
        """``[N, *weight]`` from ``x [N, *x]`` and ``dz [N, *z]``."""

    @abstractmethod
    def squared_norms(self, x: Tensor, dz: Tensor) -> Tensor:
        """``[N]``: squared norms of the weight's gradients."""


@dataclass(frozen=True)
class Linear(Layer):
    """``F.linear`` with any number of leading axes."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102
        return F.linear(x, weight, bias)

    def input_gradient(self, dz: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: D102
        return dz @ weight

    def bias_gradient(self, dz: Tensor) -> Tensor:  # noqa: D102
        return dz.reshape(-1, dz.shape[-1]).sum(0)

    def weight_gradient(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        return dz.reshape(-1, dz.shape[-1]).mT @ x.reshape(-1, x.shape[-1])

    def weight_gradients(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        return _products(_positions(x), _positions(dz))

    def squared_norms(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        return _norms_of_products(_positions(x), _positions(dz))


@dataclass(frozen=True)
class Convolution(Layer):
    """``F.conv2d`` of pictures ``[n, C, H, W]``, without groups."""

    window: Window

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102
        return F.conv2d(x, weight, bias, self.window.stride, self._padding, self.window.dilation)

    def input_gradient(self, dz: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: D102
        return torch.nn.grad.conv2d_input(  # type: ignore[no-untyped-call, no-any-return]
            x.shape, weight, dz, self.window.stride, self._padding, self.window.dilation
        )

    def bias_gradient(self, dz: Tensor) -> Tensor:  # noqa: D102
        return dz.sum((0, 2, 3))

    def weight_gradient(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        shape = (dz.shape[1], x.shape[1], *self.window.size)
        return torch.nn.grad.conv2d_weight(  # type: ignore[no-untyped-call, no-any-return]
            x, shape, dz, self.window.stride, self._padding, self.window.dilation
        )

    def weight_gradients(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        channels, outputs, size = x.shape[2], dz.shape[2], self.window.size
        if channels >= _MANY_CHANNELS and dz.shape[-1] * dz.shape[-2] >= _MANY_POSITIONS:
            return self._by_groups(x, dz)
        columns = self._columns(x)
        grads = _products(columns, _outputs(dz))
        if self._channels_last(channels):
            return grads.view(len(x), outputs, *size, channels).permute(0, 1, 4, 2, 3)
        return grads.view(len(x), outputs, channels, *size)

    def squared_norms(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        held = self.window.size[0] * self.window.size[1] * x.shape[2] * dz[0, :, 0].numel()
        slices = zip(*(t.split(max(1, _SLICE // held)) for t in (x, dz)))  # type: ignore[no-untyped-call]
        return torch.cat([_norms_of_products(self._columns(x), _outputs(g)) for x, g in slices])

    @property
    def _padding(self) -> tuple[int, int]:
        (top, _), (left, _) = self.window.padding
        return top, left

    def _channels_last(self, channels: int) -> bool:
        return channels >= _MANY_CHANNELS

    def _columns(self, x: Tensor) -> Tensor:
        """``[N, S, I]``; columns in the order (kh, kw, C) where there are many channels."""
        if self._channels_last(x.shape[2]):
            columns = to_columns(x.flatten(0, 1).permute(0, 2, 3, 1), self.window)
            return columns.reshape(len(x), -1, columns.shape[-1])
        columns = _windows(x.flatten(0, 1), self.window).view(*x.shape[:2], -1, *self._places(x))
        return columns.transpose(1, 2).flatten(2, 3).mT if x.shape[1] > 1 else columns[:, 0].mT

    def _places(self, x: Tensor) -> tuple[int]:
        down, across = self.window.positions(*x.shape[-2:])
        return (down * across,)

    def _by_groups(self, x: Tensor, dz: Tensor) -> Tensor:
        """By torch's convolution with a group for each sample."""
        n, each, channels = x.shape[:3]
        weight = x.new_empty(n * dz.shape[2], channels, *self.window.size)
        grads: Tensor = torch.ops.aten.convolution_backward(
            dz.transpose(0, 1).flatten(1, 2),
            x.transpose(0, 1).flatten(1, 2),
            weight,
            None,
            self.window.stride,
            self._padding,
            self.window.dilation,
            False,
            [0, 0],
            n,
            [False, True, False],
        )[1]
        return grads.view(n, dz.shape[2], *grads.shape[1:])


@dataclass(frozen=True)
class Embedding(Layer):
    """``F.embedding``: rows of the weight by index."""

    padding_idx: int | None

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102
        return F.embedding(x, weight, self.padding_idx)

    def input_gradient(self, dz: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: D102
        raise RuntimeError("indices have no gradient")

    def bias_gradient(self, dz: Tensor) -> Tensor:  # noqa: D102
        raise RuntimeError("an embedding has no bias")

    def weight_gradient(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        raise RuntimeError("an embedding's gradients are left to torch")

    def weight_gradients(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        raise RuntimeError("an embedding's gradients are left to torch")

    def squared_norms(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        rows, dz = x.flatten(1), _positions(dz)
        if self.padding_idx is not None:
            dz = dz * (rows != self.padding_idx).unsqueeze(-1)
        same = (rows.unsqueeze(1) == rows.unsqueeze(2)).to(dz.dtype)
        return (torch.bmm(same, dz) * dz).sum((1, 2))


_MANY_CHANNELS = 8
_MANY_POSITIONS = 100  # from here on torch's grouped convolution is quicker than copying columns


def _positions(x: Tensor) -> Tensor:
    """``[N, ..., I]`` to ``[N, S, I]``."""
    return x.reshape(len(x), -1, x.shape[-1])


def _outputs(dz: Tensor) -> Tensor:
    """``[N, n, O, H', W']`` to ``[N, S, O]``."""
    flat = dz.flatten(3)
    return flat[:, 0].mT if dz.shape[1] == 1 else flat.transpose(2, 3).flatten(1, 2)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Bᵀ·A: ``[N, O, I]`` from ``a [N, S, I]`` and ``b [N, S, O]``."""
    return b.mT * a if a.shape[1] == 1 else torch.bmm(b.mT, a)


def _norms_of_products(a: Tensor, b: Tensor) -> Tensor:
    """‖Bᵀ·A‖² ``[N]``, from the Gram matrices A·Aᵀ and B·Bᵀ or from the product, whichever is less.

    ‖Bᵀ·A‖² = ⟨A·Aᵀ, B·Bᵀ⟩ (Goodfellow 2015, arXiv 1510.01799; Li et al. 2021, arXiv 2110.05679).
    """
    places, inputs, outputs = a.shape[1], a.shape[2], b.shape[2]
    if places == 1:
        return a.square().sum((1, 2)) * b.square().sum((1, 2))
    if places * (inputs + outputs) <= inputs * outputs:
        size, norm = places * places, _gram_norms
    else:
        size, norm = inputs * outputs, _product_norms
    pieces = zip(*(t.split(max(1, _SLICE // size)) for t in (a, b)))  # type: ignore[no-untyped-call]
    return torch.cat([norm(*piece) for piece in pieces])


def _gram_norms(a: Tensor, b: Tensor) -> Tensor:
    return (torch.bmm(a, a.mT) * torch.bmm(b, b.mT)).sum((1, 2))


def _product_norms(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(b.mT, a).square().sum((1, 2))


def _windows(pictures: Tensor, window: Window) -> Tensor:
    """``[n, C, H, W]`` to ``[n, C, kh, kw, H', W']``: for few channels, whose rows are copied."""
    (top, bottom), (left, right) = window.padding
    padded = F.pad(pictures, (left, right, top, bottom)).contiguous()
    n, channels, height, width = padded.shape
    down, across = window._replace(padding=((0, 0), (0, 0))).positions(height, width)
    area = height * width
    shape = (n, channels, *window.size, down, across)
    apart = (window.dilation[0] * width, window.dilation[1])
    strides = (channels * area, area, *apart, window.stride[0] * width, window.stride[1])
    return padded.as_strided(shape, strides).clone(memory_format=torch.contiguous_format)


class _Affine(Function):
    """A layer; its backward takes weight gradients, or their norms, by `_Kernel`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, slot: Tensor | None
    ) -> Tensor:
        return layer.forward(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.layer, x, weight, _, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        layer: Layer = ctx.layer
        x, weight = ctx.saved_tensors
        _, to_x, to_weight, to_bias, to_slot = ctx.needs_input_grad
        one = (x.unsqueeze(0), dz.unsqueeze(0))
        return (
            None,
            layer.input_gradient(dz, x, weight) if to_x else None,
            _Kernel.apply(layer, False, *one)[0] if to_weight else None,
            layer.bias_gradient(dz) if to_bias else None,
            _Kernel.apply(layer, True, *one)[0] if to_slot else None,
        )


class _Kernel(Function):
    """A layer's function of tensors with a sample axis; every ``vmap`` joins its axis to that."""

    @staticmethod
    def forward(layer: Layer, norms: bool, x: Tensor, dz: Tensor) -> Tensor:
        return layer.squared_norms(x, dz) if norms else layer.weight_gradients(x, dz)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.layer, ctx.norms, x, dz = inputs
        ctx.save_for_backward(x, dz)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        def plain(x: Tensor, dz: Tensor) -> Tensor:
            grads = torch.func.vmap(ctx.layer.weight_gradient)(x, dz)
            return grads.flatten(1).square().sum(1) if ctx.norms else grads

        _, pull = torch.func.vjp(plain, *ctx.saved_tensors)[:2]
        return None, None, *pull(u)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, layer: Layer, norms: bool, *operands: Tensor
    ) -> tuple[Tensor, int]:
        size, flat = info.batch_size, []
        for operand, dim in zip(operands, in_dims[2:]):
            moved = operand.expand(size, *operand.shape) if dim is None else operand.movedim(dim, 0)
            flat.append(moved.flatten(0, 1))
        result: Tensor = _Kernel.apply(layer, norms, *flat)
        return result.unflatten(0, (size, -1)), 0
