"""Scores of an ensemble of regression models over a data set: members, their mixture, any size.

Each member predicts a normal distribution of every target; the ensemble predicts the mixture of
them. Axes: M members, B samples of a batch, N samples of the data set, D targets of a sample.
Results are float64 on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from metalearn.core.bayes.predictive_regression import gaussian_log_densities
from metalearn.core.curvature.gaussian import means_and_log_variances
from metalearn.core.tree import check_floating, check_tensors
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked

__all__ = ["RegressionReport", "RegressionScores", "RegressionStatistics", "means_and_variances"]

_OUTSIDE = 0.05  # share of a distribution outside of its central 95 % interval
_MOST = 2**20


def means_and_variances(outputs: Tensor, targets: int) -> tuple[Tensor, Tensor]:
    """What a network's outputs predict: means and variances, both ``[..., D]``.

    Args:
        outputs: ``[..., 2·D]``, means and then log-variances, see
            `metalearn.core.curvature.gaussian`; or ``[..., D]``, means of distributions with
            variance 1.
        targets: D.

    Raises:
        SettingError: outputs of another width.
    """
    width = outputs.shape[-1]
    if width == targets:
        return outputs, torch.ones_like(outputs)
    if width != 2 * targets:
        accepted = f"{targets} means are needed, or as many log-variances beside them"
        raise SettingError("width of outputs", width, accepted)
    means, logs = means_and_log_variances(outputs)
    return means, logs.exp()


@dataclass(frozen=True)
class RegressionScores:
    """Scores of M predictors over N samples; each ``[M]``.

    Attributes:
        nll: mean over samples of −log p(y), the density of all D targets together, in nats.
        rmse: root of the mean of (y − mean prediction)² over samples and targets.
        coverage: share of targets in the central 95 % interval of what is predicted of each: 0.95
            where the intervals are calibrated, less where they are too narrow.
    """

    nll: Tensor
    rmse: Tensor
    coverage: Tensor

    def at(self, index: int) -> dict[str, float]:
        """The scores of one predictor, by name."""
        return {field.name: float(getattr(self, field.name)[index]) for field in fields(self)}


@dataclass(frozen=True)
class RegressionReport:
    """What `RegressionStatistics` found.

    Attributes:
        samples: N.
        members: scores of each member alone.
        by_size: scores of ensembles; entry m−1 is the mixture of the first m members.
        aleatoric: mean over samples and targets of the mean variance of the first m members,
            ``[M]``.
        epistemic: mean over samples and targets of the variance between the means of the first m
            members, ``[M]``.
    """

    samples: int
    members: RegressionScores
    by_size: RegressionScores
    aleatoric: Tensor
    epistemic: Tensor

    def ensemble(self) -> dict[str, float]:
        """The whole ensemble's numbers, by name."""
        rest = ("aleatoric", "epistemic")
        return self.by_size.at(-1) | {name: float(getattr(self, name)[-1]) for name in rest}

    def member(self, index: int) -> dict[str, float]:
        """The numbers of one member, by name."""
        return self.members.at(index)


class RegressionStatistics:
    """Accumulates scores over batches that may come from any device; only sums are kept.

    A member whose outputs are NaN makes its own scores NaN and those of the ensembles that contain
    it.

    Args:
        members: M.
        targets: D.

    Raises:
        SettingError: not a whole number of at least 1.
    """

    @checked
    def __init__(self, members: int, targets: int) -> None:
        for name, value in (("members", members), ("targets", targets)):
            check_whole(name, value, 1, _MOST)
        self.members, self.targets, self.samples = members, targets, 0
        # predictors: M members, then M ensembles of the first 1..M
        self._scores = torch.zeros(3, 2 * members, dtype=torch.float64)
        self._variances = torch.zeros(2, members, dtype=torch.float64)

    @torch.no_grad()
    @checked
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            outputs: ``[M, B, D]`` or ``[M, B, 2·D]``; see `means_and_variances`.
            targets: ``[B, D]``.

        Raises:
            SettingError: other shapes or types.
        """
        check_floating(outputs, "outputs")
        check_tensors(targets, "targets")
        if outputs.ndim != 3 or len(outputs) != self.members:
            accepted = f"[{self.members}, B, outputs] is needed, [members, samples, outputs]"
            raise SettingError("shape of outputs", list(outputs.shape), accepted)
        if list(targets.shape) != [outputs.shape[1], self.targets]:
            accepted = f"[{outputs.shape[1]}, {self.targets}] is needed, [samples, targets]"
            raise SettingError("shape of targets", list(targets.shape), accepted)
        wanted = targets.cpu().double()
        means, variances = means_and_variances(outputs.cpu().double(), self.targets)
        self._add(means, variances, wanted)

    def compute(self) -> RegressionReport:
        """The scores of all batches so far.

        Raises:
            SettingError: no sample was given.
        """
        if not self.samples:
            raise SettingError("samples", 0, "update() with at least one sample is needed first")
        m = self.members
        nll, square, covered = self._scores / self.samples
        columns = (nll, square.sqrt(), covered)
        aleatoric, epistemic = self._variances / self.samples
        return RegressionReport(
            samples=self.samples,
            members=RegressionScores(*(column[:m].clone() for column in columns)),
            by_size=RegressionScores(*(column[m:].clone() for column in columns)),
            aleatoric=aleatoric,
            epistemic=epistemic,
        )

    def _add(self, means: Tensor, variances: Tensor, targets: Tensor) -> None:
        """Members and the mixtures of the first 1..M of them, float64 on the CPU."""
        sizes = torch.arange(1, self.members + 1, dtype=torch.float64).reshape(-1, 1, 1)
        log_p = gaussian_log_densities(means, variances, targets)
        mixed = log_p.logcumsumexp(0) - sizes[..., 0].log()
        centres = means.cumsum(0) / sizes
        every = torch.cat([means, centres])
        below = 0.5 * torch.erfc((means - targets) / (2 * variances).sqrt())
        below = torch.cat([below, below.cumsum(0) / sizes])  # a mixture's own distribution function
        inside = (below - 0.5).abs() <= 0.5 - _OUTSIDE / 2
        covered = torch.where(below.isnan(), math.nan, inside.double())
        self._scores += torch.stack(
            [
                -torch.cat([log_p, mixed]).sum(1),
                (every - targets).square().mean(-1).sum(1),
                covered.mean(-1).sum(1),
            ]
        )
        own, between = variances.cumsum(0) / sizes, _running_variances(means, centres)
        self._variances += torch.stack([own.mean(-1).sum(1), between.mean(-1).sum(1)])
        self.samples += len(targets)


def _running_variances(means: Tensor, centres: Tensor) -> Tensor:
    """Variance of the first 1, …, M means around their centre, ``[M, B, D]``, by Welford's sums."""
    total, found = torch.zeros_like(means[0]), []
    before = torch.zeros_like(means[0])
    for size, (mean, centre) in enumerate(zip(means, centres), 1):
        total = total + (mean - before) * (mean - centre)
        found.append(total / size)
        before = centre
    return torch.stack(found)
