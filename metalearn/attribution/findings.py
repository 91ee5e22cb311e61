"""What an attribution of a run has found, held together for those who look at it.

Axes: R targets, N training examples, C classes, M retrained subsets, K steps of the run, S places
along it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from metalearn.attribution.exact import RunCurvature
from metalearn.attribution.found_samples import TargetSamples, TrainingExamples, check_shape
from metalearn.attribution.leaving_out import CHANCE, LeaveKOut
from metalearn.attribution.ranking import (
    Ranked,
    agreement,
    highest,
    most_harmful,
    most_helpful,
)
from metalearn.attribution.subset_outcomes import SubsetOutcomes
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import check_fields
from metalearn.tracking.provenance import plain

__all__ = ["SIGN", "Findings"]

SIGN = "positive: leaving the example out raises the loss of the target"


@dataclass(frozen=True, eq=False)
class Findings:
    """All that an attribution of one run has found; tensors and plain values alone.

    Raises:
        SettingError: shapes that do not fit one another, and settings that have no JSON form.
    """

    run: str
    """What was explained, such as the run's folder."""
    state: str
    """Which of its networks, in words that follow "the network": ``"after step 400"``."""
    split: str
    """Where the targets are from."""
    targets: TargetSamples
    examples: TrainingExamples
    scores: dict[str, Tensor]
    """Method to ``[R, N]``; positive: leaving the example out raises the loss of the target."""
    self_scores: dict[str, Tensor] = field(default_factory=dict)
    """Method to ``[N]``, of examples by themselves; the highest are suspected of wrong labels."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What each method took; those that are not named are not known."""
    class_names: Sequence[str] | None = None
    retrained: Sequence[SubsetOutcomes] = ()
    """One for each share that was left out."""
    leave_k_out: LeaveKOut | None = None
    """What became of targets without their most helpful examples, by each method."""
    curvature: RunCurvature | None = None
    walk_norms: Tensor | None = None
    """``[K + 1]`` or ``[R, K + 1]``: size of the gradient from the end of the run back to its
    start, as `metalearn.core.hyper_gradient` gives it."""
    warnings: Sequence[str] = ()
    """Why some of this should not be trusted."""
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_methods()
        for name in ("settings", "provenance"):
            _check_plain(name, getattr(self, name))
        for subsets in self.retrained:
            if subsets.outcomes.shape[1:] != self.targets.labels.shape[:1]:
                shape, accepted = (
                    list(subsets.outcomes.shape),
                    f"[M, {self.target_count}] is needed",
                )
                raise SettingError("shape of retrained.outcomes", shape, accepted)
        for name, changes in (self.leave_k_out.changes if self.leave_k_out else {}).items():
            check_shape(f"leave_k_out.changes[{name}]", changes, (self.target_count, "K"))
        if self.walk_norms is not None:
            rows = (self.target_count,) if self.walk_norms.dim() > 1 else ()
            check_shape("walk_norms", self.walk_norms, (*rows, "K + 1"))
        if self.curvature is not None:
            _check_curvature(self.curvature)
        self._check_names()

    @property
    def target_count(self) -> int:
        """R."""
        return len(self.targets.labels)

    @property
    def example_count(self) -> int:
        """N."""
        return len(self.examples.labels)

    @property
    def best_method(self) -> str | None:
        """The one that foretold retraining best, or the first; None where there is none."""
        means = {
            n: s.mean for r in self.retrained[:1] for n, s in r.lds.items() if n in self.scores
        }
        return max(means, key=lambda n: means[n]) if means else next(iter(self.scores), None)

    @cached_property
    def agreement(self) -> Tensor:
        """Rank correlation of methods, the mean over targets: see `ranking.agreement`."""
        return agreement(self.scores)

    def label(self, values: Tensor) -> str:
        """A label, ``[]`` or ``[D]``, in words: a class by its name."""
        if values.dim() == 0 and not values.is_floating_point():
            number = int(values)
            names = self.class_names or ()
            return names[number] if 0 <= number < len(names) else str(number)
        numbers = [f"{float(value):.4g}" for value in values.flatten()[:4]]
        return ", ".join(numbers[:3] + ["…"] * (len(numbers) > 3))

    def prediction(self, target: int) -> str | None:
        """The class of the highest probability, in words; None in regression."""
        if self.targets.probabilities is None:
            return None
        return self.label(self.targets.probabilities[target].argmax())

    def of_target(self, row: int, top: int) -> dict[str, Any]:
        """One target in numbers, with the ``top`` examples of each kind by each method."""
        return {
            "row": int(self.targets.rows[row]),
            "label": self.label(self.targets.labels[row]),
            "prediction": self.prediction(row),
            "loss": float(self.targets.losses[row]),
            "most_helpful": {
                name: self._listed(most_helpful(values[row], top))
                for name, values in self.scores.items()
            },
            "most_harmful": {
                name: self._listed(most_harmful(values[row], top))
                for name, values in self.scores.items()
            },
            "leave_k_out": self.leave_k_out.of_target(row) if self.leave_k_out else {},
        }

    def as_json(self, *, top: int = 10) -> dict[str, Any]:
        """The numbers that a person wants a year later, in JSON's own types.

        Args:
            top: how many of the most helpful, the most harmful and the most suspicious examples.

        Raises:
            SettingError: a count below 1.
        """
        check_whole("top", top, 1)
        methods = list(self.scores)
        found = plain(
            {
                "run": self.run,
                "state": self.state,
                "split": self.split,
                "targets": self.target_count,
                "examples": self.example_count,
                "scores": SIGN,
                "warnings": list(self.warnings),
                "methods": {name: self._method(name) for name in [*methods, *self.self_scores]},
                "agreement": {
                    name: dict(zip(methods, row.tolist()))
                    for name, row in zip(methods, self.agreement)
                },
                "leave_k_out_by_chance": self._left_out(CHANCE),
                "of_targets": [self.of_target(r, top) for r in range(self.target_count)],
                "suspected": {
                    n: self._listed(highest(s, top)) for n, s in self.self_scores.items()
                },
                "curvature": None if self.curvature is None else vars(self.curvature),
                "settings": self.settings,
                "provenance": self.provenance,
            }
        )
        assert isinstance(found, dict)
        return found

    def _method(self, name: str) -> dict[str, Any]:
        known = [
            {
                "left_out": subsets.left_out,
                "subsets": len(subsets.outcomes),
                "rank_correlation": subsets.lds[name].mean,
                "interval95": subsets.lds[name].interval95,
            }
            for subsets in self.retrained
            if name in subsets.lds
        ]
        seconds = self.seconds.get(name)
        return {"seconds": seconds, "retraining": known, "leave_k_out": self._left_out(name)}

    def _left_out(self, name: str) -> list[dict[str, Any]]:
        found = self.leave_k_out
        return [] if found is None or name not in found.changes else found.as_json(name)

    def _listed(self, found: Ranked) -> list[dict[str, Any]]:
        return [
            {"example": row, "label": self.label(self.examples.labels[row]), "score": score}
            for row, score in zip(found.examples, found.scores)
        ]

    def _check_methods(self) -> None:
        for name, methods in (("scores", self.scores), ("self_scores", self.self_scores)):
            shape = (self.target_count, self.example_count)[name == "self_scores" :]
            for method, values in methods.items():
                if not isinstance(method, str) or not method:
                    raise SettingError(name, method, "a method is named by a text")
                check_shape(f"{name}[{method}]", values, shape)
        both = sorted({*self.scores} & {*self.self_scores})
        if both or not (self.scores or self.self_scores):
            accepted = "at least one method is needed, and each name once"
            raise SettingError("scores", both, accepted)
        for method, seconds in self.seconds.items():
            number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
            if not number or not math.isfinite(seconds) or seconds < 0:
                raise SettingError(
                    f"seconds[{method}]", seconds, "a number of at least 0 is needed"
                )

    def _check_names(self) -> None:
        names, probabilities = self.class_names, self.targets.probabilities
        if names is not None and probabilities is not None and len(names) != probabilities.shape[1]:
            accepted = f"a name for each of {probabilities.shape[1]} classes is needed"
            raise SettingError("class_names", list(names), accepted)


def _check_curvature(curvature: RunCurvature) -> None:
    """Refuse what are no lists of numbers of one length; NaN may be among them."""
    parts = (curvature.steps, curvature.eigenvalues, curvature.rates)
    for values in parts:
        if not isinstance(values, list | tuple) or any(
            isinstance(value, bool) or not isinstance(value, int | float) for value in values
        ):
            raise SettingError("curvature", type(values).__name__, "lists of numbers are needed")
    lengths = [len(values) for values in parts]
    if len(set(lengths)) != 1 or not lengths[0]:
        accepted = "as many eigenvalues and rates as steps are needed, at least one"
        raise SettingError("curvature", lengths, accepted)


def _check_plain(name: str, values: Mapping[str, Any]) -> None:
    try:
        json.dumps(plain(values), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SettingError(name, type(values).__name__, f"JSON's own types ({reason})") from error
