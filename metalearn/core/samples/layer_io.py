"""Weight gradients of layers for many samples at once, and the norms of such gradients.

Each layer is one affine map of columns, z = A·wᵀ + b; the gradient of w for one sample is Bᵀ·A with
B the gradient of z. Under ``vmap`` over samples, torch's own backward takes these products one
way for all shapes; here they are taken the quickest way, or their norms without them.
Axes: N samples, S positions of a sample, I columns, O outputs, ``[C, H, W]`` of a picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core._functorch import is_functorch_wrapped_tensor
from metalearn.core.ops.columns import to_columns
from metalearn.core.ops.windows import Window

__all__ = ["Convolution", "Embedding", "Layer", "Linear"]

_SLICE = 2**17  # elements of gradients that are held at once where norms need them


class Layer(ABC):
    """What is particular to a kind of layer; hashable, without tensors."""

    @abstractmethod
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Output z of one sample."""

    @abstractmethod
    def weight_gradients(self, x: Tensor, dz: Tensor) -> Tensor:
        """``[N, *weight]`` from ``x [N, *x]`` and ``dz [N, *z]``."""

    @abstractmethod
    def squared_norms(self, x: Tensor, dz: Tensor) -> Tensor:
        """``[N]``: squared norms of the weight's gradients."""

    @abstractmethod
    def squared_bias_norms(self, dz: Tensor) -> Tensor:
        """``[N]``: squared norms of the bias' gradients."""


@dataclass(frozen=True)
class Linear(Layer):
    """``F.linear`` with any number of leading axes."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102
        return F.linear(x, weight, bias)

    def weight_gradients(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        return _products(_positions(x), _positions(dz))

    def squared_norms(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        return _norms_of_products(_positions(x), _positions(dz))

    def squared_bias_norms(self, dz: Tensor) -> Tensor:  # noqa: D102
        return _squares(_positions(dz).sum(1))


@dataclass(frozen=True)
class Convolution(Layer):
    """``F.conv2d`` of pictures ``[n, C, H, W]``, without groups."""

    window: Window

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102
        return F.conv2d(x, weight, bias, self.window.stride, self._padding, self.window.dilation)

    def weight_gradients(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        if _is_wrapped(x, dz):
            return torch.func.vmap(self._by_torch)(x, dz)
        channels, outputs, size = x.shape[2], dz.shape[2], self.window.size
        if channels >= _MANY_CHANNELS and dz.shape[-1] * dz.shape[-2] >= _MANY_POSITIONS:
            return self._by_groups(x, dz)
        columns = self._columns(x)
        grads = _products(columns, _outputs(dz))
        if self._channels_last(channels):
            return grads.view(len(x), outputs, *size, channels).permute(0, 1, 4, 2, 3)
        return grads.view(len(x), outputs, channels, *size)

    def squared_norms(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        if _is_wrapped(x, dz):
            return self.weight_gradients(x, dz).flatten(1).square().sum(1)
        held = self.window.size[0] * self.window.size[1] * x.shape[2] * dz[0, :, 0].numel()
        slices = zip(*(t.split(max(1, _SLICE // held)) for t in (x, dz)))  # type: ignore[no-untyped-call]
        return torch.cat([_norms_of_products(self._columns(x), _outputs(g)) for x, g in slices])

    def squared_bias_norms(self, dz: Tensor) -> Tensor:  # noqa: D102
        return _squares(dz.sum((1, 3, 4)))

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

    def _by_torch(self, x: Tensor, dz: Tensor) -> Tensor:
        shape = (dz.shape[1], x.shape[1], *self.window.size)
        return torch.nn.grad.conv2d_weight(  # type: ignore[attr-defined, no-any-return]
            x, shape, dz, self.window.stride, self._padding, self.window.dilation
        )

    def _by_groups(self, x: Tensor, dz: Tensor) -> Tensor:
        """By torch's convolution with a group for each sample."""
        n, _, channels = x.shape[:3]
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

    def weight_gradients(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        raise RuntimeError("an embedding's gradients are left to torch")

    def squared_norms(self, x: Tensor, dz: Tensor) -> Tensor:  # noqa: D102
        rows, dz = x.reshape(len(x), -1), _positions(dz)
        if self.padding_idx is not None:
            dz = dz * (rows != self.padding_idx).unsqueeze(-1)
        same = (rows.unsqueeze(1) == rows.unsqueeze(2)).to(dz.dtype)
        return (torch.bmm(same, dz) * dz).sum((1, 2))

    def squared_bias_norms(self, dz: Tensor) -> Tensor:  # noqa: D102
        raise RuntimeError("an embedding has no bias")


_MANY_CHANNELS = 8
_MANY_POSITIONS = 100  # from here on torch's grouped convolution is quicker than copying columns


def _is_wrapped(*tensors: Tensor) -> bool:
    """Whether a further vmap or derivative is under way, for which torch has the rules."""
    return any(is_functorch_wrapped_tensor(t) or t.requires_grad for t in tensors)


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
        return _squares(a) * _squares(b)
    if places * (inputs + outputs) <= inputs * outputs:
        size, norm = places * places, _gram_norms
    else:
        size, norm = inputs * outputs, _product_norms
    pieces = zip(*(t.split(max(1, _SLICE // size)) for t in (a, b)))  # type: ignore[no-untyped-call]
    return torch.cat([norm(*piece) for piece in pieces])


def _squares(x: Tensor) -> Tensor:
    """Sums of squares ``[N]``, without a copy of squares."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.square()


def _gram_norms(a: Tensor, b: Tensor) -> Tensor:
    return (torch.bmm(a, a.mT) * torch.bmm(b, b.mT)).sum((1, 2))


def _product_norms(a: Tensor, b: Tensor) -> Tensor:
    return _squares(torch.bmm(b.mT, a))


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
