"""What really happens without the examples that helped each target most, by each method.

Axes: R targets, N training examples, K counts of examples that are left out, M retrainings, C
outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.attribution.datamodels import (
    Brittleness,
    brittleness,
    leave_out_changes,
    leave_top_out,
)
from metalearn.attribution.found_samples import check_shape
from metalearn.attribution.retraining import Retrained
from metalearn.core.checks import call_given
from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError
from metalearn.evaluation.seeds import SeedMean, mean_over_seeds
from metalearn.random_streams import AddressedStream, check_seed
from metalearn.signatures import check_fields, checked

__all__ = ["CHANCE", "LeaveKOut", "change_in_words", "leave_k_out"]

CHANCE = "chance"
"""The name under which examples that are drawn by chance stand beside those of the methods."""

_ALL = "all"


@dataclass(frozen=True, eq=False)
class LeaveKOut:
    """What retraining without the most helpful examples of each target did: of `leave_k_out`.

    Raises:
        SettingError: shapes or methods that do not fit.
    """

    counts: Sequence[int]
    """K numbers of examples."""
    changes: dict[str, Tensor]
    """``[R, K]`` of each method, and by `CHANCE`: the loss of a target without them minus with."""
    predicted: dict[str, Tensor]
    """``[R, K]`` of each method: the sum of the scores of what was left out."""
    flips: dict[str, Brittleness]
    """Which predictions changed, of the same names as ``changes``; none in regression."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, values in (self.changes | self.predicted).items():
            check_shape(f"changes[{name}]", values, ("R", len(self.counts)))
        if {*self.predicted, CHANCE} != {*self.changes}:
            accepted = f"one for each of {list(self.predicted)} and for {CHANCE}"
            raise SettingError("changes", list(self.changes), accepted)
        if self.flips and set(self.flips) != set(self.changes):
            raise SettingError("flips", list(self.flips), f"none, or those of {list(self.changes)}")

    def change(self, method: str, place: int) -> SeedMean:
        """The mean over targets of how a loss changed without the j-th count of examples."""
        return mean_over_seeds(self.changes[method][:, place].tolist())

    def as_json(self, method: str) -> list[dict[str, Any]]:
        """What came of a method, or of chance, one entry for each count."""
        return [self._entry(method, place) for place in range(len(self.counts))]

    def of_target(self, row: int) -> dict[str, dict[str, Any]]:
        """What came of one target, by each method."""
        found: dict[str, dict[str, Any]] = {}
        for name, changes in self.changes.items():
            found[name] = {"loss_changes": changes[row].tolist()}
            if self.flips:
                smallest = int(self.flips[name].smallest[row])
                found[name]["smallest_that_flips"] = smallest if smallest > 0 else None
        return found

    def _entry(self, method: str, place: int) -> dict[str, Any]:
        change = self.change(method, place)
        entry: dict[str, Any] = {
            "left_out": self.counts[place],
            "loss_change": change.mean,
            "interval95": change.interval95,
        }
        if method in self.predicted:
            entry["foretold"] = float(self.predicted[method][:, place].mean())
        if self.flips:
            found = self.flips[method]
            entry["flipped"] = float(found.share[place])
            entry["flipped_interval95"] = found.interval95[place].tolist()
        return entry


@checked
def leave_k_out(
    scores: Mapping[str, Tensor],
    counts: Sequence[int],
    retrain: Callable[[Tensor], Retrained],
    *,
    classes: bool,
    seed: int = 0,
) -> LeaveKOut:
    """Leave the most helpful examples of every target out, by every method, and train anew.

    All retrainings are one call: with all examples, without the K counts of each of R targets by
    each method, and without as many that are drawn by chance, which tell what a smaller training
    part does. A method whose scores are not finite has no part in it.

    Args:
        scores: ``[R, N]`` of each method; of equal scores the earlier examples are left out.
        counts: K numbers of examples, in 1..N−1.
        retrain: from weights ``[M, N]`` to losses ``[M, R]`` and outputs, such as
            `metalearn.attribution.retrain_subsets` of one network and its data.
        classes: whether outputs are those of classes, of which predictions may flip.
        seed: of what is drawn by chance.

    Raises:
        SettingError: what `leave_top_out` refuses; what retraining refuses.
    """
    check_seed(seed)
    check_tensors(dict(scores), "scores")
    finite = {name: values for name, values in scores.items() if bool(values.isfinite().all())}
    if not finite or {CHANCE, _ALL} & {*finite}:
        accepted = f"a method with finite scores is needed, and none is named {CHANCE} or {_ALL}"
        raise SettingError("scores", list(scores), accepted)
    stacks = {name: leave_top_out(values, counts)[1:] for name, values in finite.items()}
    targets, examples = next(iter(finite.values())).shape
    for name, values in finite.items():
        check_shape(f"scores[{name}]", values, (targets, examples))
    stacks = {CHANCE: _drawn(examples, counts, seed)} | stacks
    found = _retrained(retrain, torch.cat([torch.ones(1, examples), *stacks.values()]))
    sizes = [1, *map(len, stacks.values())]
    losses, outputs = (dict(zip((_ALL, *stacks), torch.split(part.cpu(), sizes))) for part in found)
    for parts in (losses, outputs):  # one drawing is that of every target
        parts[CHANCE] = torch.cat([parts[CHANCE]] * targets)
    changes, predicted, flips = {}, {}, {}
    for name in stacks:
        of = finite.get(name, torch.zeros(targets, examples))
        after = torch.cat([losses[_ALL], losses[name]])
        changes[name], predicted[name] = leave_out_changes(of, counts, after)
        if classes:
            flips[name] = brittleness(torch.cat([outputs[_ALL], outputs[name]]), counts)
    del predicted[CHANCE]
    return LeaveKOut(list(counts), changes, predicted, flips)


def _retrained(retrain: Callable[[Tensor], Retrained], weights: Tensor) -> Retrained:
    """Refused where it is no pair of tensors of M subsets."""
    found: Any = call_given(retrain, "retrain", weights)
    fits = isinstance(found, tuple) and len(found) == 2
    if not fits or not all(
        isinstance(x, Tensor) and x.shape[:1] == weights.shape[:1] for x in found
    ):
        accepted = f"losses and outputs of {len(weights)} subsets are needed, as Retrained"
        raise SettingError("retrain", type(found).__name__, accepted)
    return Retrained(*found)


def change_in_words(change: SeedMean) -> str:
    """A mean change of a loss with its interval, as many digits of both: ``+0.12 ± 0.03``."""
    half = change.interval95
    if not math.isfinite(half) or half <= 0:
        return f"{change.mean:+.2g}".replace("-", "−")
    digits = min(max(2, -math.floor(math.log10(half))), 9)
    return f"{round(change.mean, digits) + 0.0:+.{digits}f} ± {half:.{digits}f}".replace("-", "−")


def _drawn(examples: int, counts: Sequence[int], seed: int) -> Tensor:
    """Weights ``[K, N]`` without so many examples drawn by chance, a larger count's with them."""
    order = torch.from_numpy(AddressedStream(seed, "subsets", 0).permutation(examples))
    weights = torch.ones(len(counts), examples)
    for place, count in enumerate(counts):
        weights[place, order[:count]] = 0
    return weights
