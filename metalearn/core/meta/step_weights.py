"""Weights of the query losses along the inner loop: Σ_k w_k · L(θ_k, query) with k = 0 … K.

Source: Antoniou, Edwards and Storkey, "How to Train Your MAML", ICLR 2019 (multi-step loss).
Axes: K inner steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from metalearn.core._functorch import is_functorch_wrapped_tensor
from metalearn.core.tracing import is_traced
from metalearn.errors import SettingError

__all__ = ["StepWeights", "Weights", "read_step_weights", "weighted", "weighted_steps"]

StepWeights = Sequence[float | Tensor] | Tensor | Any
"""K + 1 numbers, a tensor ``[K+1]``, or None for (0, …, 0, 1)."""
Weights = tuple[float | Tensor, ...]
"""K + 1 of them; numbers where their values are known."""


def read_step_weights(weights: StepWeights, steps: int) -> Weights:
    """K + 1 weights, None standing for (0, …, 0, 1).

    Tensors on a CPU are read. On other devices, inside transforms and while compiling they are
    taken as they are.

    Raises:
        SettingError: not K + 1 of them, or one that is no finite number.
    """
    if weights is None:
        return (0.0,) * steps + (1.0,)
    each = list(weights.unbind()) if isinstance(weights, Tensor) and weights.dim() else weights
    if not isinstance(each, list | tuple) or len(each) != steps + 1:
        shown = list(weights.shape) if isinstance(weights, Tensor) else weights
        accepted = f"{steps + 1} weights are needed, one for each of θ_0 … θ_{steps}"
        raise SettingError("step_weights", shown, accepted)
    return tuple(_read(weight, k) for k, weight in enumerate(each))


def weighted_steps(weights: Weights) -> list[int]:
    """The steps k whose query losses count; the last, where none does."""
    counting = [k for k, w in enumerate(weights) if isinstance(w, Tensor) or w != 0]
    return counting or [len(weights) - 1]


def weighted(weight: float | Tensor, value: Tensor) -> Tensor:
    """``weight · value``, the value itself where the weight is the number 1."""
    return value if isinstance(weight, float) and weight == 1 else weight * value


def _read(weight: float | Tensor, k: int) -> float | Tensor:
    number: object = weight
    if isinstance(weight, Tensor):
        if weight.dim() or not weight.is_floating_point():
            shown = list(weight.shape) if weight.dim() else weight.dtype
            raise SettingError(f"step_weights[{k}]", shown, "a finite number is needed")
        wrapped = is_functorch_wrapped_tensor(weight) or is_traced()
        if wrapped or weight.device.type != "cpu":
            return weight
        number = weight.item()
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise SettingError(f"step_weights[{k}]", weight, "a finite number is needed")
    return float(number)
