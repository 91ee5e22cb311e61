"""Torch's layers replaced by task-batched ones while a loss runs under ``vmap``.

Inside `task_operations` the functions that convolution and normalisation layers call are answered
by `metalearn.core.ops.layers` wherever an operand carries a task axis; everything else runs under
torch's own batching rules.
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
from metalearn.core.ops.columns import window_of
from metalearn.core.ops.over_tasks import carries_tasks, over_tasks

__all__ = ["substituting", "task_operations"]


_LARGE = 2**14  # elements of a weight that a task's other work does not keep in cache
_depth: ContextVar[int] = ContextVar("depth of task_operations", default=0)


@contextmanager
def task_operations() -> Iterator[None]:
    """Answer torch's layer functions by task-batched ones under vmap."""
    token = _depth.set(_depth.get() + 1)
    try:
        with _Substitution():
            yield
    finally:
        _depth.reset(token)


def substituting() -> bool:
    """Whether `task_operations` is in force."""
    return _depth.get() > 0


class _Substitution(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        substitute = _SUBSTITUTES.get(function)
        if substitute is not None:
            answer = substitute(*args, **kwargs)
            if answer is not None:
                return answer
        return function(*args, **kwargs)


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
        return None
    window = window_of(weight.shape[-2:], stride, padding, dilation)
    fits = input.shape[1] == weight.shape[1] and min(window.positions(*input.shape[2:])) >= 1
    return _over(fits, lambda x, w, b: layers.conv2d(x, w, b, window), input, weight, bias)


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
    fits = fits and input.numel() > input.shape[1] and _sized(input, weight)
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
    fits = fits and input[0, 0].numel() >= 2 and _sized(input, weight)
    return _over(fits, lambda x, w, b: layers.instance_norm(x, w, b, eps=eps), input, weight, bias)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    axes = len(normalized_shape)
    return _over(
        True, lambda x, w, b: layers.layer_norm(x, axes, w, b, eps=eps), input, weight, bias
    )


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    return _over(
        True, lambda x, w, b: layers.group_norm(x, num_groups, w, b, eps=eps), input, weight, bias
    )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """The product alone, then the bias, which vmap would first multiply by one.

    Large weights as ``(W·xᵀ)ᵀ``: its gradient has the layout of W, where that of a batched ``x·Wᵀ``
    is transposed, and every step would read across it.
    """
    if not carries_tasks(input, weight, bias):
        return None
    if input.dim() == 2 and weight.numel() >= _LARGE:
        z = torch.mm(weight, input.mT).mT
    else:
        z = F.linear(input, weight)
    return z if bias is None else z + bias


def _adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor | None:
    if output_size not in (1, (1, 1), [1, 1]) or not carries_tasks(input):
        return None
    return input.mean((-2, -1), keepdim=True)


def _over(fits: bool, function: Callable[..., Tensor], *operands: Tensor | None) -> Tensor | None:
    """The function over tasks; None where no operand has them, or torch is to say what is wrong."""
    return over_tasks(function, *operands) if fits and carries_tasks(*operands) else None


def _sized(input: Tensor, weight: Tensor | None) -> bool:
    return weight is None or len(weight) == input.shape[1]


_SUBSTITUTES: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv2d: _conv2d,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
}
