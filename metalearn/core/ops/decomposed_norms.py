"""Normalisation in plain arithmetic, in the place of torch's own.

Derivatives of torch's batch, layer and instance norms are silently wrong where a vmap over their
backward pass is differentiated (pytorch/functorch#534), and so are their third derivatives
(pytorch/pytorch#186256); plain arithmetic has them right.
Axes: ``[N, C, ...]`` a batch with channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metalearn.core._functorch import is_gradtrackingtensor, maybe_current_level, maybe_get_level
from metalearn.core.ops.over_tasks import unwrap

__all__ = ["decomposed_norm", "decomposed_norms", "decomposed_norms_in_loss", "standardized"]


def decomposed_norms(wanted: bool) -> AbstractContextManager[Any]:
    """Where ``wanted``, answers batch, instance and layer norms with plain arithmetic.

    Norms with running statistics are left to torch, whose derivatives of them are right.
    """
    return _DecomposedNorms() if wanted else nullcontext()


def decomposed_norms_in_loss() -> AbstractContextManager[Any]:
    """Answers those norms whose gradients or tangents torch.func takes inside the block."""
    return _DecomposedNorms(maybe_current_level() or 0)


def decomposed_norm(function: Any, args: Any, kwargs: Any, above: int = 0) -> Tensor | None:
    """A norm in plain arithmetic where a gradient level above ``above`` takes part, else None."""
    plain = _DECOMPOSED.get(function)
    if plain is None or _gradient_level([*args, *kwargs.values()]) <= above:
        return None
    return plain(*args, **kwargs)


def _gradient_level(operands: Sequence[Any]) -> int:
    """The innermost level at which torch.func takes a derivative of any operand; 0 for none."""
    wrappers = (w for x in operands if isinstance(x, Tensor) for w in unwrap(x)[0])
    return max((maybe_get_level(w) for w in wrappers if is_gradtrackingtensor(w)), default=0)


class _DecomposedNorms(TorchFunctionMode):
    def __init__(self, above: int = -1) -> None:
        super().__init__()
        self.above = above

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        answer = decomposed_norm(function, args, kwargs, self.above)
        return function(*args, **kwargs) if answer is None else answer


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    axes = list(range(-len(normalized_shape), 0))
    if tuple(input.shape[axes[0] :]) != tuple(normalized_shape):
        return None
    return _affine(standardized(input, axes, eps), weight, bias)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if not training or running_mean is not None or running_var is not None:
        return None
    return _by_channel([0, *range(2, input.dim())], input, weight, bias, eps)


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
    if not use_input_stats or running_mean is not None or running_var is not None:
        return None
    return _by_channel(list(range(2, input.dim())), input, weight, bias, eps)


def _by_channel(
    axes: list[int], x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor | None:
    if math.prod(x.shape[axis] for axis in axes) <= 1:  # torch says what is wrong
        return None
    shape = (-1, *(1,) * (x.dim() - 2))
    affine = (None if p is None else p.reshape(shape) for p in (weight, bias))
    return _affine(standardized(x, axes, eps), *affine)


def standardized(x: Tensor, axes: list[int], eps: float) -> Tensor:
    """(x − m)·(var + eps)^(−1/2), var with divisor N."""
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor | None:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _torch_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor | None:
    return _instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


def _torch_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor | None:
    return _layer_norm(input, normalized_shape, weight, bias, eps)


_DECOMPOSED: dict[Any, Callable[..., Tensor | None]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    torch.batch_norm: _torch_batch_norm,
    torch.instance_norm: _torch_instance_norm,
    torch.layer_norm: _torch_layer_norm,
}
