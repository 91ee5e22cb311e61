"""Torch's layers replaced by task-batched ones while a loss runs under ``vmap``.

Inside `task_operations` the functions that convolution and normalisation layers call are answered
by `metalearn.core.ops.layers` wherever an operand carries a task axis; everything else runs under
torch's own batching rules, norms that the loss differentiates by itself in plain arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metalearn.core.ops import layers
from metalearn.core.ops.decomposed_norms import decomposed_norm
from metalearn.core.ops.decomposed_operations import decomposed_operation
from metalearn.core.ops.over_tasks import (
    carries_tasks,
    has_task_axis,
    over_tasks,
    task_count,
    unwrap,
)
from metalearn.core.ops.windows import window_of
from metalearn.core.tree import leaves

__all__ = ["is_read_only", "task_operations", "task_operations_active", "writable"]


_MUCH = 2**21  # products of a layer for all tasks, beside which the call over them costs nothing
_LARGE = 2**14  # elements of a weight that a task's other work does not keep in cache
_read_only: ContextVar[tuple[Any, ...] | None] = ContextVar("data of task_operations", default=None)


@contextmanager
def task_operations(given: tuple[Any, ...] = ()) -> Iterator[None]:
    """Answer torch's layer functions by task-batched ones under vmap.

    ``given`` are trees of tensors that no layer may write into.
    """
    token = _read_only.set((_read_only.get() or ()) + given)
    try:
        with _Substitution():
            yield
    finally:
        _read_only.reset(token)


def task_operations_active() -> bool:
    """Whether `task_operations` is in force."""
    return _read_only.get() is not None


def is_read_only(tensor: Tensor) -> bool:
    """Whether it lies in the memory of what was given to `task_operations`."""
    memory = _memory(tensor)
    return any(
        isinstance(x, Tensor) and _memory(x) == memory for x in leaves(_read_only.get() or ())
    )


def writable(value: Any) -> Any:
    """What may be written to: a copy of a tensor that `is_read_only`, anything else as it is."""
    return value.clone() if isinstance(value, Tensor) and is_read_only(value) else value


def _memory(tensor: Tensor) -> int:
    return unwrap(tensor)[1].untyped_storage().data_ptr()


class _Substitution(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        substitute = _SUBSTITUTES.get(function)
        if substitute is not None:
            answer = substitute(*args, **kwargs)
            if answer is None:
                answer = decomposed_norm(function, args, kwargs)
            if answer is not None:
                return answer
        answer = decomposed_operation(function, args, kwargs, within=self)
        return function(*args, **kwargs) if answer is None else answer


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    if groups != 1 or input.dim() != 4 or not carries_tasks(input, weight, bias):
        return _torchs_conv2d(input, weight, bias, stride, padding, dilation, groups)
    window = window_of(weight.shape[-2:], stride, padding, dilation)
    fits = input.shape[1] == weight.shape[1] >= 1 and window.fits(*input.shape[2:])
    fits = fits and _sized(len(weight), bias) and (padding != "same" or window.stride == (1, 1))
    return _over(fits, lambda x, w, b: layers.conv2d(x, w, b, window), input, weight, bias)


def _torchs_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any
) -> Tensor | None:
    """Torch's own, where weights come channels-last, as the engine lays them out.

    It would answer channels-last too, for which vmap lacks rules: of adaptive pooling, say.
    """
    if weight.dim() != 4 or weight.is_contiguous():
        return None
    answer: Tensor = torch.conv2d(input, weight.contiguous(), bias, *settings)
    return answer


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    own = running_mean is None or carries_tasks(running_mean)  # else torch says what is wrong
    fits = own and training and input.dim() >= 2
    fits = fits and input.numel() > input.shape[1] and _sized(input.shape[1], weight, bias)
    answered = fits and carries_tasks(input, weight, bias)
    if answered and running_mean is not None and running_var is not None:
        _track(input.detach(), running_mean, running_var, momentum)
    return _over(fits, lambda x, w, b: layers.batch_norm(x, w, b, eps=eps), input, weight, bias)


def _track(x: Tensor, mean: Tensor, variance: Tensor, momentum: float) -> None:
    """Move running statistics, which have a row of their own for every task, towards those of x."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    count = x.numel() // x.shape[1]
    centre = x.mean(axes, keepdim=True)
    now, spread = centre.flatten(), (x - centre).square().mean(axes) * (count / (count - 1))
    mean.mul_(1 - momentum).add_(now, alpha=momentum)
    variance.mul_(1 - momentum).add_(spread, alpha=momentum)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    fits = running_mean is None and use_input_stats and input.dim() >= 3
    fits = fits and input[0, 0].numel() >= 2 and _sized(input.shape[1], weight, bias)
    return _over(fits, lambda x, w, b: layers.instance_norm(x, w, b, eps=eps), input, weight, bias)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    axes, shape = len(normalized_shape), tuple(normalized_shape)
    shapes = [input.shape[-axes:], *(p.shape for p in (weight, bias) if p is not None)]
    fits = axes >= 1 and all(tuple(found) == shape for found in shapes)
    return _over(
        fits, lambda x, w, b: layers.layer_norm(x, axes, w, b, eps=eps), input, weight, bias
    )


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    fits = input.dim() >= 2 and num_groups >= 1 and input.shape[1] % num_groups == 0
    fits = fits and input.numel() > input.shape[0] * num_groups  # else torch may refuse
    fits = fits and _sized(input.shape[1], weight, bias)
    return _over(
        fits, lambda x, w, b: layers.group_norm(x, num_groups, w, b, eps=eps), input, weight, bias
    )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """The product alone, then the bias, which vmap would first multiply by one.

    Large weights as ``(W·xᵀ)ᵀ``: its gradient has the layout of W, where that of a batched ``x·Wᵀ``
    is transposed, and every step would read across it.
    """
    if weight.dim() != 2 or not _sized(len(weight), bias):
        return None  # torch says what is wrong
    if not carries_tasks(input, weight, bias):
        return None
    if task_count(input, weight, bias) * input.numel() * len(weight) >= _MUCH:
        return over_tasks(layers.linear, input, weight, bias)
    if input.dim() == 2 and weight.numel() >= _LARGE:
        z = torch.mm(weight, input.mT).mT
    else:
        z = F.linear(input, weight)
    return z if bias is None else z + bias


def _adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor | None:
    if output_size not in (1, (1, 1), [1, 1]) or input.dim() < 3 or not has_task_axis(input):
        return None  # torch's own lays channels-last pictures out in place, which vmap cannot
    return input.mean((-2, -1), keepdim=True)


def _over(fits: bool, function: Callable[..., Tensor], *operands: Tensor | None) -> Tensor | None:
    """The function over tasks; None where no operand has them, or torch is to say what is wrong."""
    return over_tasks(function, *operands) if fits and carries_tasks(*operands) else None


def _view(self: Tensor, *shape: Any, **dtype: Any) -> Tensor | None:
    """Pictures are channels-last here and products may be transposed, which a view cannot read."""
    if dtype or isinstance(next(iter(shape), None), torch.dtype) or not has_task_axis(self):
        return None
    try:
        return self.view(*shape)
    except RuntimeError:
        return self.reshape(*shape)  # of a shape that does not fit, it says so in torch's words


def _view_as(self: Tensor, other: Tensor) -> Tensor | None:
    return _view(self, other.shape)


def _sized(size: int, *vectors: Tensor | None) -> bool:
    return all(v is None or tuple(v.shape) == (size,) for v in vectors)


_SUBSTITUTES: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv2d: _conv2d,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    torch.Tensor.view: _view,
    torch.Tensor.view_as: _view_as,
}
