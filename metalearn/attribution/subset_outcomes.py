"""What retraining subsets did, beside what each method said that it would do.

Axes: R targets, N training examples, M retrained subsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from metalearn.attribution.datamodels import (
    DatamodelingScore,
    linear_datamodeling_score,
    predicted_outcomes,
)
from metalearn.attribution.found_samples import check_shape
from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError
from metalearn.signatures import check_fields, checked

__all__ = ["SubsetOutcomes", "subset_outcomes"]


@dataclass(frozen=True, eq=False)
class SubsetOutcomes:
    """What retraining subsets really did, and what each method said: of `subset_outcomes`.

    Raises:
        SettingError: shapes or methods that do not fit.
    """

    left_out: float
    """The share of the examples that a subset lacks."""
    outcomes: Tensor
    """``[M, R]``: losses of the targets."""
    predicted: dict[str, Tensor]
    """``[R, M]`` of each method, up to a constant of the target."""
    lds: dict[str, DatamodelingScore]
    """Of the same methods."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_shape("outcomes", self.outcomes, ("M", "R"))
        for name, values in self.predicted.items():
            check_shape(f"predicted[{name}]", values, tuple(self.outcomes.shape[::-1]))
        if set(self.lds) != set(self.predicted):
            raise SettingError("lds", list(self.lds), f"one for each of {list(self.predicted)}")


@checked
def subset_outcomes(
    scores: Mapping[str, Tensor], weights: Tensor, outcomes: Tensor
) -> SubsetOutcomes:
    """Hold the scores of each method against subsets that were retrained.

    A method whose scores are not finite has no part in it.

    Args:
        scores: ``[R, N]`` of each method.
        weights: ``[M, N]`` of the subsets, as for `retrain_subsets`.
        outcomes: ``[M, R]``, losses of the targets after it.

    Raises:
        SettingError: as `linear_datamodeling_score`.
    """
    check_tensors(dict(scores), "scores")
    finite = {name: values for name, values in scores.items() if bool(values.isfinite().all())}
    lds = {name: linear_datamodeling_score(s, weights, outcomes) for name, s in finite.items()}
    predicted = {name: predicted_outcomes(values, weights) for name, values in finite.items()}
    left_out = 1 - float(weights.double().mean())
    return SubsetOutcomes(left_out, outcomes.detach().cpu(), predicted, lds)
