"""Scores of an ensemble over a data set, batch by batch: members, the whole, any size between.

Axes: M members, B samples of a batch, N samples of the data set, C classes. Results are float64 on
the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from metalearn.core.bayes.predictive import (
    brier_scores,
    entropy,
    is_correct,
    negative_log_likelihoods,
    running_disagreement,
    running_mean_log_probabilities,
)
from metalearn.core.tree import check_floating
from metalearn.errors import SettingError, check_whole
from metalearn.evaluation.calibration import ReliabilityBins, adaptive_calibration_error, bin_sums
from metalearn.evaluation.targets import check_sample_targets
from metalearn.signatures import checked

__all__ = ["EnsembleReport", "EnsembleStatistics", "Scores"]

_MOST = 2**20  # members, classes, bins: beyond it their sums alone take gigabytes
_CHUNK = 2**22  # numbers worked on at a time: 16 MiB in float32


@dataclass(frozen=True)
class Scores:
    """Scores of M predictors over N samples; each ``[M]``.

    Attributes:
        accuracy: share of samples whose most probable class is right.
        nll: mean of −log p(target), in nats.
        brier: mean over samples of Σ_c (p_c − [c = target])², in 0..2.
        ece: expected calibration error, equal-width bins of the confidence.
        adaptive_ece: the same with bins of equal mass.
        entropy: mean entropy of the predictions, in nats.
    """

    accuracy: Tensor
    nll: Tensor
    brier: Tensor
    ece: Tensor
    adaptive_ece: Tensor
    entropy: Tensor

    def at(self, index: int) -> dict[str, float]:
        """The scores of one predictor, by name."""
        return {field.name: float(getattr(self, field.name)[index]) for field in fields(self)}


@dataclass(frozen=True)
class EnsembleReport:
    """What `EnsembleStatistics` found.

    Attributes:
        samples: N.
        members: scores of each member alone.
        by_size: scores of ensembles; entry m−1 is the mean prediction of the first m members.
        expected_entropy: mean over samples and the first m members, ``[M]`` (aleatoric), in nats.
        mutual_information: mean over samples, of the first m members, ``[M]`` (epistemic), in nats.
        disagreement: share of pairs of the first m members that differ, mean over samples, ``[M]``.
        reliability: the reliability diagram of the whole ensemble, ``[bins]``.
        uncertainty: of each sample, in the order of arrival, under the whole ensemble: the scores
            of `metalearn.evaluation.uncertainty_scores`, each ``[N]`` (float32).
    """

    samples: int
    members: Scores
    by_size: Scores
    expected_entropy: Tensor
    mutual_information: Tensor
    disagreement: Tensor
    reliability: ReliabilityBins
    uncertainty: dict[str, Tensor]

    def ensemble(self) -> dict[str, float]:
        """The whole ensemble's numbers, by name."""
        rest = ("expected_entropy", "mutual_information", "disagreement")
        return self.by_size.at(-1) | {name: float(getattr(self, name)[-1]) for name in rest}

    def member(self, index: int) -> dict[str, float]:
        """The numbers of one member, by name."""
        return self.members.at(index)


