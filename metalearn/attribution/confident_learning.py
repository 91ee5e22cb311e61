"""Label errors by confident learning: classes that a network is surer of than their labels are.

Axes: N examples, C classes.
Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
Journal of Artificial Intelligence Research 70, 2021.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metalearn.core.autodiff.products import check_mode
from metalearn.core.targets import check_labels
from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError
from metalearn.signatures import checked

__all__ = ["ConfidentJoint", "PruningRule", "confident_joint", "label_issues"]

PruningRule = Literal["noise_rate", "class", "both", "confident", "argmax"]

_RULES = ("noise_rate", "class", "both", "confident", "argmax")
_OFF = 1e-3  # by which probabilities of an example may miss a sum of 1


class ConfidentJoint(NamedTuple):
    """How often a label i stands where class j is true, as far as the network is sure of it."""

    counts: Tensor
    """``[C, C]``, int64: examples with label i of which class j is the likeliest among those that
    are at least as probable as their threshold; examples that reach none are not counted."""
    joint: Tensor
    """``[C, C]``, float64: the estimate of p(label i, class j). Rows of the counts are brought to
    the number of examples with that label, and all to a sum of 1. A label of which no example is
    counted is taken to be right."""
    thresholds: Tensor
    """``[C]``, float64: the mean probability of class j over the examples with that label; infinity
    where no example has it."""


@checked
def confident_joint(labels: Tensor, probabilities: Tensor) -> ConfidentJoint:
    """The joint distribution of given labels and true classes.

    Args:
        labels: ``[N]``, as given, in 0..C−1.
        probabilities: ``[N, C]``, of each example by networks that were not trained on it, as
            `out_of_sample_probabilities` gives.

    Raises:
        SettingError: what is no labels, or no probabilities of these examples.
    """
    labels, probabilities = _checked_pair(labels, probabilities)
    return _joint(labels, probabilities)


@checked
def label_issues(
    labels: Tensor, probabilities: Tensor, *, rule: PruningRule = "noise_rate"
) -> Tensor:
    """Which examples are to be pruned as wrongly labelled, bool ``[N]``.

    Args:
        labels: as for `confident_joint`.
        probabilities: the same.
        rule: ``"noise_rate"``: for each pair i ≠ j the N·joint[i, j] examples with label i that
            have the largest p_j − p_i. ``"class"``: of each label the N·Σ_{j≠i} joint[i, j]
            examples with the smallest p_i. ``"both"``: what these two agree on.
            ``"confident"``: what is counted off the diagonal. ``"argmax"``: all whose likeliest
            class is another. Numbers are rounded.

    Raises:
        SettingError: as `confident_joint`, or an unknown rule.
    """
    check_mode("rule", rule, _RULES)
    labels, probabilities = _checked_pair(labels, probabilities)
    if rule == "argmax":
        return probabilities.argmax(1) != labels
    if rule == "confident":
        sure = _sure_classes(probabilities, _joint(labels, probabilities).thresholds)
        return (sure >= 0) & (sure != labels)
    numbers = _joint(labels, probabilities).joint * len(labels)
    found = torch.ones_like(labels, dtype=torch.bool)
    if rule in ("noise_rate", "both"):
        found &= _by_noise_rate(labels, probabilities, numbers)
    if rule in ("class", "both"):
        found &= _by_class(labels, probabilities, numbers)
    return found


def _joint(labels: Tensor, probabilities: Tensor) -> ConfidentJoint:
    classes = probabilities.shape[1]
    sizes = torch.bincount(labels, minlength=classes)
    own = probabilities.gather(1, labels[:, None]).squeeze(1)
    sums = own.new_zeros(classes).index_add(0, labels, own)
    thresholds = torch.where(sizes > 0, sums / sizes.clamp(min=1), math.inf)
    sure = _sure_classes(probabilities, thresholds)
    cells = (classes * labels + sure)[sure >= 0]
    counts = torch.bincount(cells, minlength=classes**2).reshape(classes, classes)
    rows = torch.where(counts.sum(1, keepdim=True) > 0, counts, torch.diag(sizes)).double()
    joint = rows / rows.sum(1, keepdim=True).clamp(min=1) * sizes[:, None] / len(labels)
    return ConfidentJoint(counts, joint, thresholds)


def _sure_classes(probabilities: Tensor, thresholds: Tensor) -> Tensor:
    """``[N]``, the likeliest class among those that reach their threshold; −1 where none does."""
    reached = probabilities >= thresholds
    likeliest = probabilities.masked_fill(~reached, -1.0).argmax(1)
    return torch.where(reached.any(1), likeliest, -1)


def _by_noise_rate(labels: Tensor, probabilities: Tensor, numbers: Tensor) -> Tensor:
    found = torch.zeros_like(labels, dtype=torch.bool)
    for label, row in enumerate(numbers.round().long().tolist()):
        own = (labels == label).nonzero().flatten()
        for other, count in enumerate(row):
            if other != label and count:
                margins = probabilities[own, other] - probabilities[own, label]
                found[own[_first(-margins, count)]] = True
    return found


def _by_class(labels: Tensor, probabilities: Tensor, numbers: Tensor) -> Tensor:
    found = torch.zeros_like(labels, dtype=torch.bool)
    off = (numbers.sum(1) - numbers.diagonal()).round().long().tolist()
    for label, count in enumerate(off):
        own = (labels == label).nonzero().flatten()
        found[own[_first(probabilities[own, label], count)]] = True
    return found


def _first(values: Tensor, count: int) -> Tensor:
    """Places of the smallest, of equal ones those that come first."""
    return torch.argsort(values, stable=True)[:count]


def _checked_pair(labels: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and probabilities in float64, on one device."""
    for name, value in (("labels", labels), ("probabilities", probabilities)):
        check_tensors(value, name)
    shape = list(probabilities.shape)
    if probabilities.dim() != 2 or not probabilities.is_floating_point() or shape[1] < 2:
        got = f"{probabilities.dtype} {shape}"
        accepted = "real numbers [N, C] of at least two classes are needed"
        raise SettingError("probabilities", got, accepted)
    if labels.dim() != 1 or not len(labels) or len(labels) != shape[0]:
        accepted = f"[{shape[0]}] is needed, a label for each row of probabilities, and not none"
        raise SettingError("shape of labels", list(labels.shape), accepted)
    check_labels(labels, shape[1], "labels", padded=False)
    probabilities = probabilities.detach().double()
    least, sums = float(probabilities.min()), probabilities.sum(1)
    if not least >= 0 or not bool(((sums - 1).abs() < _OFF).all()):
        worst = least if not least >= 0 else float(sums[(sums - 1).abs().argmax()])
        accepted = "numbers of at least 0 are needed whose rows have a sum of 1, as of a softmax"
        raise SettingError("probabilities", worst, accepted)
    return labels.long().to(probabilities.device), probabilities
