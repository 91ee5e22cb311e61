"""Do scores of training examples foretell what retraining without them does?

Axes: M subsets, N training examples, R targets, K counts of examples that are left out, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.core.memory import check_memory
from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError, check_whole
from metalearn.evaluation.seeds import mean_over_seeds
from metalearn.signatures import checked

__all__ = [
    "Brittleness",
    "DatamodelingScore",
    "LeaveOutChanges",
    "brittleness",
    "brittleness_of",
    "centred_midranks",
    "leave_out_changes",
    "leave_top_out",
    "linear_datamodeling_score",
    "predicted_outcomes",
    "rank_correlations",
]

_NORMAL = 1.959963984540054  # the 97.5 % quantile


class DatamodelingScore(NamedTuple):
    """How well scores foretell the outcomes of retraining."""

    correlations: Tensor
    """``[R]``: Spearman's rank correlation over subsets; NaN where a target's outcomes are all
    equal, so that there is nothing to foretell."""
    mean: float
    """Over the targets whose correlation is no NaN."""
    interval95: float
    """Half the width of the 95 % interval of the mean over targets, by Student's t."""


class LeaveOutChanges(NamedTuple):
    """What leaving out the most helpful examples of each target did, and was said to do."""

    changes: Tensor
    """``[R, K]``: loss of the target without them minus its loss with all."""
    predicted: Tensor
    """``[R, K]``: the sum of their scores."""


class Brittleness(NamedTuple):
    """Which predictions of targets flip when their most helpful examples are left out."""

    flipped: Tensor
    """``[R, K]``."""
    share: Tensor
    """``[K]``: of the targets that flip."""
    interval95: Tensor
    """``[K, 2]``: ends of the 95 % interval of the share (Wilson, 1927)."""
    smallest: Tensor
    """``[R]``: the smallest of the counts that flips a target; −1 where none does."""


@checked
def linear_datamodeling_score(
    scores: Tensor, weights: Tensor, outcomes: Tensor
) -> DatamodelingScore:
    """Rank correlation of predicted and real outcomes of retrained subsets, for each target.

    The loss of target r in subset m is foretold, up to a constant of the target, as
    Σ_i (1 − w[m, i])·s[r, i]: a score is positive where leaving the example out raises the loss.
    Equal values share the mean of their ranks. A target whose outcomes are all equal has no
    correlation and no part in the mean; one whose predictions alone are all equal has 0.

    Args:
        scores: ``[R, N]``, of any unit.
        weights: ``[M, N]``, M at least 2, with which subsets were trained.
        outcomes: ``[M, R]``, losses of the targets, as `retrain_subsets` gives them.

    Raises:
        SettingError: shapes that do not fit, numbers that are not finite, no target whose outcomes
            differ.

    Source: Park et al., "TRAK: Attributing Model Behavior at Scale", ICML 2023; Ilyas et al.,
    "Datamodels: Predicting Predictions from Training Data", ICML 2022.
    """
    _check_matrix("scores", scores, ("R", "N"))
    targets, examples = scores.shape
    _check_matrix("weights", weights, ("M", examples))
    subsets = len(weights)
    if subsets < 2:
        raise SettingError("subsets", subsets, "at least 2 are needed for a correlation")
    _check_matrix("outcomes", outcomes, (subsets, targets))
    real = outcomes.detach().cpu().double().T
    found = rank_correlations(predicted_outcomes(scores, weights), real)
    known = found[~found.isnan()]
    if not len(known):
        accepted = "a target is needed whose outcomes differ between subsets"
        raise SettingError("outcomes", "all equal", accepted)
    summary = mean_over_seeds(known.tolist())
    return DatamodelingScore(found, summary.mean, summary.interval95)


def predicted_outcomes(scores: Tensor, weights: Tensor) -> Tensor:
    """Σ_i (1 − w[m, i])·s[r, i]: ``[R, N]`` and ``[M, N]`` → ``[R, M]``, float64."""
    return scores.detach().cpu().double() @ (1 - weights.detach().cpu().double()).T


@checked
def rank_correlations(predicted: Tensor, real: Tensor) -> Tensor:
    """Spearman's rank correlation of each row, ``[R]``, float64: Pearson's of midranks.

    A row of ``real`` whose values are all equal gives NaN, else one of ``predicted`` gives 0.

    Args:
        predicted: ``[R, M]``.
        real: ``[R, M]``.

    Raises:
        SettingError: shapes that differ, numbers that are not finite.
    """
    _check_matrix("predicted", predicted, ("R", "M"))
    _check_matrix("real", real, tuple(predicted.shape))
    one, other = centred_midranks(predicted), centred_midranks(real)
    products = (one * other).sum(1)
    sizes = one.norm(dim=1) * other.norm(dim=1)
    found = torch.where(sizes > 0, products / sizes, 0.0).clamp(-1, 1)
    return torch.where(other.norm(dim=1) > 0, found, torch.nan)