class EnsembleStatistics:
    """Accumulates scores over batches that may come from any device.

    Nothing but sums is kept, and of each sample 10·M + 12 bytes: equal-mass bins need all
    confidences, histograms and out-of-distribution tests the uncertainties. A member whose logits
    are NaN makes its own scores NaN and those of the ensembles that contain it.

    Args:
        members: M.
        classes: C.
        bins: bins of both calibration errors.

    Raises:
        SettingError: not a whole number of at least 1.
    """

    @checked
    def __init__(self, members: int, classes: int, *, bins: int = 15) -> None:
        for name, value in (("members", members), ("classes", classes), ("bins", bins)):
            check_whole(name, value, 1, _MOST)
        self.members, self.classes, self.bins = members, classes, bins
        self.samples = 0
        # predictors: M members, then M ensembles of the first 1..M
        self._sums = torch.zeros(4, 2 * members, dtype=torch.float64)
        self._splits = torch.zeros(3, members, dtype=torch.float64)
        self._bins = torch.zeros(3, 2 * members, bins, dtype=torch.float64)
        self._confidences: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._uncertainty: list[Tensor] = []

    @torch.no_grad()
    @checked
    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            logits: ``[M, B, C]``.
            targets: class indices ``[B]``.

        Raises:
            SettingError: other shapes, or targets that are not whole numbers in 0..C−1.
        """
        self._check(logits, targets)
        size = max(1, _CHUNK // (2 * self.members * self.classes))
        targets = targets.to(logits.device).long()
        for start in range(0, len(targets), size):
            self._add(logits[:, start : start + size], targets[start : start + size])

    def compute(self) -> EnsembleReport:
        """The scores of all batches so far.

        Raises:
            SettingError: no sample was given.
        """
        if not self.samples:
            raise SettingError("samples", 0, "update() with at least one sample is needed first")
        m, sums = self.members, self._sums / self.samples
        diagram = ReliabilityBins.from_sums(self._bins)
        confidences, hit = torch.cat(self._confidences, -1), torch.cat(self._hits, -1)
        adaptive = adaptive_calibration_error(confidences, hit, bins=self.bins)
        accuracy, nll, brier, spread = sums
        columns = (accuracy, nll, brier, diagram.error, adaptive, spread)
        splits = self._splits / self.samples
        uncertainty = torch.cat(self._uncertainty, -1)
        names = ("max_probability", "entropy", "mutual_information")
        return EnsembleReport(
            samples=self.samples,
            members=Scores(*(column[:m].clone() for column in columns)),
            by_size=Scores(*(column[m:].clone() for column in columns)),
            expected_entropy=splits[0],
            mutual_information=splits[1],
            disagreement=splits[2],
            reliability=ReliabilityBins(
                diagram.count[-1], diagram.confidence[-1], diagram.accuracy[-1]
            ),
            uncertainty=dict(zip(names, uncertainty)),
        )

    def _add(self, logits: Tensor, targets: Tensor) -> None:
        sizes = running_mean_log_probabilities(logits)
        log_p = torch.cat([logits.log_softmax(-1, dtype=sizes.dtype), sizes])
        hit, confidence = is_correct(log_p, targets), log_p.amax(-1).exp()
        spread = entropy(log_p)
        total = spread[self.members :]
        expected = spread[: self.members].cumsum(0) / _counts(total)
        mutual = (total - expected).clamp_min(0)

        # the most probable class of NaN is no answer
        right = torch.where(confidence.isnan(), torch.nan, hit)
        differing = torch.where(total.isnan(), torch.nan, running_disagreement(logits))
        brier, nll = brier_scores(log_p, targets), negative_log_likelihoods(log_p, targets)
        self._sums += _summed(right, nll, brier, spread)
        self._splits += _summed(expected, mutual, differing)
        confidence, hit = confidence.float().cpu(), hit.cpu()
        self._bins += bin_sums(confidence, hit, bins=self.bins)
        self._confidences.append(confidence)
        self._hits.append(hit)
        least = -torch.expm1(sizes[-1].amax(-1))
        self._uncertainty.append(torch.stack([least, total[-1], mutual[-1]]).float().cpu())
        self.samples += len(targets)

    def _check(self, logits: Tensor, targets: Tensor) -> None:
        check_floating(logits, "logits")
        shape = list(logits.shape)
        if logits.ndim != 3 or (shape[0], shape[2]) != (self.members, self.classes):
            accepted = f"[{self.members}, B, {self.classes}] is needed, [members, samples, classes]"
            raise SettingError("shape of logits", shape, accepted)
        check_sample_targets(targets, samples=shape[1], classes=self.classes)


def _counts(values: Tensor) -> Tensor:
    return torch.arange(1, len(values) + 1, device=values.device).unsqueeze(-1)


def _summed(*values: Tensor) -> Tensor:
    return torch.stack([value.cpu().double().sum(-1) for value in values])
