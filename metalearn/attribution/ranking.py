"""Who stands highest and lowest in scores, and how far methods agree about it.

Axes: R targets, N examples, S methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.attribution.datamodels import centred_midranks

__all__ = ["Ranked", "agreement", "highest", "most_harmful", "most_helpful"]


class Ranked(NamedTuple):
    """Examples in the order of their scores, the strongest first."""

    examples: list[int]
    scores: list[float]


def most_helpful(scores: Tensor, count: int) -> Ranked:
    """At most ``count`` examples of the highest scores ``[N]`` above 0."""
    found = highest(scores, count)
    kept = sum(score > 0 for score in found.scores)
    return Ranked(found.examples[:kept], found.scores[:kept])


def most_harmful(scores: Tensor, count: int) -> Ranked:
    """At most ``count`` examples of the lowest scores ``[N]`` below 0, the lowest first."""
    found = most_helpful(-scores.detach().double(), count)  # of bytes there are no negatives
    return Ranked(found.examples, [-score for score in found.scores])


def highest(scores: Tensor, count: int) -> Ranked:
    """At most ``count`` examples of the highest scores ``[N]``; what is NaN stands nowhere.

    Of equal scores the earlier ones.
    """
    values = scores.detach().cpu().double()
    known = (~values.isnan()).nonzero().flatten()
    if len(known) > count:  # a sort of few is sooner done than of all
        known = known[values[known] >= values[known].topk(count).values[-1]]
    order = known[values[known].sort(descending=True, stable=True).indices[:count]]
    return Ranked(order.tolist(), values[order].tolist())


def agreement(scores: Mapping[str, Tensor]) -> Tensor:
    """Rank correlation of methods over examples, the mean over targets: ``[S, S]``, float64.

    Left out are targets whose scores are not finite or all equal; NaN where none is left.

    Args:
        scores: S of ``[R, N]``.
    """
    methods = [values.detach().cpu().double() for values in scores.values()]
    sums = torch.zeros(len(methods), len(methods), dtype=torch.float64)
    counts = torch.zeros_like(sums)
    for rows in map(torch.stack, zip(*methods)):  # one target after another: ranks are large
        known = rows.isfinite().all(1) & (rows != rows[:, :1]).any(1)
        ranks = F.normalize(centred_midranks(rows.nan_to_num()), dim=1) * known[:, None]
        sums += ranks @ ranks.T
        counts += known[:, None] & known
    return sums / counts
