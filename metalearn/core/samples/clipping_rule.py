"""By what gradients are multiplied that are clipped, samples or tasks each by itself.

Axes: N samples or tasks, K groups of parameters that are clipped by themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.core.precision import norms_of, squares, widened
from metalearn.core.samples.clipping_groups import (
    Clipping,
    ParameterGroups,
    check_clipping,
    group_numbers,
)
from metalearn.core.tree import flatten, unflatten
from metalearn.types import Params

__all__ = ["ClippingRule", "clipped_sum", "clipping_rule"]

_STABILITY = 0.01  # γ of automatic clipping


@dataclass(frozen=True)
class ClippingRule:
    """How gradients are clipped."""

    clipping: Clipping
    groups: list[int]
    """Of each leaf, its group."""

    @property
    def count(self) -> int:
        """K."""
        return max(self.groups) + 1

    def limits(self, max_norm: float | Tensor) -> float | Tensor:
        """C/√K, ``[N, 1]`` where samples have their own."""
        own = isinstance(max_norm, Tensor) and max_norm.dim() == 1
        each: float | Tensor = max_norm[:, None] if own else max_norm  # type: ignore[index]
        return each if self.count == 1 else each / math.sqrt(self.count)

    def norms(self, squared: list[Tensor]) -> Tensor:
        """``[N, K]`` of the squares of leaves, ``[N]`` each."""
        sums: list[list[Tensor]] = [[] for _ in range(self.count)]
        for number, part in zip(self.groups, squared):
            sums[number].append(part)
        return torch.stack([norms_of(parts) for parts in sums], dim=1)

    def factors(self, norms: Tensor, max_norm: float | Tensor) -> list[Tensor]:
        """Of each leaf, ``[N]``: what gradients are multiplied by."""
        limits = self.limits(max_norm)
        if self.clipping == "automatic":
            found = limits / (norms + _STABILITY)
        else:  # 1 where the norm is zero
            above = norms > limits
            found = torch.where(above, limits / torch.where(above, norms, 1.0), 1.0)
        columns = found.to(norms.dtype).unbind(1)
        return [columns[number] for number in self.groups]


def clipping_rule(params: Params, clipping: Clipping, groups: ParameterGroups) -> ClippingRule:
    """The rule for gradients of parameters; see `clipped_gradient`.

    Raises:
        SettingError: no such way of clipping, or groups that are none.
    """
    return ClippingRule(check_clipping(clipping), group_numbers(params, groups))


def clipped_sum(grads: Params, max_norm: float, rule: ClippingRule) -> Params:
    """Σ_i g_i·min(1, C/‖g_i‖) of gradients that are there, leaves ``[N, ...]``; N may be 0.

    What is not finite in any element counts as none.

    Args:
        grads: of N samples or tasks.
        max_norm: C.
        rule: how they are clipped.

    Returns:
        A tree like the parameters, in float32 at least.
    """
    values, spec = flatten(grads)
    values = [widened(value) for value in values]
    norms = rule.norms([squares(value) for value in values])
    finite = norms.isfinite().all(1)
    if not bool(finite.all()):
        values, norms = [value[finite] for value in values], norms[finite]
    factors = rule.factors(norms, max_norm)
    sums = [torch.tensordot(f.to(v.dtype), v, dims=1) for f, v in zip(factors, values)]
    return unflatten(sums, spec)
