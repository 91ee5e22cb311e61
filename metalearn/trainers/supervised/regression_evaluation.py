"""How regression models and their mixture do on a split: validations, and the report of a test.

Axes: M members, N samples of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from metalearn.data import RegressionData
from metalearn.evaluation import RegressionReport
from metalearn.tracking import Tracker
from metalearn.trainers.loop.protocols import Evaluation, Stateless
from metalearn.trainers.supervised.ensemble_evaluation import draw_member_curves, spread
from metalearn.trainers.supervised.predictions import Predict, regression_report_of
from metalearn.types import Split

__all__ = ["RegressionEvaluator", "RegressionTest"]

_SCORES = ("nll", "rmse", "coverage")


class RegressionEvaluator(Stateless):
    """Scores members and their mixture, or one module, on the validation split.

    Args:
        predict: outputs of the models as they stand, ``[M, N, C]``.
        data: samples with real targets in three splits.
        members: M.
        device: where they predict.
        alone: whether it is one module's, and M is 1.
        together: whether one score, the mean, decides for all members.
        member_curves: record every member's curve as well.
    """

    larger_is_better = False

    def __init__(
        self,
        predict: Predict,
        data: RegressionData,
        *,
        members: int,
        device: torch.device,
        alone: bool = False,
        together: bool = False,
        member_curves: bool = False,
    ) -> None:
        self.predict, self.data, self.members, self.device = predict, data, members, device
        self.alone, self.together, self.member_curves = alone, together, member_curves
        self.monitor = "validation/nll" if alone else "validation/member_loss"

    @property
    def bands(self) -> Mapping[str, Sequence[str]]:
        """Of members: median and extremes."""
        if self.alone:
            return {}
        names = ["validation/member_loss", "validation/member_rmse"]
        names += ["train/member_loss", "train/member_gradient_norm"]
        return {"members: median and extremes": names}

    def __call__(self, step: int) -> Evaluation:
        """NLL decides; RMSE and coverage beside it."""
        found = regression_report_of(
            self.predict, self.data, "validation", members=self.members, device=self.device
        )
        own = found.member(0) if self.alone else found.ensemble()
        numbers = {f"validation/{name}": value for name, value in own.items()}
        members = {"loss": found.members.nll, "rmse": found.members.rmse}
        if not self.alone:
            for name, values in members.items():
                numbers |= spread(f"validation/member_{name}", values)

        def draw(tracker: Tracker, step: int) -> None:
            if self.member_curves:
                draw_member_curves(tracker, step, members)

        scores = found.members.nll.mean(0, keepdim=True) if self.together else found.members.nll
        return Evaluation(numbers, scores, draw)


@dataclass(frozen=True)
class RegressionTest:
    """How an ensemble of regression models, or a single one, does on a split."""

    split: Split
    report: RegressionReport
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What was measured beside the scores, by name."""

    def as_json(self) -> dict[str, Any]:
        """Scores of members, of the ensemble, by its size; further metrics where there are some."""
        found = self.report
        every = range(len(found.members.nll))
        numbers = {
            "samples": found.samples,
            "ensemble": found.ensemble(),
            "members": [found.member(index) for index in every],
            "by_size": [found.by_size.at(index) for index in every],
        }
        return numbers | ({"metrics": dict(self.metrics)} if self.metrics else {})

    def headline(self) -> dict[str, float]:
        """Scores of the ensemble, and further metrics."""
        numbers = self.report.ensemble()
        shown = {name: numbers[name] for name in _SCORES} | dict(self.metrics)
        return {f"test/{name}": value for name, value in shown.items()}

    def member_headlines(self) -> list[dict[str, float]]:
        """Scores of each member."""
        found = self.report
        return [
            {f"test/{name}": value for name, value in found.member(index).items()}
            for index in range(len(found.members.nll))
        ]

    def lines(self, name: str) -> list[str]:
        """Members' median and range beside the ensemble; where its variance comes from."""
        found, whole = self.report, self.report.ensemble()
        lines = [f"{name}: {found.samples} samples, {len(found.members.nll)} members"]
        lines.append(
            f"  {'':10}{'ensemble':>10}{'members: median':>18}{'lowest':>10}{'highest':>10}"
        )
        for score in _SCORES:
            values = getattr(found.members, score)
            row = (whole[score], values.median(), values.min(), values.max())
            shown = [f"{float(v):.2%}" if score == "coverage" else f"{float(v):.4f}" for v in row]
            lines.append(f"  {score:10}{shown[0]:>10}{shown[1]:>18}{shown[2]:>10}{shown[3]:>10}")
        lines.append(
            f"  variance: {whole['aleatoric']:.4g} of the members' own (aleatoric), "
            f"{whole['epistemic']:.4g} between them (epistemic)"
        )
        return lines + [f"  {n.replace('_', ' ')}: {v:.4g}" for n, v in self.metrics.items()]
