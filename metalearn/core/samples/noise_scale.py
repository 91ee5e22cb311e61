"""Gradient noise scale: how much gradients of samples (tasks, members) differ, against their mean.

McCandlish et al., "An Empirical Model of Large-Batch Training", 2018, arXiv 1812.06162.
Axes: N whatever the leading axis counts: samples, tasks, members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.precision import widened_tree
from metalearn.core.tree import check_floating, flatten, leaves, tree_map, unflatten
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked

__all__ = ["NoiseAverage", "NoiseScale", "gradient_noise_scale", "noise_average"]


class NoiseScale(NamedTuple):
    """tr(Σ)/‖G‖² and its two parts, in total and for each parameter."""

    scale: Tensor
    """Scalar: ``noise / signal``; infinite where the estimate of the signal is not above 0, NaN
    where there was one gradient alone."""
    noise: Tensor
    """Scalar: unbiased tr(Σ), Σ the covariance of one sample's gradient."""
    signal: Tensor
    """Scalar: unbiased ‖G‖², G the expected gradient; it can come out below 0."""
    noise_by_leaf: Any
    """A tree of scalars: the part of each parameter."""
    signal_by_leaf: Any
    """The same for the signal."""

    @property
    def scale_by_leaf(self) -> Any:
        """A tree of scalars: each parameter's own noise scale."""
        return tree_map(_ratio, self.noise_by_leaf, self.signal_by_leaf)


class NoiseAverage(NamedTuple):
    """A pure pair that averages noise and signal separately over steps."""

    init: Callable[[Any], Any]
    """``init(params)``: the state before the first step, for trees like ``params``."""
    update: Callable[[Any, NoiseScale], Any]
    """``update(state, step)``: the next state; a step with NaN is left out."""
    value: Callable[[Any], NoiseScale]
    """``value(state)``: the noise scale of the averages; NaN before the first step."""


@checked
def gradient_noise_scale(grads: Any, *, group_size: int = 1) -> NoiseScale:
    """Noise scale of gradients that are at hand: tr(Σ)/‖G‖².

    tr(Σ) = b·(1/(N−1)) Σ_i ‖g_i − ḡ‖² and ‖G‖² = ‖ḡ‖² − tr(Σ)/(bN), both unbiased for independent
    g_i, each a mean over b samples. Their ratio is not: average both over steps, with
    `noise_average`, before it is taken. With N = 1 nothing is known, and all is NaN.

    Args:
        grads: tree with leaves ``[N, ...]``, from `per_sample_gradients` or any other source.
        group_size: b, samples that each g_i is the mean of; tr(Σ) is that of one sample.

    Raises:
        SettingError: leaves that are not floating-point tensors or differ in N; a group size
            below 1.
    """
    check_whole("group_size", group_size, 1)
    check_floating(grads, "grads")
    values, spec = flatten(widened_tree(grads))
    counts = {v.shape[0] if v.dim() else None for v in values}
    if len(counts) != 1 or counts <= {None, 0}:
        raise SettingError("grads", counts, "leaves with the same leading axis, at least 1 long")
    count = values[0].shape[0]
    noises, signals = [], []
    for value in values:
        mean = value.mean(0)
        spread = (value - mean).square().sum() / (count - 1) if count > 1 else _nan(mean)
        noises.append(group_size * spread)
        signals.append(mean.square().sum() - spread / count)
    return _gathered(unflatten(noises, spec), unflatten(signals, spec))


@checked
def noise_average(decay: float | None = None) -> NoiseAverage:
    """Averages of numerator and denominator, whose ratio is a noise scale over many steps.

    Args:
        decay: of exponential averages, from 0 to below 1, corrected for their start; None weighs
            all steps equally.

    Raises:
        SettingError: a decay outside of that.
    """
    if decay is not None:
        accepted = "a number from 0 to below 1, or None, is needed"
        check_number("decay", decay, least=0, below=1, accepted=accepted)

    def init(params: Any) -> Any:
        zeros = tree_map(lambda p: p.new_zeros(()), params)
        return leaves(params)[0].new_zeros(()), zeros, zeros

    def update(state: Any, step: NoiseScale) -> Any:
        known = ~torch.isnan(step.noise + step.signal)
        keep = 1.0 if decay is None else decay
        add = 1.0 if decay is None else 1 - decay

        def blend(old: Tensor, new: Tensor) -> Tensor:
            return torch.where(known, keep * old + add * new, old)

        weight, noises, signals = state
        return (
            blend(weight, torch.ones_like(weight)),
            tree_map(blend, noises, step.noise_by_leaf),
            tree_map(blend, signals, step.signal_by_leaf),
        )

    def value(state: Any) -> NoiseScale:
        weight, noises, signals = state
        return _gathered(*(tree_map(lambda x: x / weight, tree) for tree in (noises, signals)))

    return NoiseAverage(init, update, value)


def _gathered(noises: Any, signals: Any) -> NoiseScale:
    noise, signal = (torch.stack(leaves(tree)).sum() for tree in (noises, signals))
    return NoiseScale(_ratio(noise, signal), noise, signal, noises, signals)


def _ratio(noise: Tensor, signal: Tensor) -> Tensor:
    ratio = noise / torch.where(signal > 0, signal, torch.ones_like(signal))
    return torch.where(signal <= 0, torch.full_like(ratio, torch.inf), ratio) + 0 * _nan_of(signal)


def _nan_of(signal: Tensor) -> Tensor:
    """NaN where the signal is, 0 elsewhere."""
    return torch.where(torch.isnan(signal), signal, torch.zeros_like(signal))


def _nan(like: Tensor) -> Tensor:
    return like.new_full((), torch.nan)
