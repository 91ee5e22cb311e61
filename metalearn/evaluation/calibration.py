"""Calibration of the most probable class: reliability diagram, expected and adaptive error.

Axes: N samples last; any axes before them (members, ensemble sizes) are scored side by side. A
confidence is the probability of the predicted class, a hit says whether that class is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.core.tree import check_floating, check_tensors
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked

__all__ = [
    "ReliabilityBins",
    "adaptive_calibration_error",
    "bin_sums",
    "check_confidences",
    "expected_calibration_error",
    "reliability_bins",
    "shared_by_ties",
]


@dataclass(frozen=True)
class ReliabilityBins:
    """A reliability diagram of equal-width bins ((b−1)/bins, b/bins].

    Attributes:
        count: samples in each bin, ``[..., bins]`` (int64).
        confidence: mean confidence, ``[..., bins]`` (float64); NaN in an empty bin.
        accuracy: share of hits, ``[..., bins]`` (float64); NaN in an empty bin.
    """

    count: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> Tensor:
        """Expected calibration error ``[...]``, ``Σ_b (n_b / N) |accuracy_b − confidence_b|``."""
        gaps = (self.accuracy - self.confidence).abs() * self.count
        filled = torch.where(self.count > 0, gaps, 0.0)
        return filled.sum(-1) / self.count.sum(-1)

    @staticmethod
    def from_sums(sums: Tensor) -> ReliabilityBins:
        """From `bin_sums`, added up over any number of batches."""
        count, confidence, accuracy = sums
        return ReliabilityBins(count.long(), confidence / count, accuracy / count)


@checked
def reliability_bins(confidences: Tensor, hits: Tensor, *, bins: int = 15) -> ReliabilityBins:
    """Count, mean confidence and accuracy in equal-width bins of the confidence.

    Args:
        confidences: ``[..., N]`` in 0..1.
        hits: booleans (or 0 and 1) of the same shape.
        bins: number of bins; a confidence on an edge belongs to the bin below it.

    Raises:
        SettingError: no sample, shapes that differ, or fewer than one bin.
    """
    check_whole("bins", bins, 1, 2**24)
    check_confidences(confidences, hits)
    return ReliabilityBins.from_sums(bin_sums(confidences, hits, bins=bins))


@checked
def expected_calibration_error(confidences: Tensor, hits: Tensor, *, bins: int = 15) -> Tensor:
    """``Σ_b (n_b / N) |accuracy_b − confidence_b|`` over equal-width bins.

    Naeini et al., AAAI 2015; Guo et al., ICML 2017 (arXiv 1706.04599).

    Args:
        confidences: ``[..., N]`` in 0..1.
        hits: booleans (or 0 and 1) of the same shape.
        bins: number of bins.

    Returns:
        ``[...]``, float64.

    Raises:
        SettingError: no sample, shapes that differ, or fewer than one bin.
    """
    return reliability_bins(confidences, hits, bins=bins).error


@checked
def adaptive_calibration_error(confidences: Tensor, hits: Tensor, *, bins: int = 15) -> Tensor:
    """The same sum over bins of equal mass: N/bins samples each, in order of confidence.

    Where N is not a multiple of ``bins`` the lowest bins have one sample more. Samples of equal
    confidence share their mean accuracy, so that a border between them does not depend on their
    order. After Nixon et al., CVPR workshops 2019 (arXiv 1904.01685), for the top class alone.

    Args:
        confidences: ``[..., N]`` in 0..1.
        hits: booleans (or 0 and 1) of the same shape.
        bins: number of bins.

    Returns:
        ``[...]``, float64.

    Raises:
        SettingError: no sample, shapes that differ, or fewer than one bin.
    """
    check_whole("bins", bins, 1, 2**24)
    check_confidences(confidences, hits)
    samples = confidences.shape[-1]
    ordered, order = confidences.reshape(-1, samples).cpu().sort(-1)
    right = hits.reshape(-1, samples).cpu().double().gather(-1, order)
    sizes = torch.full((bins,), samples // bins)
    sizes[: samples % bins] += 1
    where = torch.arange(bins).repeat_interleave(sizes).expand_as(order)
    gaps = torch.zeros(len(ordered), bins, dtype=torch.float64)
    gaps.scatter_add_(-1, where, shared_by_ties(ordered, right) - ordered.double())
    return (gaps.abs().sum(-1) / samples).reshape(confidences.shape[:-1])


def bin_sums(confidences: Tensor, hits: Tensor, *, bins: int) -> Tensor:
    """Count, summed confidence and hits of equal-width bins; ``[..., N]`` → ``[3, ..., bins]``.

    Float64 on the CPU; the sums of two batches are the sums of both together.
    """
    values = confidences.cpu().reshape(-1, confidences.shape[-1])
    edges = torch.linspace(0, 1, bins + 1, dtype=values.dtype)[1:-1]
    # A NaN falls into the last bin, which makes it and the error NaN as well.
    where = torch.bucketize(values, edges) + bins * torch.arange(len(values)).unsqueeze(-1)
    weights = (torch.ones_like(values), values, hits.cpu().reshape_as(values))
    sums = [
        torch.bincount(where.flatten(), weight.double().flatten(), minlength=len(values) * bins)
        for weight in weights
    ]
    return torch.stack(sums).reshape(3, *confidences.shape[:-1], bins)


def shared_by_ties(ordered: Tensor, right: Tensor) -> Tensor:
    """The mean of ``right`` over samples of equal value, in each row of ``ordered [R, N]``."""
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = first.flatten().cumsum(0) - 1
    means = torch.bincount(group, right.flatten()) / torch.bincount(group)
    return means[group].reshape_as(right)


def check_confidences(confidences: Tensor, hits: Tensor) -> None:
    """Refuse what is not one confidence and one hit for each of at least one sample.

    Raises:
        SettingError: says what is wrong.
    """
    check_floating(confidences, "confidences")
    check_tensors(hits, "hits")
    if confidences.ndim < 1 or not confidences.numel():
        accepted = "[..., N] with at least one sample is needed"
        raise SettingError("shape of confidences", list(confidences.shape), accepted)
    if hits.shape != confidences.shape:
        accepted = f"{list(confidences.shape)} is needed, the shape of the confidences"
        raise SettingError("shape of hits", list(hits.shape), accepted)
