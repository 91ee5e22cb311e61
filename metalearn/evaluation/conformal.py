"""Sets of classes that hold the right one as often as was asked: split conformal prediction.

A score says how little a class conforms to a prediction. The sets of new samples hold every class
whose score is at most the ⌈(N + 1) · coverage⌉-th smallest of the right classes of N calibration
samples. Where calibration and new samples are exchangeable, a set then holds the right class with
a probability of at least ``coverage``, whatever the predictor is worth.

Axes: N samples, C classes; any axes before them are calibrated side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.tree import check_floating, check_tensors
from metalearn.errors import SettingError, check_whole
from metalearn.evaluation.targets import check_class_targets
from metalearn.signatures import checked

__all__ = [
    "ConformalPredictor",
    "ConformalRule",
    "SetScores",
    "check_conformal",
    "fit_conformal",
    "set_scores",
]

ConformalRule = Literal["thr", "aps", "raps"]
"""``thr``: one minus the probability of a class (Sadinle, Lei and Wasserman, "Least Ambiguous
Set-Valued Classifiers With Bounded Error Levels", 2019): the smallest sets on average. ``aps``:
the probability of it and all that are more probable (Romano, Sesia and Candès, "Classification with
Valid and Adaptive Coverage", 2020): larger where a sample is hard. ``raps``: the same with
``penalty`` for each rank beyond ``free_ranks`` (Angelopoulos, Bates, Malik and Jordan, "Uncertainty
Sets for Image Classifiers using Conformal Prediction", 2021): no long tails."""


@dataclass(frozen=True)
class ConformalPredictor:
    """A calibrated rule for sets; made by `fit_conformal`.

    Attributes:
        threshold: ``[...]``, float64: the largest score in a set; infinite where the calibration
            samples are too few for the coverage, which puts every class into every set.
        rule: see `ConformalRule`.
        coverage: that was asked for.
        penalty, free_ranks: of ``raps``.
    """

    threshold: Tensor
    rule: ConformalRule
    coverage: float
    penalty: float = 0.0
    free_ranks: int = 0

    def sets(self, probabilities: Tensor, *, draws: Tensor | None = None) -> Tensor:
        """Which classes each sample's set holds: booleans ``[..., N, C]``; a set may be empty.

        Args:
            probabilities: ``[..., N, C]``, as those that were calibrated.
            draws: of aps and raps, as of `fit_conformal`; given there, they are needed here.
        """
        _check_probabilities(probabilities)
        scores = _scores(probabilities, self.rule, self.penalty, self.free_ranks, draws)
        return scores <= self.threshold.to(scores.device)[..., None, None]


@dataclass(frozen=True)
class SetScores:
    """How good sets are; each ``[...]``, float64.

    Attributes:
        coverage: share of samples whose set holds the right class.
        size: mean number of classes in a set.
    """

    coverage: Tensor
    size: Tensor


@checked
def fit_conformal(
    probabilities: Tensor,
    targets: Tensor,
    *,
    coverage: float = 0.9,
    rule: ConformalRule = "thr",
    penalty: float = 0.01,
    free_ranks: int = 1,
    draws: Tensor | None = None,
) -> ConformalPredictor:
    """Calibrate sets of classes on samples that were not trained on.

    Args:
        probabilities: ``[..., N, C]`` in 0..1.
        targets: the right classes, ``[..., N]``.
        coverage: how often a set is to hold the right class, in (0, 1).
        rule: see `ConformalRule`.
        penalty: of raps: λ ≥ 0, for each rank beyond ``free_ranks``.
        free_ranks: of raps: how many classes are free of it.
        draws: of aps and raps: uniform numbers ``[..., N]`` in 0..1, which share of a class's own
            probability counts; the coverage is then exact and not more. None counts all of it.

    Raises:
        SettingError: shapes that differ, no sample, a class that there is not, ``draws`` for thr.
    """
    check_conformal(coverage, rule, penalty, free_ranks)
    _check_probabilities(probabilities)
    check_class_targets(targets, probabilities.shape[:-1], probabilities.shape[-1])
    if rule != "raps":
        penalty, free_ranks = 0.0, 0
    scores = _scores(probabilities, rule, penalty, free_ranks, draws)
    right = scores.gather(-1, targets[..., None].long())[..., 0].cpu()
    count = right.shape[-1]
    place = math.ceil((count + 1) * coverage - 1e-9)  # 0.9 · 10 is 9, whatever the floats say
    threshold = torch.full(right.shape[:-1], math.inf, dtype=right.dtype)
    if place <= count:
        threshold = right.kthvalue(max(place, 1), -1).values
    return ConformalPredictor(threshold, rule, coverage, penalty, free_ranks)


@checked
def set_scores(sets: Tensor, targets: Tensor) -> SetScores:
    """How often sets hold the right class, and how large they are.

    Args:
        sets: booleans ``[..., N, C]``.
        targets: the right classes, ``[..., N]``.

    Raises:
        SettingError: shapes that differ, no sample, or a class that there is not.
    """
    check_tensors(sets, "sets")
    if sets.dtype != torch.bool:
        raise SettingError("dtype of sets", str(sets.dtype), "booleans are needed")
    _check_shape("sets", sets)
    check_class_targets(targets, sets.shape[:-1], sets.shape[-1])
    holds = sets.gather(-1, targets[..., None].long())[..., 0]
    return SetScores(holds.double().mean(-1), sets.sum(-1).double().mean(-1))


def check_conformal(coverage: float, rule: str, penalty: float, free_ranks: int) -> None:
    """Refuse what says no rule for sets.

    Raises:
        SettingError: names the first of them.
    """
    check_number("coverage", coverage, above=0, below=1)
    if rule not in get_args(ConformalRule):
        accepted = f"one of {', '.join(get_args(ConformalRule))} is needed"
        raise SettingError("rule", rule, accepted)
    check_number("penalty", penalty, least=0)
    check_whole("free_ranks", free_ranks, 0)


def _scores(
    probabilities: Tensor, rule: str, penalty: float, free_ranks: int, draws: Tensor | None
) -> Tensor:
    """How little each class conforms, ``[..., N, C]``, float64."""
    values = probabilities.double()
    if rule == "thr":
        if draws is not None:
            raise SettingError("draws", list(draws.shape), "None is needed: thr draws nothing")
        return 1 - values
    ordered, order = values.sort(stable=True, dim=-1, descending=True)
    share = 1.0 if draws is None else _share(draws, probabilities)[..., None]
    found = ordered.cumsum(-1) - ordered * (1 - share)
    ranks = torch.arange(1, values.shape[-1] + 1).to(values)
    found = found + penalty * (ranks - free_ranks).clamp_min(0)
    return torch.empty_like(found).scatter_(-1, order, found)


def _share(draws: Tensor, probabilities: Tensor) -> Tensor:
    check_floating(draws, "draws")
    if draws.shape != probabilities.shape[:-1]:
        accepted = f"{list(probabilities.shape[:-1])} is needed, one for each sample"
        raise SettingError("shape of draws", list(draws.shape), accepted)
    wrong = draws[~((draws >= 0) & (draws <= 1))]
    if len(wrong):
        raise SettingError("draws", float(wrong[0]), "numbers in 0..1 are needed")
    return draws.to(probabilities.device, torch.float64)


def _check_probabilities(probabilities: Tensor) -> None:
    check_floating(probabilities, "probabilities")
    _check_shape("probabilities", probabilities)
    wrong = probabilities[~((probabilities >= 0) & (probabilities <= 1 + 1e-5))]
    if len(wrong):
        raise SettingError("probabilities", float(wrong[0]), "numbers in 0..1 are needed")


def _check_shape(name: str, value: Tensor) -> None:
    if value.dim() < 2 or not value.numel():
        accepted = "[..., N, C] with at least one sample is needed"
        raise SettingError(f"shape of {name}", list(value.shape), accepted)