def centred_midranks(values: Tensor) -> Tensor:
    """Ranks from 1 of each row ``[R, M]``, equal values at the mean of theirs, minus their mean."""
    ordered, order = values.detach().cpu().double().sort(dim=1)
    group = torch.zeros_like(order)
    group[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    places = torch.arange(1.0, values.shape[1] + 1, dtype=torch.float64).expand_as(ordered)
    zeros = torch.zeros_like(ordered)
    sums = zeros.scatter_add(1, group, places)
    sizes = zeros.scatter_add(1, group, torch.ones_like(ordered))
    ranks = (sums / sizes).gather(1, group)
    return zeros.scatter(1, order, ranks) - (values.shape[1] + 1) / 2


@checked
def leave_top_out(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """Weights of the subsets that lack the most helpful examples of each target.

    Row 0 is all of the training part. Row 1 + r·K + j lacks the ``counts[j]`` examples of the
    highest scores for target r, whatever their sign; of equal scores the earlier ones.

    Args:
        scores: ``[R, N]``.
        counts: K numbers of examples, each in 1..N−1.

    Returns:
        ``[1 + R·K, N]``, float32, 0 or 1, for `retrain_subsets`.

    Raises:
        SettingError: numbers that are not finite, counts out of range.
    """
    _check_matrix("scores", scores, ("R", "N"))
    targets, examples = scores.shape
    _check_counts(counts, examples - 1)
    check_memory("counts", list(counts), 4 * targets * len(counts) * examples)
    order = scores.detach().cpu().sort(dim=1, descending=True, stable=True).indices
    weights = torch.ones(targets, len(counts), examples)
    for place, count in enumerate(counts):
        weights[:, place].scatter_(1, order[:, :count], 0.0)
    return torch.cat([torch.ones(1, examples), weights.flatten(0, 1)])


@checked
def leave_out_changes(scores: Tensor, counts: Sequence[int], losses: Tensor) -> LeaveOutChanges:
    """How the loss of each target really changed without its most helpful examples.

    Args:
        scores: ``[R, N]``, as `leave_top_out` was given.
        counts: K numbers, as there.
        losses: ``[1 + R·K, R]``, of the subsets that it gave, retrained.

    Raises:
        SettingError: shapes that do not fit, numbers that are not finite, counts out of range.
    """
    _check_matrix("scores", scores, ("R", "N"))
    targets, examples = scores.shape
    _check_counts(counts, examples - 1)
    _check_matrix("losses", losses, (1 + targets * len(counts), targets))
    found = losses.detach().cpu().double()
    changes = _own_columns(found[1:], targets) - found[0][:, None]
    highest = scores.detach().cpu().double().sort(dim=1, descending=True, stable=True).values
    sums = highest.cumsum(1)[:, [count - 1 for count in counts]]
    return LeaveOutChanges(changes, sums)


@checked
def brittleness(outputs: Tensor, counts: Sequence[int]) -> Brittleness:
    """Whose predicted class another one replaces without the most helpful examples.

    Held against each other are the classes of the highest output with all of the training part and
    without the examples.

    Args:
        outputs: ``[1 + R·K, R, C]``, C at least 2, of the subsets of `leave_top_out`, retrained.
        counts: K numbers, as there.

    Raises:
        SettingError: shapes that do not fit, numbers that are not finite, counts out of range.

    Source: Ilyas et al., "Datamodels: Predicting Predictions from Training Data", ICML 2022.
    """
    _check_counts(counts, 2**62)
    check_tensors(outputs, "outputs")
    shape = list(outputs.shape)
    targets = shape[1] if len(shape) == 3 else 0
    if not targets or shape[0] != 1 + targets * len(counts) or shape[2] < 2:
        accepted = f"[1 + R·{len(counts)}, R, C] is needed, with R of at least 1, C of at least 2"
        raise SettingError("shape of outputs", shape, accepted)
    _check_matrix("outputs", outputs.flatten(1), (shape[0], targets * shape[2]))
    classes = outputs.detach().cpu().double().argmax(2)
    return brittleness_of(_own_columns(classes[1:], targets) != classes[0][:, None], counts)


def brittleness_of(flipped: Tensor, counts: Sequence[int]) -> Brittleness:
    """`Brittleness` of what flipped, ``[R, K]``, without so many examples."""
    numbers = torch.tensor(list(counts))
    smallest = torch.where(flipped, numbers, 2**62).amin(1)
    share = flipped.double().mean(0)
    ends = torch.stack([_wilson(float(p), len(flipped)) for p in share])
    return Brittleness(flipped, share, ends, torch.where(smallest < 2**62, smallest, -1))


def _own_columns(rows: Tensor, targets: int) -> Tensor:
    """Of rows r·K + j and R columns the column r: ``[R·K, R]`` → ``[R, K]``."""
    return rows.reshape(targets, -1, targets).diagonal(dim1=0, dim2=2).T


def _wilson(share: float, count: int) -> Tensor:
    """Ends of the 95 % interval of a share of so many."""
    squared = _NORMAL**2 / count
    centre = share + squared / 2
    half = _NORMAL * math.sqrt(share * (1 - share) / count + squared / (4 * count))
    ends = torch.tensor([centre - half, centre + half], dtype=torch.float64) / (1 + squared)
    return ends.clamp(0, 1)


def _check_counts(counts: Sequence[int], most: int) -> None:
    if not len(counts):
        raise SettingError("counts", list(counts), "at least one number of examples is needed")
    for count in counts:
        check_whole("counts", count, 1, most)


def _check_matrix(name: str, values: Tensor, shape: tuple[int | str, ...]) -> None:
    """Refuse what is not a matrix of finite real numbers; letters of a shape take any length."""
    check_tensors(values, name)
    fits = values.dim() == 2 and all(
        n >= 1 if isinstance(wanted, str) else n == wanted for n, wanted in zip(values.shape, shape)
    )
    if not fits:
        accepted = f"[{shape[0]}, {shape[1]}] is needed"
        raise SettingError(f"shape of {name}", list(values.shape), accepted)
    if values.is_complex() or not bool(values.isfinite().all()):
        raise SettingError(name, f"{values.dtype}", "finite real numbers are needed")
