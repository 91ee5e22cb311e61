"""The report of a test of what shapes runs: networks trained with it, and without."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from metalearn.trainers.hyper.gradient_check import GradientCheck
from metalearn.trainers.supervised.regression_reports import RegressionTest
from metalearn.trainers.supervised.reports import EnsembleTest

__all__ = ["HyperTest"]

NetworkTest = EnsembleTest | RegressionTest


@dataclass(frozen=True)
class HyperTest:
    """How networks do that whole runs train, from the same starts and with the same batches."""

    learnt: NetworkTest
    """With what has been learnt."""
    plain: NetworkTest
    """By ordinary runs: weights of 1, rates and decays as they were set, or inputs as drawn."""
    check: GradientCheck | None = None
    """Of the gradient at the end of the training; None where that has not just been."""

    def as_json(self) -> dict[str, Any]:
        """Both, under ``learnt`` and ``plain``; ``check`` where there is one."""
        both: dict[str, Any] = {"learnt": self.learnt.as_json(), "plain": self.plain.as_json()}
        return both if self.check is None else both | {"check": self.check.as_json()}

    def headline(self) -> dict[str, float]:
        """Means over the networks, which are no ensemble; of ordinary runs ``plain_<score>``."""
        return _means(self.learnt) | {
            f"test/plain_{name.partition('/')[2]}": value
            for name, value in _means(self.plain).items()
        }

    def member_headlines(self) -> list[dict[str, float]]:
        """Scores of each network."""
        return self.learnt.member_headlines()

    def lines(self, name: str) -> list[str]:
        """Both tables, one after the other, and what came of the check."""
        tables = [
            *self.learnt.lines(f"{name}, learnt"),
            *self.plain.lines(f"{name}, ordinary runs"),
        ]
        return tables if self.check is None else [*tables, f"check: {self.check}"]

    def meaning(self) -> str:
        """How both compare."""
        name, larger = (
            ("accuracy", True) if "test/accuracy" in _means(self.plain) else ("nll", False)
        )
        learnt, plain = (_means(test)[f"test/{name}"] for test in (self.learnt, self.plain))
        if math.isnan(learnt) or math.isnan(plain):
            return "Alarming: networks of one kind have no finite score."
        if (learnt > plain) is not larger or learnt == plain:
            return f"Alarming: what was learnt does not better the mean {name} of ordinary runs."
        return f"What was learnt betters the mean {name} of ordinary runs, on samples it never saw."


def _means(test: NetworkTest) -> dict[str, float]:
    rows = test.member_headlines()
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
