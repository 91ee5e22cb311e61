"""The report of a test on samples with real targets: members, their mixture, its variance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metalearn.evaluation import RegressionReport
from metalearn.percent import decimals
from metalearn.trainers.meaning import of_targets
from metalearn.trainers.supervised.score_table import score_table
from metalearn.types import Split

__all__ = ["RegressionTest"]

_SCORES = ("nll", "rmse", "coverage")


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

    def meaning(self) -> str:
        """What the coverage means, and where the variance comes from."""
        whole = self.report.ensemble()
        variance = whole["aleatoric"] + whole["epistemic"]
        between = whole["epistemic"] / variance if variance else 0.0
        several = len(self.report.members.nll) > 1
        return of_targets(
            whole["coverage"], between if several else None, max(1, self.report.samples)
        )

    def lines(self, name: str) -> list[str]:
        """Members' median and range beside the ensemble; where its variance comes from."""
        found, whole = self.report, self.report.ensemble()
        members = {score: getattr(found.members, score) for score in _SCORES}
        title = f"{name}: {found.samples} samples"
        lines = score_table(title, whole, members)
        if len(found.members.nll) == 1:
            lines.append(f"  variance: {whole['aleatoric']:.4g} (aleatoric)")
        else:
            lines.append(
                f"  variance: {whole['aleatoric']:.4g} of the members' own (aleatoric), "
                f"{whole['epistemic']:.4g} between them (epistemic)"
            )
        return lines + [f"  {n.replace('_', ' ')}: {decimals(v)}" for n, v in self.metrics.items()]
