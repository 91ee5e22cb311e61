"""SWAG: a normal distribution over parameters from the iterates of one training run.

Maddox et al., "A Simple Baseline for Bayesian Uncertainty in Deep Learning", NeurIPS 2019
(arXiv 1902.02476). Axes: K columns of deviations, P parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.core.tree import flatten, tree_map, unflatten
from metalearn.errors import SettingError, check_whole
from metalearn.types import Params

__all__ = ["SWAGMoments", "swag_init", "swag_sample", "swag_update", "swag_variance"]


class SWAGMoments(NamedTuple):
    """What is kept of the iterates θ_1 … θ_n."""

    iterates: Tensor
    """n, a scalar (int64)."""
    mean: Params
    """(1/n) Σ θ_i."""
    squares: Params
    """Σ (θ_i − mean)², element by element."""
    deviations: Params
    """Leaves ``[K, ...]``: θ_i − (mean of the first i) of the last K iterates, newest last; rows
    that are not filled yet are 0."""


def swag_init(params: Params, *, rank: int = 20) -> SWAGMoments:
    """Moments of no iterate.

    Args:
        params: gives names, shapes and types.
        rank: K.

    Raises:
        SettingError: a rank below 1.
    """
    check_whole("rank", rank, 1)
    first = flatten(params)[0][0]
    return SWAGMoments(
        torch.zeros((), dtype=torch.int64, device=first.device),
        tree_map(torch.zeros_like, params),
        tree_map(torch.zeros_like, params),
        tree_map(lambda p: p.new_zeros(rank, *p.shape), params),
    )


def swag_update(moments: SWAGMoments, params: Params) -> SWAGMoments:
    """Moments with one more iterate (Welford's recursion: no difference of large squares)."""
    count = moments.iterates + 1
    mean = tree_map(lambda m, p: m + (p - m) / count, moments.mean, params)
    squares = tree_map(
        lambda s, p, old, new: s + (p - old) * (p - new),
        moments.squares,
        params,
        moments.mean,
        mean,
    )
    deviations = tree_map(
        lambda d, p, m: torch.cat([d[1:], (p - m).unsqueeze(0)]), moments.deviations, params, mean
    )
    return SWAGMoments(count, mean, squares, deviations)


def swag_variance(moments: SWAGMoments) -> Params:
    """(1/n) Σ (θ_i − mean)² of each element: the diagonal Σ_diag."""
    return tree_map(lambda s: s / moments.iterates.clamp_min(1), moments.squares)


def swag_sample(moments: SWAGMoments, *, generator: torch.Generator, scale: float = 1.0) -> Params:
    """A draw of θ = mean + √(scale/2)·(Σ_diag^½ z + D z' / √(K − 1)).

    z has P and z' has K standard normal numbers; D holds the deviations as columns, of which there
    are fewer than K before K iterates. The covariance is scale·(Σ_diag + D Dᵀ/(K−1))/2.

    Args:
        moments: of at least one iterate.
        generator: of z and z', on the CPU.
        scale: factor of the covariance; 0 gives the mean.

    Raises:
        SettingError: a negative scale.
    """
    if not scale >= 0:
        raise SettingError("scale", scale, "a number of at least 0 is needed")
    variances, spec = flatten(swag_variance(moments))
    means, columns = flatten(moments.mean)[0], flatten(moments.deviations)[0]
    rank = columns[0].shape[0]
    filled = moments.iterates.clamp(max=rank)
    mix = torch.randn(rank, generator=generator).to(columns[0])
    mix = mix / (filled - 1).clamp_min(1).sqrt()
    drawn = []
    for mean, variance, deviation in zip(means, variances, columns):
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        spread = variance.sqrt() * noise + torch.tensordot(mix.to(deviation), deviation, 1)
        drawn.append(mean + (scale / 2) ** 0.5 * spread)
    return unflatten(drawn, spec)
