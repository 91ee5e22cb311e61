"""The report of a test on labelled samples: members, their mean prediction, its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metalearn.evaluation import EnsembleReport, OODScores, Temperature
from metalearn.percent import decimals
from metalearn.trainers.meaning import of_classes
from metalearn.trainers.supervised.score_table import score_table
from metalearn.types import Split

__all__ = ["EnsembleTest"]

_SCORES = ("accuracy", "nll", "brier", "ece")


@dataclass(frozen=True)
class EnsembleTest:
    """How an ensemble, or a single network, does on a split."""

    split: Split
    report: EnsembleReport
    temperature: Temperature | None
    """Of the ensemble's mean prediction, fitted on the validation split; None where that is not to
    be read."""
    ood: Mapping[str, OODScores]
    """Of each uncertainty of the whole ensemble, against the second data set; may be empty."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What was measured beside the scores, by name."""

    def as_json(self) -> dict[str, Any]:
        """Scores of members, of the ensemble, by its size; temperature; out of distribution."""
        found = self.report
        count = len(found.members.accuracy)
        numbers: dict[str, Any] = {
            "samples": found.samples,
            "ensemble": found.ensemble(),
            "members": [found.member(index) for index in range(count)],
            "by_size": [found.by_size.at(index) for index in range(count)],
            **self._heat(),
            "out_of_distribution": {
                name: {
                    "auroc": float(scores.auroc),
                    "auroc_interval": _interval(scores.auroc_interval),
                    "fpr95": float(scores.fpr95),
                    "fpr95_interval": _interval(scores.fpr95_interval),
                }
                for name, scores in self.ood.items()
            },
        }
        return numbers | ({"metrics": dict(self.metrics)} if self.metrics else {})

    def headline(self) -> dict[str, float]:
        """Scores of the ensemble, and how well it knows the second data set from the first."""
        numbers = self.report.ensemble()
        aurocs = {f"test/auroc_{name}": float(scores.auroc) for name, scores in self.ood.items()}
        further = {f"test/{name}": value for name, value in self.metrics.items()}
        return {f"test/{name}": numbers[name] for name in _SCORES} | aurocs | further

    def member_headlines(self) -> list[dict[str, float]]:
        """Scores of each member."""
        found = self.report
        return [
            {f"test/{k}": v for k, v in found.member(index).items() if k in _SCORES}
            for index in range(len(found.members.accuracy))
        ]

    def lines(self, name: str) -> list[str]:
        """Members' median and range beside the ensemble."""
        found = self.report
        members = {score: getattr(found.members, score) for score in _SCORES}
        title = f"{name}: {found.samples} samples"
        lines = score_table(title, found.ensemble(), members)
        if (heat := self.temperature) is not None:
            lines.append(
                f"  temperature {float(heat.temperature):.3g} takes the validation NLL from "
                f"{float(heat.nll_before):.4f} to {float(heat.nll_after):.4f}"
            )
        further = [f"  {n.replace('_', ' ')}: {decimals(v)}" for n, v in self.metrics.items()]
        return lines + self._lines_of_ood() + further

    def meaning(self) -> str:
        """What accuracy and calibration mean."""
        found, bins = self.report, self.report.reliability
        whole, filled = found.ensemble(), bins.count > 0
        summed = (bins.confidence * bins.count)[filled].sum()
        several = len(found.members.accuracy) > 1
        return of_classes(
            whole["accuracy"],
            whole["ece"],
            float(summed / bins.count.sum()),
            found.samples,
            median=float(found.members.accuracy.median()) if several else None,
            mended=self.temperature is not None,
        )

    def _heat(self) -> dict[str, Any]:
        heat = self.temperature
        if heat is None:
            return {}
        nlls = {"before": heat.nll_before, "after": heat.nll_after}
        numbers = {f"validation_nll_{name}": float(nll) for name, nll in nlls.items()}
        return {"temperature": {"value": float(heat.temperature), **numbers}}

    def _lines_of_ood(self) -> list[str]:
        lines = []
        for score, scores in self.ood.items():
            low, high = _interval(scores.auroc_interval) or (float("nan"),) * 2
            lines.append(
                f"  out of distribution by {score.replace('_', ' ')}: "
                f"AUROC {decimals(float(scores.auroc), '.4f')} ({decimals(low, '.4f')} to "
                f"{decimals(high, '.4f')}), FPR95 {decimals(float(scores.fpr95), '.4f')}"
            )
            if float(scores.auroc) < 0.5:
                lines.append(
                    "    below 0.5: what is foreign is taken for more certain than its own"
                )
        return lines


def _interval(ends: Any) -> list[float] | None:
    return None if ends is None else [float(end) for end in ends]
