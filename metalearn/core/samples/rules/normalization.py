"""Scale and shift of normalisations whose statistics are of one sample, or given.

z = x̂·w + b; the gradient of w is Σ dz·x̂, of b Σ dz, over all that shares them. x̂ is made again
from the input in the backward pass, so that the forward pass stays torch's own.
Axes: N samples, n entries of one sample's batch, C channels, ``[...]`` space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core._functorch import is_functorch_wrapped_tensor
from metalearn.core.ops.decomposed_norms import standardized
from metalearn.core.samples.layer_rules import GradientsOf, LayerCall, LayerRule
from metalearn.core.samples.outer_products import split_together
from metalearn.core.samples.sample_gradients import FormedGradients

__all__ = ["RULES"]

Hat = Callable[..., Tensor]
"""x̂ ``[N, ...]`` from the input and, where there are any, the given statistics."""


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> LayerCall | None:
    axes = list(range(-len(normalized_shape), 0))
    return _affine(
        lambda weight, bias: F.layer_norm(input, normalized_shape, weight, bias, eps),
        (input,), (weight, bias), lambda x: _standardized(x, axes, eps), _trailing(axes),
    )  # fmt: skip


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> LayerCall | None:
    return _affine(
        lambda weight: F.rms_norm(input, normalized_shape, weight, eps),
        (input,), (weight,), lambda x: F.rms_norm(x, normalized_shape, None, eps),
        _trailing(normalized_shape),
    )  # fmt: skip


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> LayerCall | None:
    return _affine(
        lambda weight, bias: F.group_norm(input, num_groups, weight, bias, eps),
        (input,), (weight, bias), lambda x: _by_groups(x, num_groups, eps), _channels,
    )  # fmt: skip


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> LayerCall | None:
    if use_input_stats and running_mean is not None:
        return None  # statistics would have to be written
    if not use_input_stats and (running_mean is None or running_var is None):
        return None  # torch says what is wrong

    def run(weight: Tensor | None, bias: Tensor | None) -> Tensor:
        given = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
        return F.instance_norm(input, *given)

    inputs = (input,) if use_input_stats else (input, running_mean, running_var)
    hat: Hat = (lambda x: _by_groups(x, x.shape[2], eps)) if use_input_stats else _given(eps)
    return _affine(run, inputs, (weight, bias), hat, _channels)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> LayerCall | None:
    if training or running_mean is None or running_var is None:
        return None  # it mixes samples

    def run(weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)

    inputs = (input, running_mean, running_var)
    return _affine(run, inputs, (weight, bias), _given(eps), _channels)


def _affine(
    run: Callable[..., Tensor],
    inputs: Sequence[Any],
    parameters: Sequence[Tensor | None],
    hat: Hat,
    shared: Callable[[Tensor], Tensor],
) -> LayerCall:
    """With ``shared`` the sum of ``[N, ...]`` over all that shares a scale."""

    def of_scale(dz: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        pieces = split_together(math.prod(dz.shape[1:]), dz, *inputs)
        return torch.cat([shared(part * hat(*given)) for part, *given in pieces])

    gradients: tuple[GradientsOf, ...] = (
        lambda dz, *inputs: FormedGradients(of_scale(dz, inputs)),
        lambda dz, *inputs: FormedGradients(shared(dz)),
    )
    return LayerCall(run, inputs, parameters, gradients[: len(parameters)])


def _trailing(kept: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Sums over all axes between the samples and as many last ones as ``kept`` has entries."""

    def shared(x: Tensor) -> Tensor:
        axes = list(range(1, x.dim() - len(kept)))
        return x.sum(axes) if axes else x

    return shared


def _channels(x: Tensor) -> Tensor:
    """``[N, n, C, ...]`` summed to ``[N, C]``."""
    return x.sum((1, *range(3, x.dim())))


def _by_groups(x: Tensor, groups: int, eps: float) -> Tensor:
    """``[N, n, C, ...]`` standardised over all of each group of channels."""
    rows = x.reshape(*x.shape[:2], groups, -1)
    return _standardized(rows, [-1], eps).view(x.shape)


def _standardized(x: Tensor, axes: list[int], eps: float) -> Tensor:
    """By torch where no further derivative is taken, of which torch's own is wrong."""
    if x.requires_grad or is_functorch_wrapped_tensor(x):
        return standardized(x, axes, eps)
    return F.layer_norm(x, x.shape[axes[0] :], None, None, eps)


def _given(eps: float) -> Hat:
    """By given statistics ``[N, C]``."""

    def hat(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        shape = (len(x), 1, -1, *(1,) * (x.dim() - 3))
        return (x - mean.view(shape)) * (variance.view(shape) + eps).rsqrt()

    return hat


RULES: dict[Any, LayerRule] = {
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.batch_norm: _batch_norm,
}
