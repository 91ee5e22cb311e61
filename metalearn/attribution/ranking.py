"""Who stands highest and lowest in scores, and how far methods agree about it.

Axes: R targets, N examples, S methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.attribution.datamodels import rank_correlations

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
    found = most_helpful(-scores, count)
    return Ranked(found.examples, [-score for score in found.scores])


def highest(scores: Tensor, count: int) -> Ranked:
    """At most ``count`` examples of the highest scores ``[N]``; what is NaN stands nowhere.

    Of equal scores the earlier ones.
    """
    values = scores.detach().cpu().double()
    known = (~values.isnan()).nonzero().flatten()
    order = values[known].sort(descending=True, stable=True).indices[:count]
    return Ranked(known[order].tolist(), values[known[order]].tolist())


def agreement(scores: Mapping[str, Tensor]) -> Tensor:
    """Rank correlation of methods over examples, the mean over targets: ``[S, S]``, float64.

    Left out are targets whose scores are not finite or all equal; NaN where none is left.

    Args:
        scores: S of ``[R, N]``.
    """
    methods = [values.detach().cpu().double() for values in scores.values()]
    known = [values.isfinite().all(1) & (values != values[:, :1]).any(1) for values in methods]
    found = torch.full((len(methods), len(methods)), torch.nan, dtype=torch.float64)
    for i, one in enumerate(methods):
        for j, other in enumerate(methods[: i + 1]):
            both = known[i] & known[j]
            if bool(both.any()):
                found[i, j] = found[j, i] = rank_correlations(one[both], other[both]).mean()
    return found
