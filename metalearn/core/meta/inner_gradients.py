"""Which gradients an inner optimiser is given: of a part of the support set, and clipped.

Axes: T tasks, K inner steps, N samples of a support set, B of them in an inner step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import gcd
from typing import Any

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.tree import leaves, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Batch

__all__ = ["clipped_to", "part_of_support", "with_gradients"]


@checked
def with_gradients(
    optimizer: InnerOptimizer, *, clip_norm: float | None = None, support_batch: int | None = None
) -> InnerOptimizer:
    """The same inner optimiser on gradients that are clipped, or of some samples at a time.

    The inner loop makes them, so that this holds for `adapt` and for `meta_gradient` by every
    method and engine; the optimiser's own ``update`` takes gradients as they come.

    Args:
        optimizer: `sgd`, `adam`, `adamw`, or any other pure pair.
        clip_norm: c above 0: gradients g of a task are multiplied by min(1, c / ‖g‖), the norm
            over all parameters that adapt, before decay and momentum. The factor is differentiated.
        support_batch: B: inner step k takes the gradient of B samples of the support set, which has
            them along the first axis of every leaf. All N of them are gone through in one order,
            positions 0, s, 2s, … modulo N with s about 0.62 N and prime to N, again and again;
            where samples stand by class or class by class, B of them have about as many of each. A
            set of no more than B is taken whole. Adaptation then depends on the order of the set,
            and padding counts as samples: of a part that is padding alone there is no mean loss.

    Raises:
        SettingError: a value out of range.
    """
    if clip_norm is not None:
        check_number("clip_norm", clip_norm, above=0)
    if support_batch is not None:
        check_whole("support_batch", support_batch, 1)

    def kept(make: Callable[..., InnerOptimizer] | None) -> Any:
        return None if make is None else lambda *given: with_both(make(*given))

    def with_both(other: InnerOptimizer) -> InnerOptimizer:
        return replace(
            other,
            clip_norm=clip_norm,
            support_batch=support_batch,
            rebuild=kept(other.rebuild),
            stack=kept(other.stack),
            match=kept(other.match),
        )

    return with_both(optimizer)


def clipped_to(
    limit: float, grads: list[Tensor], lead: int, *, unmoved: frozenset[int] = frozenset()
) -> list[Tensor]:
    """Gradients times min(1, limit / their norm), of one task, or each of T by itself.

    The factor is a root of (‖g‖² / limit²) from 1 on, so that it has a derivative at g = 0.

    Args:
        limit: above 0.
        grads: leaves of one task, or ``[T, ...]`` of T.
        lead: how many axes tasks have in front, 0 or 1.
        unmoved: leaves, by position, that do not count.
    """
    moving = [g for place, g in enumerate(grads) if place not in unmoved]
    if not moving:
        return grads
    squares = [(g * g).reshape(*g.shape[:lead], -1).sum(-1) for g in moving]
    factor = (torch.stack(squares).sum(0) / limit**2).clamp_min(1).rsqrt()
    return [g * factor.to(g).reshape(factor.shape + (1,) * (g.dim() - lead)) for g in grads]


def part_of_support(support: Batch, size: int, step: int, lead: int) -> Batch:
    """The B = ``size`` samples of inner step ``step``, counted from 0; see `with_gradients`.

    Positions are computed where the samples are: no device is waited for.

    Raises:
        SettingError: leaves that do not have the same number of samples.
    """
    each = leaves(support)
    counts = {int(leaf.shape[lead]) if leaf.dim() > lead else 0 for leaf in each}
    if len(counts) != 1 or 0 in counts:
        accepted = "None is needed where leaves of the support set have no axis of samples together"
        raise SettingError("support_batch", size, accepted)
    count = counts.pop()
    if size >= count:
        return support
    device = each[0].device
    places = torch.arange(step * size, (step + 1) * size, device=device) * _stride(count) % count
    part: Batch = tree_map(lambda x: x.index_select(lead, places), support)
    return part


def _stride(count: int) -> int:
    """The number prime to ``count`` that is nearest to its golden section."""
    golden = 0.6180339887498949 * count
    prime = (number for number in range(1, count + 1) if gcd(number, count) == 1)
    return min(prime, key=lambda number: abs(number - golden))
