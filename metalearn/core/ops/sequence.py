"""Whole runs of layers over tasks, for what a ``nn.Sequential`` shows to follow one another.

A run leaves vmap once instead of once a layer, and norms join their neighbours: convolution, batch
norm and ReLU are one operation.
Axes: T tasks, B samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from metalearn.core.ops import layers
from metalearn.core.ops.convolution import Product
from metalearn.core.ops.over_tasks import carries_tasks, over_tasks
from metalearn.core.ops.pooling import can_pool
from metalearn.core.ops.substitution import is_read_only, writable
from metalearn.core.ops.windows import Window, tiles_of, window_of

__all__ = ["runs_over_tasks"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_WITH_PARAMETERS = (
    nn.Conv2d, nn.Linear, nn.LayerNorm, nn.GroupNorm, *_BATCH_NORMS, *_INSTANCE_NORMS,
)  # fmt: skip
_SAMPLE_BY_SAMPLE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus,
    nn.Identity, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
_FASTER_OVER_TASKS = {
    nn.Conv2d, nn.LayerNorm, nn.GroupNorm, *_BATCH_NORMS, *_INSTANCE_NORMS,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
}  # fmt: skip
_AXES: dict[type[nn.Module], tuple[int, ...]] = {
    nn.Conv2d: (4,), nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,),
    nn.InstanceNorm1d: (3,), nn.InstanceNorm2d: (4,), nn.InstanceNorm3d: (5,),
    nn.MaxPool2d: (4,), nn.AvgPool2d: (4,), nn.AdaptiveAvgPool2d: (4,),
}  # fmt: skip


@contextmanager
def runs_over_tasks(module: nn.Module) -> Iterator[None]:
    """Let every plain ``nn.Sequential`` in ``module`` take its known layers over tasks at once."""
    faster = any(map(_is_faster, module.modules()))
    changed: list[Any] = [
        layer
        for layer in module.modules()
        if faster and type(layer).forward is nn.Sequential.forward and "forward" not in vars(layer)
    ]
    for layer in changed:
        layer.forward = MethodType(_forward, layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _forward(self: nn.Sequential, input: Any) -> Any:
    children = list(_flattened(self))
    start = 0
    while start < len(children):
        stop = start
        while stop < len(children) and _is_supported(children[stop]):
            stop += 1
        taken, run = 0, children[start:stop]
        faster = isinstance(input, Tensor) and any(map(_is_faster, run))
        if faster and (not _writes_input(run) or is_read_only(input)):
            taken, input = _run(run, input)
        if taken == 0:  # unknown, or not fitting: the layer is its own judge
            layer = children[start]
            taken, input = 1, layer(writable(input) if getattr(layer, "inplace", False) else input)
        start += taken
    return input


def _flattened(sequential: nn.Sequential) -> Iterator[nn.Module]:
    """Layers in order, those of plain inner Sequentials in their place."""
    for layer in sequential:
        replaced = getattr(vars(layer).get("forward"), "__func__", None) is _forward
        if replaced and not _has_hooks(layer):
            yield from _flattened(cast(nn.Sequential, layer))
        else:
            yield layer


def _has_hooks(layer: nn.Module) -> bool:
    own = layer._forward_hooks or layer._forward_pre_hooks
    everywhere = _has_any_global_hook()  # type: ignore[no-untyped-call]
    return bool(own or layer._backward_hooks or layer._backward_pre_hooks or everywhere)


def _is_faster(layer: nn.Module) -> bool:
    """Whether the layer is faster over tasks than under vmap, or leaves data alone only there."""
    return type(layer) in _FASTER_OVER_TASKS or getattr(layer, "inplace", False)


def _writes_input(run: Sequence[nn.Module]) -> bool:
    """Whether the first layers write in place into what the caller holds."""
    for layer in run:
        if getattr(layer, "inplace", False):
            return True
        if not isinstance(layer, nn.Identity | nn.Flatten):
            return False
    return False


def _is_supported(layer: nn.Module) -> bool:
    kind = type(layer)
    if _has_hooks(layer) or "forward" in vars(layer):
        return False
    if kind in _WITH_PARAMETERS and not {"weight", "bias"} <= layer._parameters.keys():
        return False
    if isinstance(layer, nn.Conv2d):
        return kind is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
    if isinstance(layer, nn.Flatten):
        return kind is nn.Flatten and layer.start_dim >= 1
    if isinstance(layer, nn.MaxPool2d):
        return kind is nn.MaxPool2d and not layer.return_indices
    if kind in _BATCH_NORMS or kind in _INSTANCE_NORMS:
        return layer.running_mean is None
    return kind in _WITH_PARAMETERS or kind in _SAMPLE_BY_SAMPLE


def _run(run: Sequence[nn.Module], input: Tensor) -> tuple[int, Tensor]:
    """How many layers were run, and their output: up to the first that the data do not fit."""
    names = [(i, name) for i, layer in enumerate(run) for name in layer._parameters]
    operands = [getattr(run[i], name) for i, name in names]
    if not carries_tasks(input, *operands):
        return 0, input
    taken = 0

    def over(x: Tensor, *values: Tensor | None) -> Tensor:
        nonlocal taken
        parameters: list[dict[str, Any]] = [{} for _ in run]
        for (i, name), value in zip(names, values):
            parameters[i][name] = value
        taken, y = _run_over_tasks(run, parameters, x)
        return y

    if not _fits(run[0], input.shape):
        return 0, input
    output = over_tasks(over, input, *operands)
    return taken, output


class _Activation(NamedTuple):
    """What one layer gives to the next."""

    value: Tensor | Product
    """``[T, B, ...]``, or a product that a convolution can do without holding."""
    rectify: bool = False
    """Whether a ReLU is due, which joins a convolution if one follows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one task, its sample axis included."""
        if isinstance(self.value, Tensor):
            return tuple(self.value.shape[1:])
        _, samples, height, width, channels = self.value.shape
        return samples, channels, height, width

    def whole(self) -> Tensor:
        """``[T, B, ...]``, the ReLU taken."""
        x = self.value if isinstance(self.value, Tensor) else self.value.whole().movedim(-1, 2)
        return torch.relu(x) if self.rectify else x


def _run_over_tasks(
    run: Sequence[Any], parameters: Sequence[dict[str, Any]], x: Tensor
) -> tuple[int, Tensor]:
    """A run on ``x [T, B, ...]`` with parameters ``[T, ...]``."""
    i, activation, ours = 0, _Activation(x), False
    while i < len(run) and _fits(run[i], activation.shape):
        pooled = _max_pool(run[i:], activation)
        if pooled is not None:
            taken, activation = pooled
        elif type(run[i]) is nn.ReLU:
            # what came from outside may be written to once its ReLU is taken
            due = activation._replace(rectify=True)
            taken, activation = 1, due if ours else _Activation(due.whole())
        elif type(run[i]) is nn.Conv2d:
            taken, activation = _convolution(run[i:], parameters[i:], activation)
        else:
            taken, y = _layer(run[i:], parameters[i], activation.whole())
            activation = _Activation(y)
        ours = ours or not isinstance(run[i], nn.Identity | nn.Flatten)
        i += taken
    return i, activation.whole()


def _convolution(
    run: Sequence[Any], parameters: Sequence[dict[str, Any]], activation: _Activation
) -> tuple[int, _Activation]:
    """A convolution with the batch norm and the leaky ReLU that may follow it."""
    layer, weight, (x, rectify) = run[0], parameters[0]["weight"], activation
    window = _window(layer)
    shape = activation.shape[0], layer.out_channels, *window.positions(*activation.shape[2:])
    if [type(r) for r in run[1:2]] != [nn.BatchNorm2d] or not _fits(run[1], shape):
        bias = parameters[0].get("bias")
        return 1, _Activation(layers.conv2d(x, weight, bias, window, rectify=rectify))
    norm, eps = parameters[1], run[1].eps
    given = weight, norm["weight"], norm["bias"], window
    if isinstance(x, Tensor) and not rectify and layers.can_fold(x, weight):
        pools = [type(behind) for behind in run[2:4]] == [nn.ReLU, nn.MaxPool2d]
        size = tiles_of(run[3], *shape[2:]) if pools else None
        if size is not None and can_pool(x, *given[:3], size):
            return 4, _Activation(layers.pooled_conv_batch_norm(x, *given, size, eps=eps))
        return 2, _Activation(layers.folded_conv_batch_norm(x, *given, eps=eps))
    leak = _joining(run, 2, weight, shape)
    y = layers.conv_batch_norm(x, *given, eps=eps, leak=leak, rectify=rectify)
    return 2 + (leak != 1), _Activation(y)


def _layer(run: Sequence[Any], own: dict[str, Any], x: Tensor) -> tuple[int, Tensor]:
    """Any other layer, a norm with the leaky ReLU that may follow it."""
    layer, kind = run[0], type(run[0])
    weight: Any = own.get("weight")
    bias = own.get("bias")
    if kind is nn.Linear:
        return 1, layers.linear(x, weight, bias)
    if kind in _BATCH_NORMS or kind in _INSTANCE_NORMS:
        norm = layers.batch_norm if kind in _BATCH_NORMS else layers.instance_norm
        leak = _joining(run, 1, x, x.shape[1:])
        return 1 + (leak != 1), norm(x, weight, bias, eps=layer.eps, leak=leak)
    if kind is nn.LayerNorm:
        axes = len(layer.normalized_shape)
        return 1, layers.layer_norm(x, axes, weight, bias, eps=layer.eps)
    if kind is nn.GroupNorm:
        return 1, layers.group_norm(x, layer.num_groups, weight, bias, eps=layer.eps)
    return 1, _sample_by_sample(layer, x)


def _joining(run: Sequence[Any], i: int, like: Tensor, shape: Sequence[int]) -> float:
    """The slope of an activation at i that is best taken with the norm before it; 1 if none is.

    ``shape`` is that of one task in front of it. A convolution behind takes a ReLU, and pooling
    leaves fewer elements to any. A norm keeps the result for its gradient, which torch does of a
    ReLU too, but of a leaky one only in place: what nobody outside sees may be kept.
    """
    leak = layers.leak_of(run[i]) if i < len(run) else None
    behind = type(run[i + 1]) if i + 1 < len(run) else None
    if leak is None or (behind is nn.Conv2d and leak == 0):
        return 1.0
    if behind is nn.MaxPool2d and (leak > 0 or layers.pooled_size(like, run[i + 1], shape)):
        return 1.0
    kept = leak == 0 or run[i].inplace
    makes_another = (not isinstance(r, nn.Identity | nn.Flatten) for r in run[i + 1 :])
    return leak if kept or any(makes_another) else 1.0


def _max_pool(run: Sequence[Any], activation: _Activation) -> tuple[int, _Activation] | None:
    """A max-pooling with the activation in front that it may have; None if none comes."""
    leak = layers.leak_of(run[0])
    taken, leak = (1, 1.0) if leak is None else (2, leak)
    pool = run[taken - 1 : taken]
    if [type(layer) for layer in pool] != [nn.MaxPool2d] or not _fits(pool[0], activation.shape):
        return None
    return taken, _Activation(layers.max_pool2d(activation.whole(), pool[0], leak=leak))


def _fits(layer: Any, shape: Sequence[int]) -> bool:
    """Whether a layer takes one task's input of that shape, its sample axis included."""
    kind = type(layer)
    if len(shape) not in _AXES.get(kind, (len(shape),)) or len(shape) < 2:
        return False
    size = math.prod(shape)
    if kind is nn.Conv2d:
        return bool(shape[1] == layer.in_channels >= 1) and _window(layer).fits(*shape[2:])
    if kind in _BATCH_NORMS:
        return bool(shape[1] == layer.num_features) and size > shape[1]
    if kind in _INSTANCE_NORMS:
        return bool(shape[1] == layer.num_features) and size > shape[0] * shape[1]
    if kind is nn.GroupNorm:
        return bool(shape[1] == layer.num_channels) and size > shape[0] * layer.num_groups
    if kind is nn.LayerNorm:
        return tuple(shape[-len(layer.normalized_shape) :]) == tuple(layer.normalized_shape)
    return bool(kind is not nn.Linear or shape[-1] == layer.in_features)


def _sample_by_sample(layer: nn.Module, x: Tensor) -> Tensor:
    if getattr(layer, "inplace", False):
        x = x.clone()  # data that were given, or what a layer before needs for its gradient
    y: Tensor = layer(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])


def _window(conv: nn.Conv2d) -> Window:
    return window_of(conv.kernel_size, conv.stride, conv.padding, conv.dilation)
